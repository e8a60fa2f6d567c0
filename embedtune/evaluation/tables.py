"""Small tables, as aligned text for a terminal and as escaped HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TypeAlias

Row: TypeAlias = Sequence[str]


def text_table(header: Row, rows: Sequence[Row]) -> str:
    """Align columns, the first to the left and all others to the right.

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


def html_table(header: Row, rows: Sequence[Row]) -> str:
    """Write a table in HTML, with every cell escaped.

    Example:
        >>> html_table(["metric"], [["a < b"]])
        '<table><thead><tr><th>metric</th></tr></thead><tbody><tr><td>a &lt; b</td></tr></tbody></table>'
    """
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{_cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: Row, tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)


def signed(value: float) -> str:
    """Write a difference with its sign and three digits.

    Example:
        >>> signed(-0.0), signed(0.0521)
        ('+0.000', '+0.052')
    """
    return f"{round(value, 3) + 0.0:+.3f}"  # adding zero makes -0.0 positive
