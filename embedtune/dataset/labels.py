"""Labels follow the texts that they were given for when documents are read again and ids move."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedtune.text import text_hash

if TYPE_CHECKING:
    from embedtune.dataset.tables import RetrievalTables
    from embedtune.types import Chunk, ContextPart, Question

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Where texts are now.

    Attributes:
        hashes: The hashes of the texts of each chunk, by id.
        first: The first chunk that has a text, by the hash of the text.
    """

    hashes: Mapping[str, frozenset[str]]
    first: Mapping[str, str]

    @classmethod
    def of(cls, texts: Iterable[tuple[str, Iterable[str]]]) -> Places:
        """Return the places of the texts of chunks: pairs of an id and its texts, with and without context.

        Example:
            >>> Places.of([("a#0", ["press both"])]).place_of("a#7", text_hash("press both"))
            'a#0'
        """
        hashes = {chunk: frozenset(map(text_hash, forms)) for chunk, forms in texts}
        first: dict[str, str] = {}
        for chunk, own in hashes.items():
            for one in own:
                first.setdefault(one, chunk)
        return cls(hashes, first)

    def place_of(self, chunk: str, digest: str) -> str | None:
        """Return the id at which the text of a label is now, its own if it is still there, or None."""
        return chunk if digest in self.hashes.get(chunk, ()) else self.first.get(digest)

    def follow(self, question: Question) -> Question | None:
        """Return a question with the ids that the texts of its labels have now, or None if one is gone.

        Labels without a hash are taken as they are.
        """
        labels = question.labels
        moved = {self.place_of(chunk, digest) if digest else chunk: digest for chunk, digest in labels.items()}
        gone = None in moved
        return None if gone else question.with_labels({chunk: digest for chunk, digest in moved.items() if chunk})


def places_in(data: RetrievalTables) -> Places:
    """Return the places of the texts of a dataset's chunks, with and without their context."""
    corpus = data.corpus
    if not {"start", "end"} <= set(corpus.column_names):
        return Places.of((chunk, [text]) for chunk, text in data.corpus_texts.items())
    sizes = [end - start for start, end in zip(corpus["start"][:], corpus["end"][:], strict=True)]
    return Places.of(
        (chunk, [text, text[max(len(text) - size, 0) :]])
        for (chunk, text), size in zip(data.corpus_texts.items(), sizes, strict=True)
    )


def follow_texts(
    questions: Sequence[Question], chunks: Sequence[Chunk], context: Sequence[ContextPart]
) -> Sequence[Question]:
    """Return the questions with the ids that their labels' texts have now; those whose text is gone are counted in a warning."""
    if not any(question.chunk_hashes for question in questions):
        return questions
    places = Places.of((chunk.id, (chunk.text, chunk.text_with(context))) for chunk in chunks)
    followed = [(one, places.follow(one)) for one in questions]
    kept = [now for _, now in followed if now is not None]
    num_moved = sum(now is not None and now.chunk_ids != before.chunk_ids for before, now in followed)
    if num_moved or len(kept) < len(questions):
        logger.warning(
            "The documents have changed since the questions were labelled: %d of %d questions were moved to the chunk that has "
            "their text now, and %d were set aside, because it is gone.",
            num_moved,
            len(questions),
            len(questions) - len(kept),
        )
    return kept
