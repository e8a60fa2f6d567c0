"""Turns HTML into Markdown with headings, paragraphs, lists, tables and code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

MAX_DEPTH = 250  # of nested elements; the time of a browser's parser grows with the depth times the length
MAX_ATTRIBUTES = 300
MAX_NOTICE = 1000  # characters of a footer about cookies

_WHOLE = {"h1", "h2", "h3", "h4", "h5", "h6", "li", "pre", "tr"}  # no paragraph starts inside
_CONTAINERS = {
    "address", "article", "aside", "blockquote", "body", "button", "center", "dd", "details", "dialog", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "main", "ol", "optgroup", "option",
    "p", "search", "section", "summary", "table", "tbody", "textarea", "tfoot", "thead", "ul",
}  # fmt: skip
_BREAKS = {"br": "\n", "td": " | ", "th": " | "}

_INVISIBLE = {"script", "style", "nav", "noscript", "template", "svg", "title", "head", "iframe", "noframes"}
_SKIP_LINK = re.compile(r"\s*(?:skip|jump) (?:to|navigation|links?)\b|\s*zum (?:haupt)?inhalt\b", re.IGNORECASE)
_COOKIES = re.compile(
    r"(?:^|[\s_-])(?:cookies?|gdpr|cookie-?consent|onetrust)(?:[\s_-]?(?:banner|bar|box|consent|dialog|footer|info|law|message|modal|"
    r"notice|notification|overlay|policy-banner|popup|wall|sdk))(?:$|[\s_-])|^(?:cookies?|cookie-?consent|gdpr)$",
    re.IGNORECASE,
)
_DISPLAY_NONE = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_ORDINAL = re.compile(r"\s*(?:st|nd|rd|th|er|re|e|[ºª°]|o|a|tm|®|™)\s*$", re.IGNORECASE)

# Attribute values that hold < or > only make this count a little wrong. Nothing here can backtrack.
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9:-]*)([^<>]*)")
_INLINE = {"b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"}
_NEVER_NESTED = {
    "area", "base", "body", "br", "col", "colgroup", "dd", "dt", "embed", "head", "hr", "html", "img", "input", "li", "link",
    "main", "meta", "option", "p", "param", "rp", "rt", "script", "source", "style", "tbody", "td", "textarea", "tfoot", "th",
    "thead", "title", "tr", "track", "wbr",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """The title and the comma-separated keywords of a page, and its body as Markdown."""

    title: str
    keywords: str
    text: str


def read_page(markup: str) -> Page:
    r"""Read a page of HTML as a browser does, whatever is wrong with it, in time that grows with its length.

    What people read is kept: the ``<main>`` of a page that has one, without navigation, links that skip it, notices about
    cookies and what is hidden.

    Example:
        >>> read_page("<title>Pump</title><h1>Reset</h1><p>Press <b>both</b><ul><li>red<li>green</ul>").text
        '# Reset\n\nPress both\n\n- red\n- green'
    """
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(_shallow(markup))
    titles = (node for node in tree.css("title") if node.parent is not None and node.parent.tag in ("head", "body"))
    title = next((" ".join(node.text().split()) for node in titles), "")
    keywords = [node.attributes.get("content") or "" for node in tree.css("meta[name=keywords i]")]
    main = tree.css_first("main, [role=main]")
    text = _joined(_blocks(main)) if main is not None else ""
    return Page(title, keywords[0] if keywords else "", text or _joined(_blocks(tree.root)))


def _shallow(markup: str) -> str:
    """Bound what a parser needs more than linear time for: the depth, open inline elements, many attributes.

    Inline elements become ``span``, which a parser does not open again in each paragraph; elements that are nested too
    deeply become line breaks.
    """
    depth = surplus = 0

    def bounded(tag: re.Match[str]) -> str:
        nonlocal depth, surplus
        closing, name, attributes = tag[1], tag[2].lower(), tag[3]
        if name in _INLINE:
            name = "span"
        if attributes.count("=") > MAX_ATTRIBUTES or len(attributes.split(None, MAX_ATTRIBUTES + 1)) > MAX_ATTRIBUTES:
            attributes = ""
        if name in _NEVER_NESTED or attributes.endswith("/"):
            return f"<{closing}{name}{attributes}"
        if closing and surplus:
            surplus -= 1
            return "<br"
        if not closing and depth >= MAX_DEPTH:
            surplus += 1
            return "<br"
        depth = max(0, depth - 1) if closing else depth + 1
        return f"<{closing}{name}{attributes}"

    return _TAG.sub(bounded, markup)


def _blocks(root: LexborNode | None) -> Iterator[tuple[str, str]]:
    """Yield the name of the tag and the text of every visible block."""
    if root is None:
        return
    for _, pieces in groupby(_pieces(root), key=lambda piece: piece[0]):
        blocks, texts = zip(*pieces, strict=True)
        text = "".join(texts)
        if text.strip(" |\n"):
            yield blocks[0][1], _as_markdown(blocks[0][1], text)


def _pieces(root: LexborNode) -> Iterator[tuple[tuple[int, str], str]]:
    """Yield all visible strings, each with its block: a number and the name of its tag."""
    blocks: dict[int, tuple[int, str] | None] = {}  # of each element; None if it is invisible
    superscripts: dict[int, str] = {}
    for node in root.traverse(include_text=True):  # parents come first; without recursion, for deep nesting
        parent = node.parent
        above = parent.mem_id if parent is not None else 0
        block = blocks.get(above, (0, "body"))
        if block is None or node.is_comment_node:
            blocks[node.mem_id] = None
        elif node.is_text_node:
            text = node.text_content or ""
            text = text if block[1] == "pre" else re.sub(r"\s+", " ", text)
            yield block, _raised(superscripts.pop(above, ""), text)
        elif not _is_visible(node):
            blocks[node.mem_id] = None
        else:
            name = node.tag or ""
            opens = name in _WHOLE or (name in _CONTAINERS and block[1] not in _WHOLE)
            blocks[node.mem_id] = (node.mem_id, name) if opens else block
            raised = name if name in ("sup", "sub") else superscripts.pop(above, "")
            if raised:
                superscripts[node.mem_id] = raised
            if opens:
                yield (node.mem_id, name), ""  # the block above ends here, even if this one is empty
            elif name in _BREAKS or name in _CONTAINERS:
                yield block, _BREAKS.get(name, "\n")


def _raised(name: str, text: str) -> str:
    """Return the text of a superscript or subscript: 10^6, pump^1, x_i, but 1st and H2O."""
    if not text.strip() or not name or _ORDINAL.match(text):
        return text
    if name == "sub":
        return text if text.strip().isdigit() else f"_{text}"
    return text if text.startswith(("[", "(", "^")) else f"^{text}"


def _is_visible(node: LexborNode) -> bool:
    if node.tag in _INVISIBLE:
        return False
    if node.tag == "footer" and node.parent is not None and node.parent.tag == "body":
        text = node.text()
        if len(text) < MAX_NOTICE and "cookie" in text.lower():
            return False
    given = node.attributes
    if not given:
        return True
    if "hidden" in given or given.get("role") == "navigation" or _DISPLAY_NONE.search(given.get("style") or ""):
        return False
    if node.tag == "a":
        return not ((given.get("href") or "").startswith("#") and _SKIP_LINK.match(node.text()[:50]))
    return node.tag in ("body", "main", "html") or not any(
        _COOKIES.search(name) for name in f"{given.get('class') or ''} {given.get('id') or ''}".split()
    )


def _as_markdown(name: str, text: str) -> str:
    if name == "pre":
        ticks, code = "`" * max(3, _longest(r"`+", text) + 1), text.strip("\n")
        fence = "~~~" if len(ticks) > 3 and "~~~" not in text else ticks
        return f"{fence}\n{code}\n{fence}"
    if name in _WHOLE - {"li"}:
        line = " ".join(text.split())
        return f"{line} |" if name == "tr" else f"{'#' * int(name[1])} {line}"
    lines = "\n".join(filter(None, (" ".join(line.split()) for line in text.split("\n"))))
    return f"- {lines}" if name == "li" else lines


def _longest(pattern: str, text: str) -> int:
    return max((len(run) for run in re.findall(pattern, text)), default=0)


def _joined(blocks: Iterable[tuple[str, str]]) -> str:
    """Join blocks: list items and rows by newlines, all others by blank lines."""
    parts: list[str] = []
    above = ""
    for name, block in blocks:
        parts += [("\n" if name == above and name in ("li", "tr") else "\n\n") if parts else "", block]
        above = name
    return "".join(parts)
