"""The handbook of an invented company, with questions of its employees and customers, for examples and tests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embedtune.bounds import whole
from embedtune.corpus.documents import read_documents
from embedtune.text import text_hash
from embedtune.types import Chunk, Document, Question

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class SampleQuestion:
    """A question and the passages that answer it.

    Attributes:
        text: The question.
        evidence: Pairs of a document's id and a quotation from it; each answers the question on its own.
        style: ``"literal"``, ``"paraphrase"``, ``"vague"`` or ``"keyword"``.
    """

    text: str
    evidence: tuple[tuple[str, str], ...]
    style: str


@dataclass(frozen=True, slots=True)
class Sample:
    """The sample documents and questions, see `load_sample`.

    Attributes:
        documents: The handbook's documents.
        questions: The questions, with passages instead of chunks.
    """

    documents: list[Document]
    questions: list[SampleQuestion]

    def __repr__(self) -> str:
        return f"Sample: {len(self.documents):,} documents, {len(self.questions):,} questions"

    def questions_for(self, chunks: Sequence[Chunk]) -> list[Question]:
        """Return the questions with the chunks that contain their answers.

        Args:
            chunks: Chunks of `documents`, of any size. Every chunk with the whole passage is relevant; if the passage was
                cut, the chunk with most of it.

        Raises:
            ValueError: If no chunk contains a passage.
        """
        texts = {document.id: document.text for document in self.documents}
        hashes = {chunk.id: text_hash(chunk.text) for chunk in chunks}
        asked: Counter[str] = Counter()
        questions = []
        for question in self.questions:
            found = [
                chunk_id
                for document_id, quote in question.evidence
                for chunk_id in _holders(chunks, document_id, texts[document_id].index(quote), len(quote))
            ]
            identifier = f"{found[0]}/{asked[found[0]]}"
            asked[found[0]] += 1
            labels = {chunk: hashes[chunk] for chunk in found}
            questions.append(Question(identifier, question.text, (), style=question.style).with_labels(labels))
        return questions


def load_sample(*, num_documents: int | None = None) -> Sample:
    """Load the handbook of Fennholt, an invented maker of cold stores, and the questions that its employees and customers ask.

    The texts were written for embedtune and are in the public domain (CC0 1.0).

    Args:
        num_documents: Load only the first documents, and the questions that they answer; all by default.

    Example:
        >>> sample = load_sample()
        >>> "sled-exchange.md" in {document.id for document in sample.documents}
        True
    """
    if num_documents is not None:
        whole("num_documents", num_documents)
    documents = read_documents(_FOLDER / "handbook")[:num_documents]
    known = {document.id for document in documents}
    rows = map(json.loads, (_FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines())
    questions = [
        SampleQuestion(
            row["question"], tuple((entry["document"], entry["quote"]) for entry in row["evidence"]), row["style"]
        )
        for row in rows
    ]
    return Sample(documents, [q for q in questions if all(document in known for document, _ in q.evidence)])


def _holders(chunks: Sequence[Chunk], document_id: str, start: int, length: int) -> list[str]:
    """Return the chunks that contain most of a passage: all of it, if any does."""
    shares = {
        chunk.id: min(chunk.end, start + length) - max(chunk.start, start)
        for chunk in chunks
        if chunk.document_id == document_id
    }
    most = max(shares.values(), default=0)
    if most <= 0:
        raise ValueError(
            f"No chunk contains the passage of {document_id!r} at offset {start}. Pass chunks of sample.documents."
        )
    return [chunk_id for chunk_id, share in shares.items() if share == most]
