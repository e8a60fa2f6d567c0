"""Rankings of an index's chunks: by vectors, by words, and by both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedtune.retrieval.faiss import search_graph
from embedtune.retrieval.search import top_k
from embedtune.retrieval.selection import top_k_of_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.index import ChunkIndex

# Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", 2009.
_FUSION_CONSTANT = 60
_FUSION_DEPTH = 100


class Ranking(NamedTuple):
    """Positions in an index and their scores, both of shape ``(num_questions, k)``, best first; -1 where there are fewer."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]


def by_vectors(index: ChunkIndex, vectors: NDArray[np.float32], k: int, *, approximate: bool = False) -> Ranking:
    """Rank by similarity of vectors."""
    k = min(k, len(index))
    if approximate:
        scores, positions = search_graph(index.faiss, vectors, k)
    else:  # vectors of an index that is compared by cosine have unit length
        similarity = "dot" if index.similarity == "cosine" else index.similarity
        scores, positions = top_k(vectors, index.vectors, k, similarity=similarity)
    return Ranking(positions, scores)


def by_words(index: ChunkIndex, questions: Sequence[str], k: int) -> Ranking:
    """Rank by BM25; chunks that share no word with the question are left out."""
    positions, scores = index.bm25.rank(questions, min(k, len(index)))
    return Ranking(np.where(scores > 0, positions, -1), scores)


def by_both(
    index: ChunkIndex, vectors: NDArray[np.float32], questions: Sequence[str], k: int, *, approximate: bool = False
) -> Ranking:
    """Rank by vectors and by words, each to a depth of 100 or ``k``, and join the two."""
    if len(questions) != len(vectors):
        raise ValueError(f"Hybrid search needs the text of each question: {len(questions)} for {len(vectors)} vectors.")
    depth = max(k, _FUSION_DEPTH)
    parts = [by_vectors(index, vectors, depth, approximate=approximate), by_words(index, questions, depth)]
    return fused(parts, min(k, len(index)))


def fused(rankings: Sequence[Ranking], k: int) -> Ranking:
    """Join rankings by reciprocal rank fusion: a chunk's score is the sum of 1 / (60 + rank); ties go by position.

    Example:
        >>> first = Ranking(np.array([[4, 2]]), np.zeros((1, 2), dtype=np.float32))
        >>> second = Ranking(np.array([[2, -1]]), np.zeros((1, 2), dtype=np.float32))
        >>> fused([first, second], k=2).positions.tolist()
        [[2, 4]]
    """
    joined = Ranking(
        np.full((len(rankings[0].positions), k), -1), np.zeros((len(rankings[0].positions), k), np.float32)
    )
    for row in range(len(joined.positions)):
        found = np.concatenate([positions[row] for positions, _ in rankings])
        gains = np.concatenate([1 / (_FUSION_CONSTANT + 1.0 + np.arange(p.shape[1])) for p, _ in rankings])
        chunks, where = np.unique(found, return_inverse=True)
        totals = np.where(chunks >= 0, np.bincount(where, weights=gains), 0).astype(np.float32)
        scores, best = top_k_of_scores(totals[None], min(k, len(chunks)))
        joined.positions[row, : best.size] = np.where(scores[0] > 0, chunks[best[0]], -1)
        joined.scores[row, : best.size] = scores[0]
    return joined
