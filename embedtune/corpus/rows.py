"""Makes documents of rows: lines of JSON, rows of a table or a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from embedtune.corpus.problems import UnreadableError
from embedtune.text import storage_problem
from embedtune.types import Document

QUESTION_COLUMNS = ("question", "questions", "frage", "fragen", "pregunta", "domanda", "вопрос", "質問", "问题")


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a row's columns; None means the default name, and that the column is optional.

    Attributes:
        text: One name, several, or None for ``"text"``.
        id: The column with the id.
        title: The column with the title.
        keywords: The column with the keywords.
        questions: The column with questions that the row answers.
        all_if_no_text: Whether a row without ``"text"`` is the text of all its columns, as the row of a table is.
    """

    text: str | tuple[str, ...] | None = None
    id: str | None = None
    title: str | None = None
    keywords: str | None = None
    questions: str | None = None
    all_if_no_text: bool = False


def document_from_row(row: Mapping[str, Any], columns: Columns, *, where: str, default_id: str) -> Document:
    r"""Make a document of a row.

    Args:
        row: The columns and their values.
        columns: Which of them to read.
        where: The place of the row, for messages.
        default_id: The id of a row without one.

    Raises:
        UnreadableError: If a column is missing or has a wrong type.

    Example:
        >>> document_from_row({"text": "Press both.", "keywords": "pump, reset"}, Columns(), where="row 0", default_id="0").keywords
        ('pump', 'reset')
        >>> row = {"part": "valve", "price": 4, "id": "v1"}
        >>> document_from_row(row, Columns(all_if_no_text=True), where="row 0", default_id="0").text
        'part: valve\nprice: 4'
    """
    text = _text(row, columns, where)
    title_column, title = _optional(row, columns.title, "title", where=where)
    keywords_column, keywords = _optional(row, columns.keywords, "keywords", where=where)
    asked = row.get(columns.questions) if columns.questions is not None else None
    return Document(
        id=_id(row, columns.id, where=where, default_id=default_id),
        text=text.replace("\r\n", "\n").replace("\r", "\n"),
        title=" ".join(_string(title, title_column, where).split()) if title is not None else "",
        keywords=_keywords(keywords, keywords_column, where),
        questions=tuple(_strings([asked] if isinstance(asked, str) else asked, columns.questions or "", where)),
    )


def _text(row: Mapping[str, Any], columns: Columns, where: str) -> str:
    """Return the text of one column, or several as lines with their names."""
    if isinstance(columns.text, tuple):
        names: tuple[str, ...] = columns.text
    elif columns.text is None and "text" not in row and columns.all_if_no_text:
        others = {columns.questions, columns.id or "id", columns.title or "title", columns.keywords or "keywords"}
        names = tuple(name for name in row if name not in others) or tuple(row)
    else:
        name = columns.text or "text"
        if name not in row:
            raise _missing(name, row, where=where, parameter="text_column")
        text = _string(row[name], name, where)
        if not text.strip():
            raise UnreadableError("empty", f"{where}: {name!r} is empty. Remove the row, or leave it out.")
        return text
    if missing := [name for name in names if name not in row]:
        raise _missing(missing[0], row, where=where, parameter="text_column")
    filled = {name: str(row[name]).strip() for name in names if row[name] is not None and str(row[name]).strip()}
    if not filled:
        raise UnreadableError(
            "empty", f"{where}: {', '.join(map(repr, names))} are empty. Remove the row, or leave it out."
        )
    return "\n".join(_string(f"{name}: {value}", name, where) for name, value in filled.items())


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
    return tuple(_strings(value.split(",") if isinstance(value, str) else value, column, where))


def _strings(values: Any, column: str, where: str) -> list[str]:
    """Return strings with single spaces, without those that are empty."""
    if values is None:
        return []
    if not isinstance(values, Iterable) or isinstance(values, Mapping):
        raise UnreadableError(
            "of a wrong type", f"{where}: {column!r} is {shown(values)}; a list of strings is expected."
        )
    strings = (" ".join(_string(value, column, where).split()) for value in values)
    return [string for string in strings if string]


def _string(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise UnreadableError("of a wrong type", f"{where}: {column!r} is {shown(value)}; a string is expected.")
    if problem := storage_problem(value):
        raise UnreadableError(
            "that no file can hold", f"{where}: {column!r} has {problem}, which no file can hold. Replace it."
        )
    return value


def shown(value: Any) -> str:
    """Return the type of a value, and the value if it cannot be text of a document."""
    if value is None:
        return "None"
    return f"{value} ({type(value).__name__})" if isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _missing(column: str, row: Mapping[str, Any], *, where: str, parameter: str) -> UnreadableError:
    columns = ", ".join(map(repr, row)) or "none"
    message = f"{where} has no column {column!r}. It has {columns}; choose one of them with {parameter}=..."
    return UnreadableError("without the column", message)
