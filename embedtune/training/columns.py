"""What the columns of a training table hold: checks of their contents, and the prompt and route of each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from sentence_transformers.base.modules import Router

from embedtune.dataset.columns import LABEL_COLUMNS, role_of
from embedtune.models.prompts import prompt_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

_ID_COLUMN = re.compile(r"(.*[_-])?(ids?|idx|index)", re.IGNORECASE)
_RENAME = 'dataset.rename_columns({"<column of questions>": "anchor", "<column of chunks>": "positive"})'


def tables_of(dataset: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield a name for messages and the table, for one table or for each of several."""
    if isinstance(dataset, Mapping):
        yield from ((f"{name}[{key!r}]", part) for key, part in dataset.items())
    elif dataset is not None:
        yield name, dataset


def is_transformed(table: Any) -> bool:
    """Return whether rows are made on reading (``with_transform``), so that the stored columns are not those of the rows."""
    return isinstance(table, Dataset) and table.format["type"] == "custom"


def columns_of(table: Any) -> list[str]:
    """Return the columns of a table's rows; a stream may not know its columns."""
    return list(table[0]) if is_transformed(table) and len(table) else list(table.column_names or ())


def text_columns(table: Any) -> list[str]:
    """Return the columns that are trained on as texts."""
    return [column for column in columns_of(table) if column not in (*LABEL_COLUMNS, "dataset_name")]


def check_table(dataset: Any, *, name: str) -> None:
    """Raise a ``ValueError`` for a table that is empty, or that sentence-transformers would misread or fail on.

    It tokenises every column that is not a label: an id would be trained on as a hard negative, and a list of two texts
    would be read as one pair.
    """
    for part, table in tables_of(dataset, name):
        if isinstance(table, Sized) and not len(table):
            raise ValueError(f"{part} has no rows. Add questions about its chunks, or choose a smaller test_size.")
        _check_names(table, part)
        if is_transformed(table):
            _check_first_row(table, part)
            continue
        for column, feature in (table.features or {}).items():
            if column in LABEL_COLUMNS:
                _check_lengths(table, column, part)
            elif column in text_columns(table) and getattr(feature, "dtype", None) not in ("string", "large_string"):
                raise _not_text(part, column, feature)
            _check_missing(table, column, part)


def _check_first_row(table: Dataset, part: str) -> None:
    row = table[0]
    for column in text_columns(table):
        if not isinstance(row[column], str):
            raise _not_text(part, column, f"{row[column]!r} in its first row")


def _not_text(part: str, column: str, found: Any) -> ValueError:
    return ValueError(
        f"{part}: column {column!r} holds {found}, and texts are expected. Turn it into texts, or give each of several negatives "
        "its own column: negative_1, negative_2, ..."
    )


def _check_names(table: Any, part: str) -> None:
    columns = text_columns(table)
    is_ours = any(map(role_of, columns))
    unexpected = [c for c in columns if _ID_COLUMN.fullmatch(c) or (is_ours and role_of(c) is None)]
    if unexpected:
        raise ValueError(
            f"{part} has the columns {columns_of(table)}, and {unexpected} would be trained on as texts. Use data.pairs(...), "
            "data.triplets(...) or data.labelled_pairs(...), or keep only anchor, positive, negative (negative_1, "
            "negative_2, ...) and label, with rename_columns and select_columns."
        )


def _check_missing(table: Any, column: str, part: str) -> None:
    if isinstance(table, Dataset) and table.data.column(column).null_count:
        row = next((i for i, value in enumerate(table.with_format(None)[column][:]) if value is None), None)
        if row is not None:
            raise ValueError(f"{part}: row {row} has no value in column {column!r}. Fill it in, or filter the row out.")


def _check_lengths(table: Any, column: str, part: str) -> None:
    if not isinstance(table, Dataset) or not hasattr(table.features[column], "feature"):
        return
    lengths = {len(value) for value in table.with_format(None)[column][:] if value is not None}
    if len(lengths) > 1:
        raise ValueError(
            f"{part}: the lists in column {column!r} have different lengths, {sorted(lengths)}. Ids of different datasets do "
            "not fit together: build one dataset, or train on a mapping of several."
        )


def fill_columns(args: SentenceTransformerTrainingArguments, model: SentenceTransformer, *datasets: Any) -> None:
    """Set the prompt and the route of each column of training and evaluation tables.

    Raises:
        ValueError: If it is not known what a column holds and the model encodes questions and chunks differently, or if
            ``args.prompts`` names a column that does not exist.
    """
    tables = [table for dataset in datasets for _, table in tables_of(dataset, "")]
    columns = list(dict.fromkeys(column for table in tables for column in text_columns(table)))
    names = {name for dataset in datasets if isinstance(dataset, Mapping) for name in dataset}
    prompts = {role: prompt_of(model, role) for role in ("query", "document")}
    args.prompts = (
        _filled(prompts, columns, "prompts") if args.prompts is None else _resolved(args.prompts, columns, names)
    )
    if not args.router_mapping and any(isinstance(module, Router) for module in model.children()):
        args.router_mapping = _filled({"query": "query", "document": "document"}, columns, "router_mapping")


def _filled(values: Mapping[str, str], columns: list[str], parameter: str) -> dict[str, str]:
    """Return the value of each column by what it holds; empty values are left out."""
    if values["query"] != values["document"] and (unknown := [c for c in columns if role_of(c) is None]):
        raise ValueError(
            f"Whether {unknown} hold questions or chunks is not known, and this model encodes them differently. Rename them, "
            f"{_RENAME}, or say it with TuningArguments({parameter}={{column: value, ...}})."
        )
    filled = {column: values[role_of(column) or "query"] for column in columns}
    return {column: value for column, value in filled.items() if value}


def _resolved(given: Any, columns: list[str], names: set[str]) -> Any:
    """Return the user's prompts by column; each key must be a column, a dataset, or "query" and "document"."""
    if isinstance(given, str) or not given:
        return given
    if set(given) <= {"query", "document"} and not set(given) <= set(columns):
        return _filled({"query": "", "document": ""} | given, columns, "prompts")
    if unknown := [
        key for key in given if key not in names and (key not in columns or isinstance(given[key], Mapping))
    ]:
        raise ValueError(
            f"prompts has the key {unknown[0]!r}, which is not a column. The columns are {columns}; "
            '{"query": ..., "document": ...} sets the prompts of questions and chunks.'
        )
    return {
        key: _resolved(value, columns, set()) if isinstance(value, Mapping) else value for key, value in given.items()
    }
