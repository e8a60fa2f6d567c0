"""Makes chunks and questions of existing pairs and of LlamaIndex's datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.text import text_hash
from embedtune.types import Chunk, Question

if TYPE_CHECKING:
    from datasets import Dataset

Pair = tuple[str, "str | Sequence[str]"]
"""A chunk's text and one question about it, or several."""


def records_from_pairs(
    pairs: Iterable[Pair] | Dataset, *, chunk_column: str, question_column: str
) -> tuple[list[Chunk], list[Question]]:
    """Make a chunk, and a document, of each distinct chunk text, and a question of each row."""
    chunks: dict[str, Chunk] = {}
    questions: list[Question] = []
    asked: dict[str, int] = {}
    for chunk_text, question_text in _rows(pairs, chunk_column=chunk_column, question_column=question_column):
        chunk = chunks.get(chunk_text) or _chunk(chunk_text)
        chunks[chunk_text] = chunk
        position = asked.get(chunk.id, 0)
        asked[chunk.id] = position + 1
        questions.append(Question(f"{chunk.id}/{position}", question_text, (chunk.id,)))
    return list(chunks.values()), questions


def records_from_llama_index(path: str | Path) -> tuple[list[Chunk], list[Question]]:
    """Read the JSON of LlamaIndex's ``EmbeddingQAFinetuneDataset``; each node becomes a document."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}. Write it with save_json.") from error
    missing = [
        key for key in ("queries", "corpus", "relevant_docs") if not isinstance(content, dict) or key not in content
    ]
    if missing:
        raise ValueError(
            f"{path} has no {missing[0]!r}. An EmbeddingQAFinetuneDataset has 'queries', 'corpus' and 'relevant_docs'."
        )
    _require_llama_index(path, content)
    chunks = [Chunk(node, node, text, 0, len(text)) for node, text in content["corpus"].items()]
    questions = [
        Question(query, text, tuple(content["relevant_docs"].get(query, ())))
        for query, text in content["queries"].items()
    ]
    return chunks, questions


def _require_llama_index(path: str | Path, content: dict[str, Any]) -> None:
    """Raise a ``ValueError`` that names the entry which is not of the form that LlamaIndex writes."""
    for part, kind in (("corpus", str), ("queries", str), ("relevant_docs", list)):
        entries = content[part]
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: {part!r} is a {type(entries).__name__}, and an object of ids is expected.")
        for name, value in entries.items():
            if not isinstance(value, kind) or (kind is list and not all(isinstance(one, str) for one in value)):
                expected = "a text" if kind is str else "a list of ids"
                raise ValueError(
                    f"{path}: {name!r} in {part!r} is {value!r:.80}, and {expected} is expected. Correct or remove it."
                )


def _chunk(text: str) -> Chunk:
    """Name a chunk by its content, so that adding another pair neither renames it nor moves it to another split."""
    document = text_hash(text)
    return Chunk(f"{document}#0", document, text, 0, len(text))


def _rows(pairs: Iterable[Pair] | Dataset, *, chunk_column: str, question_column: str) -> Iterator[tuple[str, str]]:
    """Yield one checked (chunk, question) at a time."""
    column_names: list[str] | None = getattr(pairs, "column_names", None)
    if column_names is not None and not {chunk_column, question_column} <= set(column_names):
        raise ValueError(
            f"The dataset has the columns {column_names}, not {chunk_column!r} and {question_column!r}. Set "
            "chunk_column=... and question_column=..."
        )
    for row, pair in enumerate(pairs):
        chunk, asked = (pair[chunk_column], pair[question_column]) if isinstance(pair, dict) else _two(pair, row)
        for question in [asked] if isinstance(asked, str) or not isinstance(asked, Sequence) else asked:
            _require_text(chunk, row=row, column=chunk_column)
            _require_text(question, row=row, column=question_column)
            yield chunk, question


def _two(pair: Any, row: int) -> tuple[Any, Any]:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"Row {row} is not a (chunk, question) pair: {str(pair)[:80]!r}")
    return pair[0], pair[1]


def _require_text(value: Any, *, row: int, column: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"Row {row}, column {column!r}: {value!r} is a {type(value).__name__}; a string is expected.")
    if not value.strip():
        raise ValueError(f"Row {row}, column {column!r}: the text is empty. Remove the row.")
