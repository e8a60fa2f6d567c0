"""Turns HTML into Markdown with headings, paragraphs, lists, tables and code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

_INVISIBLE = ["script", "style", "nav", "noscript", "template", "svg", "title", "[hidden]"]
_WHOLE = {"h1", "h2", "h3", "h4", "h5", "h6", "li", "pre", "tr"}  # no paragraph starts inside
_CONTAINERS = {
    "address", "article", "aside", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption",
    "figure", "footer", "form", "header", "hr", "html", "main", "ol", "p", "section", "summary", "table", "tbody",
    "tfoot", "thead", "ul",
}  # fmt: skip
_BREAKS = {"br": "\n", "td": " | ", "th": " | "}


@dataclass(frozen=True, slots=True)
class Page:
    """The title and the comma-separated keywords of a page, and its body as Markdown."""

    title: str
    keywords: str
    text: str


def read_page(markup: str) -> Page:
    r"""Read a page of HTML.

    Raises:
        ValueError: If the markup cannot be parsed.

    Example:
        >>> read_page("<title>Pump</title><h1>Reset</h1><p>Press <b>both</b><ul><li>red<li>green</ul>").text
        '# Reset\n\nPress both\n\n- red\n- green'
    """
    import bs4

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bs4.XMLParsedAsHTMLWarning)
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
        try:
            soup = bs4.BeautifulSoup(markup, "html.parser")
        except bs4.ParserRejectedMarkup as err:
            raise ValueError(f"not HTML that can be parsed: {err}. Repair it, or pass on_error='skip'.") from err
    title = soup.title.get_text() if soup.title else ""
    meta = soup.find("meta", attrs={"name": re.compile("^keywords$", re.IGNORECASE)})
    keywords = str(meta.get("content") or "") if meta else ""
    for tag in soup.select(",".join(_INVISIBLE)):
        tag.extract()
    return Page(" ".join(title.split()), keywords, _joined(_blocks(soup)))


def _blocks(soup: BeautifulSoup) -> Iterator[tuple[str, str]]:
    """Yield the name of the tag and the text of every visible block."""
    for _, pieces in groupby(_pieces(soup), key=lambda piece: id(piece[0])):
        tags, texts = zip(*pieces, strict=True)
        text = "".join(texts)
        if text.strip(" |\n"):
            yield tags[0].name, _as_markdown(tags[0].name, text)


def _pieces(soup: BeautifulSoup) -> Iterator[tuple[Tag, str]]:
    """Yield all visible strings, each with its block."""
    from bs4.element import CData, NavigableString, Tag

    block_of: dict[int, Tag] = {id(soup): soup}
    for node in soup.descendants:  # parents come first; without recursion, for deep nesting
        block = block_of[id(node.parent)]
        if isinstance(node, Tag):
            opens = node.name in _WHOLE or (node.name in _CONTAINERS and block.name not in _WHOLE)
            block_of[id(node)] = node if opens else block
            if not opens and (node.name in _BREAKS or node.name in _CONTAINERS):
                yield block, _BREAKS.get(node.name, "\n")
        elif type(node) in (NavigableString, CData):  # the subclasses are comments and the like
            text = str(node)
            yield block, text if block.name == "pre" else re.sub(r"\s+", " ", text)


def _as_markdown(name: str, text: str) -> str:
    if name == "pre":
        fence = "~~~" if "```" in text else "```"
        code = text.strip("\n")
        return f"{fence}\n{code}\n{fence}"
    if name in _WHOLE - {"li"}:
        line = " ".join(text.split())
        return f"{line} |" if name == "tr" else f"{'#' * int(name[1])} {line}"
    lines = "\n".join(filter(None, (" ".join(line.split()) for line in text.split("\n"))))
    return f"- {lines}" if name == "li" else lines


def _joined(blocks: Iterable[tuple[str, str]]) -> str:
    """Join blocks: list items and rows by newlines, all others by blank lines."""
    text, above = "", ""
    for name, block in blocks:
        separator = "\n" if name == above and name in ("li", "tr") else "\n\n"
        text += separator + block if text else block
        above = name
    return text
