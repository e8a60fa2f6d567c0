"""Hybrid retrieval: several rankings fused into one, by ranks alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.fingerprint import fingerprint_of
from embedtune.retrieval.retrieve import Retriever, is_approximate, retrieve
from embedtune.retrieval.selection import top_k_of_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCORES_PER_BLOCK = 4_000_000


@dataclass(frozen=True, repr=False)
class Hybrid:
    """Rank by reciprocal rank fusion: a document scores ``1 / (offset + rank)`` in each of the rankings that it is in.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
    2009. No scores are compared, so a cosine and a BM25 score need no common scale.

    Attributes:
        retriever: A SentenceTransformer, or anything that can be evaluated.
        other: What to fuse it with.
        offset: How little the first ranks stand out.
        depth: How far down each ranking goes into the fusion.
        batch_size: How many texts a SentenceTransformer encodes at once.

    Example:
        >>> documents = ["Press both buttons.", "Turn the key left.", "Oil the key."]
        >>> hybrid = Hybrid(BM25(), BM25(tokenize=list))  # words and letters
        >>> hybrid.rank(["which key?"], documents, k=2)[0].tolist()
        [[2, 1]]
    """

    retriever: Retriever
    other: Retriever = field(default_factory=BM25)
    offset: int = 60
    depth: int = 100
    batch_size: int = 32

    @property
    def fingerprint(self) -> str:
        """The settings and what is fused, as a result remembers them."""
        parts = ", ".join(fingerprint_of(part) for part in (self.retriever, self.other))
        return f"Hybrid({parts}, offset={self.offset}, depth={self.depth})"

    @property
    def approximate(self) -> bool:
        """Whether a part searches approximately."""
        return is_approximate(self.retriever) or is_approximate(self.other)

    def rank(
        self, queries: Sequence[str], documents: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return positions in ``documents`` and their fused scores, both of shape ``(num_queries, k)``, best first.

        Ties are broken by position. Documents that are in none of the rankings follow in the order of their positions.

        Raises:
            ValueError: If ``k`` is not between 1 and the number of documents.
        """
        if not 1 <= k <= len(documents):
            raise ValueError(f"k={k} is out of range for {len(documents)} documents. Choose k from 1 to that number.")
        named = {str(i): query for i, query in enumerate(queries)}, {str(i): text for i, text in enumerate(documents)}
        depth = min(max(self.depth, k), len(documents))
        rankings = [
            retrieve(retriever, *named, depth, batch_size=self.batch_size)[1]
            for retriever in (self.retriever, self.other)
        ]
        size = max(1, _SCORES_PER_BLOCK // len(documents))
        blocks = [
            top_k_of_scores(self._fused([ranking[i : i + size] for ranking in rankings], len(documents)), k)
            for i in range(0, len(queries), size)
        ]
        scores, positions = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return positions, scores

    def _fused(self, rankings: Sequence[NDArray[np.int64]], num_documents: int) -> NDArray[np.float32]:
        scores = np.zeros((len(rankings[0]), num_documents + 1))  # the last is where a position of -1 points
        for ranking in rankings:
            values = 1 / (self.offset + np.arange(1, ranking.shape[1] + 1))
            # A position stands once in a ranking, so nothing is added twice.
            np.put_along_axis(scores, ranking, np.take_along_axis(scores, ranking, axis=1) + values, axis=1)
        return scores[:, :-1].astype(np.float32)
