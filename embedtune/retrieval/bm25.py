"""BM25, the baseline that knows nothing but words, and that a tuned model should beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import bm25s
import numpy as np

from embedtune.retrieval.selection import top_k_of_scores
from embedtune.text import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCORES_PER_BLOCK = 4_000_000


@dataclass(frozen=True)
class BM25:
    """Rank documents by the words they share with the query, rare words counting more.

    The Lucene variant of BM25 (Kamphuis et al., "Which BM25 Do You Mean?", 2020), computed by ``bm25s``. Words are runs
    of letters and digits in lower case. There are no stop words and no stemming, so that it works in any language; where
    questions and documents are worded differently, ``tokenize`` can add those of the language, and the baseline gets
    harder to beat.

    Attributes:
        k1: How much a repeated word adds.
        b: How much long documents are held back, from 0 to 1.
        tokenize: Splits a text into words.
        show_progress_bar: Show the progress of indexing.

    Example:
        >>> documents = ["Press both buttons.", "Turn the key left."]
        >>> positions, scores = BM25().rank(["which key?"], documents, k=2)
        >>> positions.tolist()
        [[1, 0]]
        >>> from embedtune.text import words
        >>> english = BM25(tokenize=lambda text: [word for word in words(text) if word not in {"the", "which"}])
    """

    k1: float = 1.5
    b: float = 0.75
    tokenize: Callable[[str], Sequence[str]] = words
    show_progress_bar: bool = False

    @property
    def fingerprint(self) -> str:
        """The settings, as a result remembers them."""
        tokenize = getattr(self.tokenize, "__qualname__", type(self.tokenize).__qualname__)
        return f"BM25(k1={self.k1}, b={self.b}, tokenize={tokenize})"

    def rank(
        self, queries: Sequence[str], documents: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return positions in ``documents`` and their scores, both of shape ``(num_queries, k)``, best first.

        Ties are broken by position. A query that shares no word with any document ties with all of them.

        Raises:
            ValueError: If ``k`` is not between 1 and the number of documents.
        """
        return self.index(documents).rank(queries, k)

    def index(self, documents: Sequence[str]) -> BM25Index:
        """Index documents once, to rank them for one query after another."""
        vocabulary: dict[str, int] = {}
        token_ids = [[vocabulary.setdefault(w, len(vocabulary)) for w in self.tokenize(text)] for text in documents]
        index = bm25s.BM25(k1=self.k1, b=self.b)
        if vocabulary:
            index.scores = index.build_index_from_ids(
                list(range(len(vocabulary))), token_ids, show_progress=self.show_progress_bar
            )
        return BM25Index(index, vocabulary, self.tokenize, len(documents))


@dataclass(frozen=True, repr=False)
class BM25Index:
    """Documents that were indexed by `BM25.index`.

    Attributes:
        index: What ``bm25s`` built.
        vocabulary: The number of each word.
        tokenize: Splits a query into words.
        num_documents: How many there are.
    """

    index: bm25s.BM25
    vocabulary: Mapping[str, int]
    tokenize: Callable[[str], Sequence[str]]
    num_documents: int

    def rank(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return positions of documents and their scores, both of shape ``(num_queries, k)``, best first."""
        if not 1 <= k <= self.num_documents:
            raise ValueError(
                f"k={k} is out of range for {self.num_documents} documents. Choose k from 1 to that number."
            )
        known = self.vocabulary
        found = [[known[w] for w in self.tokenize(query) if w in known] for query in queries]
        size = max(1, _SCORES_PER_BLOCK // self.num_documents)
        blocks = [_best(self.index, found[i : i + size], self.num_documents, k) for i in range(0, len(found), size)]
        scores, positions = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return positions, scores


def _best(
    index: bm25s.BM25, queries: Sequence[list[int]], num_documents: int, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scores = np.zeros((len(queries), num_documents), dtype=np.float32)
    for i, token_ids in enumerate(queries):
        if token_ids:
            scores[i] = index.get_scores_from_ids(token_ids)
    return top_k_of_scores(scores, k)
