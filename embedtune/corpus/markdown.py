"""Finds the structure of a Markdown text in one pass: visible lines, headings, fenced code and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_INDENT = 3  # spaces before a heading; more make it code
MAX_HEADING = 300  # characters; a longer one is a paragraph that begins with "#"

_LINE = re.compile(r"^[^\S\n]*(\S.*)$", re.MULTILINE)
_ATX = re.compile(r"(#{1,6})(?=\s|$)")
_SETEXT = re.compile(r"(?:={3,}|-{3,})$")
_FENCE = re.compile(r"`{3,}(?=[^`]*$)|~{3,}")
_MARKER = re.compile(r"[-*+•]\s|\d{1,9}[.)]\s|[|>]")


@dataclass(frozen=True, slots=True)
class Line:
    """A visible line.

    Attributes:
        start: Offset of its first visible character.
        end: Offset after its last character.
        text: The text between, without white space at the end.
        indent: White space before it, in characters.
        after_blank: Whether a blank line, or nothing, is above it.
        is_code: Whether it belongs to a fenced block.
    """

    start: int
    end: int
    text: str
    indent: int
    after_blank: bool
    is_code: bool

    @property
    def is_row(self) -> bool:
        """Whether it is a row of a table."""
        return not self.is_code and self.text.startswith("|")

    @property
    def is_item(self) -> bool:
        """Whether it opens a list item or a row, or continues a quotation."""
        return not self.is_code and _MARKER.match(self.text) is not None


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading: from ``start`` to ``end``, of a level from 1 to 6."""

    start: int
    end: int
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Outline:
    """The structure of a text; fences and tables are ``(start, end)`` offsets."""

    lines: list[Line]
    headings: list[Heading]
    fences: list[tuple[int, int]]
    tables: list[tuple[int, int]]


def outline(text: str) -> Outline:
    r"""Find the structure of a Markdown text; plain text has none.

    Example:
        >>> [(heading.level, heading.text) for heading in outline("# Pump\n\nReset\n-----\nPress both.").headings]
        [(1, 'Pump'), (2, 'Reset')]
    """
    lines, fences = _lines(text)
    return Outline(lines=lines, headings=_headings(lines), fences=fences, tables=_tables(lines))


def _lines(text: str) -> tuple[list[Line], list[tuple[int, int]]]:
    """Return the visible lines and the fenced blocks; a fence that is never closed runs to the end."""
    lines: list[Line] = []
    fences: list[tuple[int, int]] = []
    marker, opened, newline_above = "", 0, -2
    for match in _LINE.finditer(text):
        visible = match[1].rstrip()
        fence = _FENCE.match(visible) if visible[0] in "`~" else None
        opens = fence is not None and not marker
        closes = fence is not None and marker and fence[0].startswith(marker) and fence.end() == len(visible)
        if fence and opens:
            marker, opened = fence[0], match.start(1)
        indent = match.start(1) - match.start()
        lines.append(
            Line(match.start(1), match.end(), visible, indent, match.start() != newline_above + 1, bool(marker))
        )
        newline_above = match.end()
        if closes:
            fences.append((opened, match.end()))
            marker = ""
    if marker:
        fences.append((opened, len(text)))
    return lines, fences


def _headings(lines: list[Line]) -> list[Heading]:
    headings = []
    for number, line in enumerate(lines):
        if line.is_code or line.indent > MAX_INDENT or len(line.text) > MAX_HEADING:
            continue
        if atx := _ATX.match(line.text):
            headings.append(Heading(line.start, line.end, len(atx[1]), _without_closing(line.text[atx.end() :])))
        elif _SETEXT.match(line.text) and _is_underlined(lines, number):
            title = lines[number - 1]
            headings.append(Heading(title.start, line.end, 1 if line.text[0] == "=" else 2, title.text))
    return headings


def _tables(lines: list[Line]) -> list[tuple[int, int]]:
    tables: list[tuple[int, int]] = []
    end_above = -1
    for line in lines:
        if line.is_row:
            goes_on = not line.after_blank and tables and tables[-1][1] == end_above
            start = tables.pop()[0] if goes_on else line.start
            tables.append((start, line.end))
        end_above = line.end
    return tables


def _without_closing(text: str) -> str:
    """Strip the ``#`` signs that may close a heading, but not those of a last word such as "C#"."""
    opened = text.rstrip("#")
    return (opened if not opened or opened[-1].isspace() else text).strip()


def _is_underlined(lines: list[Line], number: int) -> bool:
    """Whether a row of dashes or equals signs directly follows a paragraph of one line."""
    if number == 0 or lines[number].after_blank:
        return False
    title = lines[number - 1]
    opens = title.after_blank or _ATX.match(lines[number - 2].text) is not None
    return opens and not title.is_code and not title.is_item and not _ATX.match(title.text)
