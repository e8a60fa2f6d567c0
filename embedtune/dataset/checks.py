"""Checks of the records that `build_dataset` is given."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from embedtune.dataset.splits import SPLIT_BY
from embedtune.text import storage_problem
from embedtune.types import CONTEXT_PARTS, Chunk, Question

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence


def check_records(chunks: Sequence[Chunk], questions: Sequence[Question]) -> None:
    """Raise unless chunks and questions are complete, have unique ids and fit together."""
    if len(chunks) < 2:
        raise ValueError(
            f"{len(chunks)} chunks: retrieval needs at least 2. Read more documents, or make smaller chunks."
        )
    if not questions:
        raise ValueError("There are no questions. Make some with generate_questions(...).")
    for what, records in (("chunk", chunks), ("question", questions)):
        _check_unique(f"{what} id", [record.id for record in records])
        if empty := [record.id for record in records if not record.text.strip()]:
            raise ValueError(f"The text of {what} {empty[0]!r} is empty ({len(empty)} in total). Remove it.")
        for record in records:
            if problem := storage_problem(record.text):
                raise ValueError(f"The text of {what} {record.id!r} has {problem}, which no file can hold. Replace it.")
    _check_offsets(chunks)
    known = {chunk.id for chunk in chunks}
    for question in questions:
        if not question.chunk_ids:
            raise ValueError(
                f"Question {question.id!r} names no relevant chunk. Name one in chunk_ids, or remove the question."
            )
        if unknown := [chunk_id for chunk_id in question.chunk_ids if chunk_id not in known]:
            raise ValueError(
                f"Question {question.id!r} names chunk {unknown[0]!r}, which is not among the {len(known)} chunks. Pass "
                "the chunks that the questions were made from."
            )
        _check_unique(f"chunk id of question {question.id!r}", question.chunk_ids)


def check_choices(split_by: str, context: Sequence[str], questions: Sequence[Question]) -> None:
    """Raise a ``ValueError`` if ``split_by`` or ``context`` is unknown or does not fit the questions."""
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by={split_by!r} is unknown. Choose one of {SPLIT_BY}.")
    if isinstance(context, str) or not set(context) <= set(CONTEXT_PARTS):
        raise ValueError(f"context={context!r} must be a list with some of {CONTEXT_PARTS}.")
    if split_by != "given" and (bound := [question.id for question in questions if question.split]):
        raise ValueError(
            f"Question {bound[0]!r} has a split ({len(bound)} questions do). Keep these splits with split_by='given', or "
            "clear Question.split to draw new ones."
        )


def check_types(chunks: Sequence[object], questions: Sequence[object]) -> None:
    """Raise a ``TypeError`` unless they are chunks and questions, and a ``ValueError`` if some of a question's hashes are missing."""
    for what, records, kind, remedy in (
        ("chunks", chunks, Chunk, "Make them with chunk_documents(...)"),
        ("questions", questions, Question, "Make them with generate_questions(...)"),
    ):
        for position, record in enumerate(records):
            if not isinstance(record, kind):
                raise TypeError(
                    f"{what}[{position}] is a {type(record).__name__}, not a {kind.__name__}. {remedy}, or pass pairs of texts "
                    "to RetrievalDataset.from_pairs(...)."
                )
            if isinstance(record, (Chunk, Question)) and not isinstance(record.text, str):
                raise TypeError(
                    f"The text of {what}[{position}] ({record.id!r}) is {record.text!r:.80}. Give a string, or remove it."
                )
            if isinstance(record, Question) and isinstance(record.chunk_ids, str):  # each letter would be an id
                raise TypeError(
                    f"Question {record.id!r} has chunk_ids={record.chunk_ids!r}, a string. Pass a tuple: "
                    f"({record.chunk_ids!r},)."
                )
            if isinstance(record, Question) and len(record.chunk_hashes) not in (0, len(record.chunk_ids)):
                raise ValueError(
                    f"Question {record.id!r} has {len(record.chunk_hashes)} chunk_hashes for {len(record.chunk_ids)} chunk_ids. Give "
                    "one for each, an empty string where the text is not known, or leave them out."
                )


def _check_offsets(chunks: Sequence[Chunk]) -> None:
    """Raise a ``ValueError`` if the offsets of chunks do not fit their texts: overlapping chunks are never negatives."""
    by_document: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        if chunk.end - chunk.start != len(chunk.text):
            raise ValueError(
                f"Chunk {chunk.id!r} has {len(chunk.text)} characters, but its offsets {chunk.start} to {chunk.end} say "
                f"{chunk.end - chunk.start}. text must be document.text[start:end]."
            )
        by_document.setdefault(chunk.document_id, []).append(chunk)
    for together in by_document.values():
        together.sort(key=lambda chunk: chunk.start)
        for first, second in pairwise(together):
            shared = min(first.end, second.end) - second.start
            if shared > 0 and first.text[second.start - first.start :][:shared] != second.text[:shared]:
                raise ValueError(
                    f"Chunks {first.id!r} and {second.id!r} overlap by their offsets in document {first.document_id!r}, but "
                    "their texts differ there. Correct the offsets, or give each chunk its own document_id."
                )


def _check_unique(what: str, values: Iterable[Hashable]) -> None:
    if repeated := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(
            f"The {what} {repeated[0]!r} is not unique ({len(repeated)} such ids). Rename or remove the duplicates."
        )
