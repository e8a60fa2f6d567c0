"""What a search returns: hits, with what vectors and words contributed to each score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from embedtune.tables import Listing, Row, excerpt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.index import ChunkIndex
    from embedtune.retrieval.parts import IndexParts
    from embedtune.retrieval.search import Ranking


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes:
        id: The chunk's id.
        score: ``similarity + words``, or the reranker's score if it has read the chunk.
        text: The text that was embedded.
        document_id: The document it is from.
        title: The document's title, or an empty string.
        headings: The headings above it.
        similarity: What the vectors contribute to the score: the similarity of question and chunk.
        words: What the words contribute.
        page: The page or slide on which it starts, from 1; 0 if the format has no pages.
    """

    id: str
    score: float
    text: str
    document_id: str = ""
    title: str = ""
    headings: tuple[str, ...] = ()
    similarity: float = 0.0
    words: float = 0.0
    page: int = 0


class Hits(Listing[Hit]):
    """The chunks that were found, best first, as a list that a notebook shows as a table."""

    header: ClassVar[Row] = ("score", "vectors", "words", "chunk", "text")

    @staticmethod
    def row(one: Hit) -> Row:
        """Return the cells of a hit."""
        place = " > ".join(one.headings) or one.title or one.id
        return f"{one.score:.2f}", f"{one.similarity:.2f}", f"{one.words:.2f}", place, excerpt(one.text)


def hits_of(
    index: IndexParts, ranking: Ranking, found: NDArray[np.float32], scores: NDArray[np.float32], *, alone: str
) -> list[list[Hit]]:
    """Return the chunks of a ranking with their similarities and final scores; positions of -1 are left out."""
    wanted = ranking.positions[ranking.positions >= 0]
    rows = dict(zip(wanted.tolist(), index.rows(wanted).to_pylist(), strict=True))
    by_vectors = np.zeros_like(ranking.scores) if alone == "words" else found
    by_words = np.zeros_like(ranking.scores) if alone == "vectors" else ranking.scores - by_vectors
    columns = ranking.positions.tolist(), scores.tolist(), by_vectors.tolist(), by_words.tolist()
    return [
        Hits(
            Hit(
                id=rows[position]["_id"],
                score=score,
                text=rows[position]["text"],
                document_id=rows[position]["document_id"],
                title=rows[position]["document_title"],
                headings=tuple(rows[position]["headings"]),
                similarity=similarity,
                words=max(words, 0.0),
                page=rows[position]["page"],
            )
            for position, score, similarity, words in zip(*one, strict=True)
            if position >= 0
        )
        for one in zip(*columns, strict=True)
    ]


def positions_of(
    index: ChunkIndex, hits: Sequence[Sequence[Hit]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the positions of hits in an index and their scores, both of shape ``(num_questions, k)``; -1 where there are fewer."""
    positions, scores = np.full((len(hits), k), -1), np.zeros((len(hits), k), dtype=np.float32)
    for row, found in enumerate(hits):
        positions[row, : len(found)] = [index.position_of[hit.id] for hit in found]
        scores[row, : len(found)] = [hit.score for hit in found]
    return positions, scores
