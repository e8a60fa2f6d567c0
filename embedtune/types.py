"""The records that the stages exchange, and the protocols that a user may implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ContextPart = Literal["title", "headings", "keywords", "description"]
"""What can be put before a chunk's text when it is embedded."""

CONTEXT_PARTS: tuple[ContextPart, ...] = ("title", "headings", "keywords", "description")

Role = Literal["query", "document"]
"""How a text is encoded: as a question, or as a chunk. It decides the prompt and, in some models, the route."""


@dataclass(frozen=True, slots=True)
class Document:
    """A source text.

    Attributes:
        id: Unique in its collection; the path relative to the folder it was read from.
        text: The whole text. Offsets of chunks point into it.
        title: The document's title, or an empty string.
        keywords: The document's keywords.
        page_starts: The offset at which each page or slide starts, ascending; empty if the format has no pages.
        questions: Questions that people asked and that the text answers, as a FAQ has them; see `questions_of`.
    """

    id: str
    text: str
    title: str = ""
    keywords: tuple[str, ...] = ()
    page_starts: tuple[int, ...] = ()
    questions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    r"""A span of a document: what is embedded, indexed and found.

    Attributes:
        id: ``"{document_id}#{position}"``, so that the same document gives the same ids again.
        document_id: The document it was cut from.
        text: Exactly ``document.text[start:end]``.
        start: Offset of the first character in the document.
        end: Offset after the last character in the document.
        headings: The headings above the span, outermost first.
        title: The document's title.
        keywords: The document's keywords.
        page: The page or slide on which the span starts, from 1; 0 if the format has no pages.
        description: A sentence or two that say where the chunk stands in its document, see `generate_descriptions`.

    Example:
        >>> chunk = Chunk("a.md#0", "a.md", "Press both.", 0, 11, headings=("Reset",), keywords=("pump",))
        >>> chunk.text_with(["keywords", "headings"])
        '#pump\nReset\nPress both.'
    """

    id: str
    document_id: str
    text: str
    start: int
    end: int
    headings: tuple[str, ...] = ()
    title: str = ""
    keywords: tuple[str, ...] = ()
    page: int = 0
    description: str = ""

    def text_with(self, context: Sequence[ContextPart] = ()) -> str:
        """Return the text to embed: one line for each part of the context, then the chunk's own text.

        Parts that the chunk does not have are left out.

        Args:
            context: Any of ``"title"``, ``"headings"`` (joined by ``" > "``), ``"keywords"`` (``#`` and a
                comma-separated list, as in "Fine-tuning Embeddings for RAG applications") and ``"description"`` (what
                a language model wrote about the chunk), in any order.
        """
        lines = {
            "title": self.title,
            "headings": " > ".join(self.headings),
            "keywords": f"#{', '.join(self.keywords)}" if self.keywords else "",
            "description": self.description,
        }
        return "\n".join([*(lines[part] for part in context if lines[part]), self.text])


def require_descriptions(chunks: Sequence[Chunk], context: Sequence[ContextPart]) -> None:
    """Raise a ``ValueError`` if descriptions are part of the context and no chunk has one."""
    if "description" in context and chunks and not any(chunk.description for chunk in chunks):
        raise ValueError(
            f"context={list(context)} has 'description', but none of the {len(chunks)} chunks has one. Call "
            f"generate_descriptions() first, or leave it out."
        )


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the chunks that answer it.

    Attributes:
        id: Unique in its collection; ``"{chunk_id}/{position}"`` if it was generated from a chunk.
        text: The question as a user would ask it.
        chunk_ids: Every relevant chunk: those that answer it on their own, or together if its style is ``"several"``. The
            one it was written for comes first.
        style: How it is asked, for instance ``"keyword"``, or an empty string.
        split: The split it belongs to, or an empty string to let ``build_dataset`` choose.
        answer: A short answer, or an empty string.
        model: The language model that wrote it, or an empty string.
        prompt_version: A short hash of the prompt that it was written with, or an empty string.
        chunk_hashes: The `text_hash` of each of ``chunk_ids``, of the text that it was named for: `build_dataset` finds the
            text again where ids have moved. Empty, or with empty strings, where it is not known.
    """

    id: str
    text: str
    chunk_ids: tuple[str, ...]
    style: str = ""
    split: str = ""
    answer: str = ""
    model: str = ""
    prompt_version: str = ""
    chunk_hashes: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """The hash of the text of each relevant chunk, by id; an empty string where it is not known."""
        return dict(zip(self.chunk_ids, self.chunk_hashes or ("",) * len(self.chunk_ids), strict=True))

    def with_labels(self, labels: Mapping[str, str]) -> Question:
        """Return the question with other `labels`."""
        hashes = tuple(labels.values())
        return replace(self, chunk_ids=tuple(labels), chunk_hashes=hashes if any(hashes) else ())


@runtime_checkable
class TokenCounter(Protocol):
    """Returns where tokens start; any object with this method can limit the size of chunks."""

    def token_starts(self, text: str) -> NDArray[np.int64]:
        """Return the character offset at which each token of ``text`` starts, ascending, of shape ``(num_tokens,)``.

        No special tokens, no truncation, no padding.
        """


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors. Queries and documents are separate because many models encode them differently."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector for each text, of shape ``(num_texts, dim)``."""

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector for each text, of shape ``(num_texts, dim)``."""


@runtime_checkable
class Ranker(Protocol):
    """Finds documents without vectors, as BM25 does."""

    def rank(
        self, queries: Sequence[str], documents: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return positions in ``documents`` and their scores, both of shape ``(num_queries, k)``, best first.

        A position of -1 means that fewer than ``k`` were found. Results mark a ranker whose attribute ``approximate`` is true.
        """
