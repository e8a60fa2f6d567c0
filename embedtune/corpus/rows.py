"""Makes documents of rows: lines of JSON, rows of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from embedtune.text import storage_problem
from embedtune.types import Document


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a row's columns; None means the default name, and that the column is optional."""

    text: str = "text"
    id: str | None = None
    title: str | None = None
    keywords: str | None = None


def document_from_row(row: Mapping[str, Any], columns: Columns, *, where: str, default_id: str) -> Document:
    """Make a document of a row.

    Args:
        row: The columns and their values.
        columns: Which of them to read.
        where: The place of the row, for messages.
        default_id: The id of a row without one.

    Raises:
        ValueError: If a column is missing or has a wrong type.

    Example:
        >>> document_from_row({"text": "Press both.", "keywords": "pump, reset"}, Columns(), where="row 0", default_id="0")
        Document(id='0', text='Press both.', title='', keywords=('pump', 'reset'))
    """
    if columns.text not in row:
        raise _missing(columns.text, row, where=where, parameter="text_column")
    text = _string(row[columns.text], columns.text, where)
    if not text.strip():
        raise ValueError(f"{where}: {columns.text!r} is empty. Remove the row, or pass on_error='skip'.")
    title_column, title = _optional(row, columns.title, "title", where=where)
    keywords_column, keywords = _optional(row, columns.keywords, "keywords", where=where)
    return Document(
        id=_id(row, columns.id, where=where, default_id=default_id),
        text=text.replace("\r\n", "\n").replace("\r", "\n"),
        title=" ".join(_string(title, title_column, where).split()) if title is not None else "",
        keywords=_keywords(keywords, keywords_column, where),
    )


def _optional(row: Mapping[str, Any], column: str | None, default: str, *, where: str) -> tuple[str, Any]:
    """Return the column to read and its value; only a column that the user named must exist."""
    if column is None:
        return default, row.get(default)
    if column not in row:
        raise _missing(column, row, where=where, parameter=f"{default}_column")
    return column, row[column]


def _id(row: Mapping[str, Any], id_column: str | None, *, where: str, default_id: str) -> str:
    column, value = _optional(row, id_column, "id", where=where)
    if value is None and id_column is None:
        value = default_id
    identifier = str(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
    return _string(identifier, column, where) or default_id


def _keywords(value: Any, column: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ValueError(f"{where}: {column!r} is {shown(value)}; a list of strings is expected.")
    keywords = (" ".join(_string(keyword, column, where).split()) for keyword in value)
    return tuple(keyword for keyword in keywords if keyword)


def _string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column!r} is {shown(value)}; a string is expected.")
    if problem := storage_problem(value):
        raise ValueError(f"{where}: {column!r} has {problem}, which no file can hold. Replace it.")
    return value


def shown(value: Any) -> str:
    """Return the type of a value, and the value if it cannot be text of a document."""
    if value is None:
        return "None"
    return f"{value} ({type(value).__name__})" if isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _missing(column: str, row: Mapping[str, Any], *, where: str, parameter: str) -> ValueError:
    columns = ", ".join(map(repr, row)) or "none"
    return ValueError(f"{where} has no column {column!r}. It has {columns}; choose one of them with {parameter}=...")
