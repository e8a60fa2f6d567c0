"""Reads formats that are text: Markdown, reStructuredText, HTML, notebooks, and tables and JSON by rows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedtune.corpus.markdown import outline
from embedtune.corpus.problems import UnreadableError, one_line
from embedtune.corpus.rows import shown
from embedtune.corpus.webpages import read_page

MAX_MARKUP = 16 * 2**20  # characters of one page; a browser's tree takes up to a hundred times as much memory

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"[a-z_][\w-]*$")
_USUAL_FIELD = re.compile(
    r"(?:title|keywords|tags|date|authors?|layout|description|id|slug|categor(?:y|ies)|draft|summary|lang)$", re.I
)
_UNDERLINE = re.compile(r"([=\-`:'\"~^_*+#<>.])\1{2,}$")


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: its text, page by page where the format has pages."""

    pages: tuple[str, ...]
    title: str = ""
    keywords: Any = None
    has_page_numbers: bool = False


def read_text(text: str, file: Path) -> Content:
    """Return the content of a text in a format that its extension names."""
    read: dict[str, Callable[[str, Path], Content]] = {
        ".md": _markdown, ".markdown": _markdown, ".html": _html, ".htm": _html, ".xhtml": _html, ".rst": _rst, ".ipynb": _notebook,
    }  # fmt: skip
    reader = read.get(file.suffix.lower())
    return Content((text,)) if reader is None else reader(text, file)


def first_heading(text: str) -> str:
    """Return the first heading of level 1, or an empty string."""
    return next((heading.text for heading in outline(text).headings if heading.level == 1), "")


def page_of_html(markup: str, shown_name: str) -> Content:
    """Return the content of a page of HTML.

    Raises:
        UnreadableError: If it is too long.
    """
    if len(markup) > MAX_MARKUP:
        raise UnreadableError(
            "too large", f"{shown_name} has {len(markup):,} characters of HTML, more than {MAX_MARKUP:,}. Split it."
        )
    page = read_page(markup)
    return Content((page.text,), page.title or first_heading(page.text), page.keywords)


def _html(text: str, file: Path) -> Content:
    fields, body = _front_matter(text, file)
    content = page_of_html(body, one_line(file))
    return replace(
        content, title=fields.get("title") or content.title, keywords=fields.get("keywords") or content.keywords
    )


def _markdown(text: str, file: Path) -> Content:
    fields, body = _front_matter(text, file)
    return Content((body,), fields.get("title") or first_heading(body), fields.get("keywords"))


def _front_matter(text: str, file: Path) -> tuple[dict[str, Any], str]:
    """Split off the YAML between two ``---`` lines; anything else between two rules is text."""
    import yaml

    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        fields = yaml.load(match[1], Loader=yaml.BaseLoader)  # all scalars are strings: a title may be 2024 or "No"
    except (yaml.YAMLError, RecursionError) as err:
        if not _USUAL_FIELD.match(match[1].partition(":")[0]):
            return {}, text
        mark = getattr(err, "problem_mark", None)
        line = f" at line {mark.line + 2}" if mark else ""
        raise UnreadableError(
            "with broken front matter",
            f"{one_line(file)} has front matter, between --- lines, that is not valid YAML{line}. Correct it.",
        ) from err
    if not match[1].strip():
        return {}, text[match.end() :]
    if not isinstance(fields, dict) or not _are_fields([str(name) for name in fields]):
        return {}, text
    return {name: value for name, value in fields.items() if value not in ("null", "~", "")}, text[match.end() :]


def _are_fields(names: list[str]) -> bool:
    """Whether the keys are those of front matter rather than the words before a colon."""
    return any(map(_USUAL_FIELD.match, names)) or all(map(_FIELD.match, names))


def _rst(text: str, _: Path) -> Content:
    """Turn the headings of reStructuredText into those of Markdown; all else is readable as it is."""
    lines = text.split("\n")
    levels: dict[str, int] = {}
    for number in range(1, len(lines)):
        title, rule = lines[number - 1], lines[number].rstrip()
        underline = _UNDERLINE.match(rule)
        if (
            underline is None
            or not title.strip()
            or title[0].isspace()
            or len(rule) < len(title.rstrip())
            or title.rstrip() == rule
        ):
            continue
        if _UNDERLINE.match(title.rstrip()):
            continue
        above = lines[number - 2].rstrip() if number > 1 else ""
        style = underline[1] + ("over" if above == rule else "")
        level = levels.setdefault(style, min(len(levels) + 1, 6))
        lines[number - 1 : number + 1] = [f"{'#' * level} {title.strip()}", ""]
        if above == rule:
            lines[number - 2] = ""
    text = "\n".join(lines)
    return Content((text,), first_heading(text))


def _notebook(text: str, file: Path) -> Content:
    """Return the Markdown and the code of a Jupyter notebook, without its outputs."""
    try:
        notebook = json.loads(text)
        sources = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise UnreadableError(
            "broken", f"{one_line(file)} is not a Jupyter notebook of version 4. Open and save it in Jupyter."
        ) from err
    cells = [f"```\n{source}\n```" if kind == "code" else source for kind, source in sources if source.strip()]
    text = "\n\n".join(cells)
    return Content((text,), first_heading(text))


def json_lines(text: str, where: str) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Yield the number of each line that is not blank, and a function that reads it."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split at U+2028 in a string
        if line.strip():
            yield number, lambda line=line, number=number: _json_object(line, f"{where}, line {number}")  # type: ignore[misc]


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as err:
        raise UnreadableError("not valid JSON", f"{where}, column {err.colno}: this is not JSON: {err.msg}.") from err
    except (ValueError, RecursionError) as err:  # a number of too many digits, brackets nested too deeply
        raise UnreadableError("not valid JSON", f"{where}: this JSON cannot be read ({type(err).__name__}).") from err
    if not isinstance(row, dict):
        raise UnreadableError(
            "not valid JSON", f'{where} is {shown(row)}; an object such as {{"text": "..."}} is expected.'
        )
    return row


def table_rows(text: str, where: str, *, separator: str = "") -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Yield the number of each row of a CSV table, from 1, and a function that reads it by the names in the first row.

    Args:
        text: The table.
        where: Its file, for messages.
        separator: What separates columns; by default the one of ``, ; | tab`` that the first row has most of.
    """
    first = text[: text.find("\n") + 1 or len(text)]
    separator = separator or max(",;\t|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names = [name.strip() for name in next(reader, [])]
    if len(set(names)) < len(names):
        names = [name if names.index(name) == place else f"{name} {place + 1}" for place, name in enumerate(names)]
    number = 0
    while True:
        number += 1
        try:
            values = next(reader, None)
        except csv.Error as err:
            raise UnreadableError("not a table", f"{where}, row {number}: {err}. The rows above were read.") from err
        if values is None:
            return
        if any(value.strip() for value in values):
            yield number, lambda values=values, number=number: _named(names, values, f"{where}, row {number}")  # type: ignore[misc]


def _named(names: list[str], values: list[str], where: str) -> dict[str, Any]:
    if len(values) > len(names):
        raise UnreadableError(
            "not a table",
            f"{where} has {len(values)} columns, but the first row names {len(names)}. Quote what holds a separator.",
        )
    return {name: value or None for name, value in zip(names, values, strict=False)}
