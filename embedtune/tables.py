"""Small tables, as aligned text for a terminal and as escaped HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, ClassVar, TypeAlias, TypeVar

Row: TypeAlias = Sequence[str]
T = TypeVar("T")

_MAX_ROWS = 20
_MAX_TEXT = 200


class Listing(list[T]):
    """A list that a notebook shows as a table of its first rows. A subclass says what a row holds."""

    header: ClassVar[Row] = ()

    @staticmethod
    def row(one: Any) -> Row:
        """Return the cells of one element, as many as ``header`` has."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        rest = f"<p>and {len(self) - _MAX_ROWS:,} more</p>" if len(self) > _MAX_ROWS else ""
        return html_table(self.header, [self.row(one) for one in self[:_MAX_ROWS]], texts=True) + rest


def excerpt(text: str) -> str:
    """Return the beginning of a text, for a cell."""
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."


def text_table(header: Row, rows: Sequence[Row]) -> str:
    """Return an aligned table, the first column to the left and all others to the right.

    Example:
        >>> print(text_table(["metric", "before"], [["mrr@10", "0.5"]]))
        metric  before
        mrr@10     0.5
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in [header, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)


def html_table(header: Row, rows: Sequence[Row], *, texts: bool = False) -> str:
    """Return a table in HTML, with every cell escaped.

    Args:
        header: The columns' names.
        rows: The cells.
        texts: Whether the columns hold texts, which are aligned left and keep their line breaks, instead of a first
            column of names followed by numbers. (Notebooks align everything right.)

    Example:
        >>> html_table(["metric", "value"], [["a < b", "0.5"]])
        '<table><thead><tr><th style="text-align:left">metric</th><th>value</th></tr></thead><tbody><tr><td style="text-align:left">a &lt; b</td><td>0.5</td></tr></tbody></table>'
    """
    body = "".join(f"<tr>{_cells(row, 'td', texts=texts)}</tr>" for row in rows)
    return f"<table><thead><tr>{_cells(header, 'th', texts=texts)}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: Row, tag: str, *, texts: bool) -> str:
    first, other = ' style="text-align:left"', ""
    if texts:
        first = other = ' style="text-align:left;white-space:pre-wrap"'
    return "".join(f"<{tag}{other if i else first}>{escape(cell)}</{tag}>" for i, cell in enumerate(row))


def signed(value: float) -> str:
    """Return a difference with its sign and three digits.

    Example:
        >>> signed(-0.0), signed(0.0521)
        ('+0.000', '+0.052')
    """
    return f"{round(value, 3) + 0.0:+.3f}"  # adding zero makes -0.0 positive
