"""The words of a corpus, and what training questions teach about the words of questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array
from tqdm.auto import tqdm

from embedtune.retrieval.tokens import hashed_tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1, B = (
    0.9,
    0.4,
)  # of BM25, as in Anserini: Yang, Fang and Lin, "Anserini: Reproducible Ranking Baselines Using Lucene", 2018

_MAX_COUNT = np.iinfo(np.uint16).max
_TEXTS_PER_BLOCK = 5_000  # counted at once: the tokens as they are found take several times the memory of their counts


@dataclass(frozen=True, eq=False)
class WordWeights:
    """How much each word of a question says, learned from questions: what many of them contain says little.

    The weight of a token is its idf over the questions, ``log(1 + (n - d + 0.5) / (d + 0.5))`` for a token that ``d`` of ``n``
    questions contain, divided by that of a token in none of them: 1 for a token that no question contains, nearly 0 for one
    that all contain. No relevance judgement is read. Tokens are kept as hashes.

    Attributes:
        hashes: The tokens of the questions, ascending, of shape ``(num_tokens,)``.
        counts: How many questions contain each, of the same shape.
        num_questions: How many questions there were; with 0 every weight is 1.

    Example:
        >>> weights = WordWeights.learn(["How do I restart?", "How do I lock the door?", "How do I call for help?"])
        >>> of = {word: float(weights.of(hashed_tokens(word)[:1])[0]) for word in ("how", "door", "pump")}
        >>> {word: round(weight, 2) for word, weight in of.items()}
        {'how': 0.06, 'door': 0.47, 'pump': 1.0}
    """

    hashes: NDArray[np.uint64]
    counts: NDArray[np.int64]
    num_questions: int

    def __post_init__(self) -> None:
        is_typed = self.hashes.dtype == np.dtype(np.uint64) and self.counts.dtype == np.dtype(np.int64)
        if (
            not is_typed
            or self.hashes.ndim != 1
            or self.hashes.shape != self.counts.shape
            or (self.hashes[1:] <= self.hashes[:-1]).any()
        ):
            raise ValueError(
                "Word weights need ascending hashes (uint64) and as many counts (int64). Make them with learn_words or "
                "WordWeights.learn."
            )
        if len(self.counts) and not 0 < self.counts.min() <= self.counts.max() <= self.num_questions:
            raise ValueError(
                f"Counts from {self.counts.min()} to {self.counts.max()} cannot be those of {self.num_questions} questions."
            )

    @classmethod
    def learn(cls, questions: Iterable[str]) -> WordWeights:
        """Count the tokens of questions."""
        tokens = [np.unique(hashed_tokens(question)) for question in questions]
        hashes, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *tokens]), return_counts=True)
        return cls(hashes, counts, len(tokens))

    def joined(self, other: WordWeights) -> WordWeights:
        """Return what these questions and those of another teach together."""
        hashes, where = np.unique(np.concatenate([self.hashes, other.hashes]), return_inverse=True)
        counts = np.bincount(where, weights=np.concatenate([self.counts, other.counts]), minlength=len(hashes))
        return WordWeights(hashes, counts.astype(np.int64), self.num_questions + other.num_questions)

    def of(self, hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return the weight of each token, of the shape of ``hashes``."""
        counts, found = _look_up(self.hashes, hashes)
        contained = np.where(found, self.counts[counts], 0) if len(self.hashes) else np.zeros(len(hashes))
        return _idf(contained, self.num_questions) / _idf(np.zeros(1), self.num_questions)


@dataclass(frozen=True, eq=False, repr=False)
class WordIndex:
    """How often each token occurs in each chunk, and the BM25 scores that follow from it.

    It never changes; `joined` and `take` return another one.

    Attributes:
        hashes: The tokens of the corpus, ascending, of shape ``(num_tokens,)``.
        counts: How often each occurs in each chunk, of shape ``(num_chunks, num_tokens)``.
        k1: How much a repeated token adds.
        b: How much long chunks are held back, from 0 to 1.

    Example:
        >>> index = WordIndex.build(["Press both buttons.", "Turn the key left."])
        >>> [round(float(score), 2) for score in index.scores(["Which key?"])[0]]
        [0.0, 0.04]
    """

    hashes: NDArray[np.uint64]
    counts: csr_array
    k1: float = K1
    b: float = B

    @classmethod
    def build(cls, texts: Sequence[str], *, k1: float = K1, b: float = B) -> WordIndex:
        """Count the tokens of texts; the time and the memory grow linearly with their length."""
        starts = tqdm(range(0, len(texts), _TEXTS_PER_BLOCK), desc="Counting words", delay=2, leave=False, disable=None)
        parts = [_counted(texts[start : start + _TEXTS_PER_BLOCK]) for start in starts]
        return cls(*_stacked(parts or [_counted([])]), k1, b)

    def __len__(self) -> int:
        return int(self.counts.shape[0])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `of_arrays` makes the index from again."""
        table = self.counts
        return {"hashes": self.hashes, "counts": table.data, "columns": table.indices, "starts": table.indptr}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, num_chunks: int) -> WordIndex:
        """Return the index whose `arrays` these are.

        Raises:
            ValueError: If they are not the words of ``num_chunks`` chunks; columns that do not exist would end the process.
        """
        hashes, counts = arrays["hashes"], arrays["counts"]
        shape = num_chunks, len(hashes)
        table = csr_array((counts, arrays["columns"], arrays["starts"]), shape=shape)
        table.check_format(full_check=True)
        is_typed = hashes.dtype == np.dtype(np.uint64) and counts.dtype == np.dtype(np.uint16)
        if not is_typed or (hashes[1:] <= hashes[:-1]).any():
            raise ValueError(f"hashes of type {hashes.dtype} and counts of type {counts.dtype}, or hashes out of order")
        return cls(hashes, table)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> WordIndex:
        """Return the index of some chunks, in the order given."""
        return replace(self, counts=self.counts[np.asarray(rows, dtype=np.int64)])

    def joined(self, other: WordIndex) -> WordIndex:
        """Return the index of these chunks and, behind them, those of another index."""
        hashes, counts = _stacked([(one.hashes, one.counts) for one in (self, other)])
        return replace(self, hashes=hashes, counts=counts)

    def scores(
        self, questions: Sequence[str], weights: WordWeights | None = None, *, corpus: WordStatistics | None = None
    ) -> NDArray[np.float32]:
        """Return how much of each question's weight each chunk holds, of shape ``(num_questions, num_chunks)``, 0 to 1.

        ``sum(weight * bm25) / sum(weight * idf)`` over the distinct tokens of the question, where ``bm25`` is Lucene's
        ``idf * count / (count + k1 * (1 - b + b * length / mean length))``. A token that no chunk has counts below the line alone.

        Args:
            questions: The questions.
            weights: How much each of their words says; by default 1.
            corpus: Says how rare a word is and how long a chunk, where these chunks are a part of the corpus.
        """
        rows = [self._weighted(question, weights, corpus or self.statistics) for question in questions]
        starts = np.concatenate([[0], np.cumsum([len(columns) for columns, _ in rows])]).astype(np.int32)
        columns, values = _joined([row[0] for row in rows], np.int32), _joined([row[1] for row in rows], np.float32)
        postings = self._postings
        if corpus is not None:  # only for the tokens of the questions, since the next chunk changes them again
            used, columns = np.unique(columns, return_inverse=True)
            postings = self._values_of(self._counts_by_token[used], self.hashes[used], corpus)
        table = csr_array((values, columns.astype(np.int32), starts), shape=(len(questions), postings.shape[0]))
        found: NDArray[np.float32] = (table @ postings).toarray()
        return found

    def num_chunks_of(self, tokens: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return how many chunks contain each token, of the shape of ``tokens``."""
        if tokens is self.hashes:
            return self.num_chunks_with
        places, found = _look_up(self.hashes, tokens)
        if not len(self.hashes):
            return np.zeros(len(tokens), dtype=np.int64)
        return np.where(found, self.num_chunks_with[places], 0)

    def prepare(self) -> None:
        """Compute what the first question would compute."""
        _ = self._postings

    def compact(self) -> WordIndex:
        """Return the same index without the tokens that no chunk has."""
        used, columns = np.unique(self.counts.indices, return_inverse=True)
        shape = len(self), len(used)
        counts = csr_array((self.counts.data, columns.astype(np.int32), self.counts.indptr), shape=shape)
        return replace(self, hashes=self.hashes[used], counts=counts)

    @cached_property
    def statistics(self) -> WordStatistics:
        """What these chunks alone say about their words."""
        return WordStatistics((self,))

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """The number of tokens of each chunk, of shape ``(num_chunks,)``."""
        return np.asarray(self.counts.sum(axis=1, dtype=np.float64))

    @cached_property
    def num_chunks_with(self) -> NDArray[np.int64]:
        """How many chunks contain each token, of shape ``(num_tokens,)``."""
        return np.bincount(self.counts.indices, minlength=len(self.hashes))

    def _weighted(
        self, question: str, weights: WordWeights | None, corpus: WordStatistics
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return a question's tokens that these chunks have, and the share of its weight per unit of idf that each has."""
        tokens = np.unique(hashed_tokens(question))
        columns, found = _look_up(self.hashes, tokens)
        weight = np.ones(len(tokens)) if weights is None else weights.of(tokens)
        total = float(weight @ corpus.idf(tokens))
        return columns[found], (weight[found] / total).astype(np.float32)

    @cached_property
    def _counts_by_token(self) -> csr_array:
        """The transpose of `counts`."""
        return self.counts.T.tocsr()

    @cached_property
    def _postings(self) -> csr_array:
        """The BM25 score of each token in each chunk, of shape ``(num_tokens, num_chunks)``."""
        return self._values_of(self._counts_by_token, self.hashes, self.statistics)

    def _values_of(self, counts: csr_array, tokens: NDArray[np.uint64], corpus: WordStatistics) -> csr_array:
        """Return the BM25 scores of the counts of some tokens."""
        held_back = self.k1 * (1 - self.b + self.b * self.lengths / max(corpus.mean_length, 1.0))
        values = counts.data.astype(np.float32)
        values /= values + held_back.astype(np.float32)[counts.indices]
        values *= np.repeat(corpus.idf(tokens).astype(np.float32), np.diff(counts.indptr))
        return csr_array((values, counts.indices, counts.indptr), shape=counts.shape)


@dataclass(frozen=True, eq=False)
class WordStatistics:
    """How rare each word of a corpus is, and how long its chunks are, where the corpus is kept in parts.

    Attributes:
        parts: The chunks.
        removed: Chunks in them that do not belong to the corpus any more.
    """

    parts: tuple[WordIndex, ...]
    removed: WordIndex | None = None

    @classmethod
    def of_counts(
        cls, hashes: NDArray[np.uint64], counts: NDArray[np.int64], *, num_chunks: int, num_tokens: float
    ) -> WordStatistics:
        """Return what is known of a corpus by numbers alone.

        Args:
            hashes: Some tokens, ascending. Others are taken to be in no chunk.
            counts: How many chunks contain each.
            num_chunks: The number of chunks.
            num_tokens: The number of tokens of all chunks.
        """
        known = WordIndex(hashes, csr_array(np.empty((0, len(hashes)), dtype=np.uint16)))
        known.__dict__["num_chunks_with"] = counts
        found = cls((known,))
        found.__dict__["size"] = num_chunks
        found.__dict__["mean_length"] = num_tokens / num_chunks if num_chunks else 0.0
        return found

    @cached_property
    def size(self) -> int:
        """The number of chunks."""
        return sum(len(part) for part in self.parts) - (len(self.removed) if self.removed is not None else 0)

    @cached_property
    def mean_length(self) -> float:
        """The mean number of tokens of a chunk."""
        total = sum(float(part.lengths.sum()) for part in self.parts)
        total -= float(self.removed.lengths.sum()) if self.removed is not None else 0.0
        return total / self.size if self.size else 0.0

    def idf(self, tokens: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Return ``log(1 + (n - d + 0.5) / (d + 0.5))`` for each token, which ``d`` of the ``n`` chunks contain."""
        counts = sum((part.num_chunks_of(tokens) for part in self.parts), np.zeros(len(tokens), dtype=np.int64))
        return _idf(counts if self.removed is None else counts - self.removed.num_chunks_of(tokens), self.size)


def _idf(counts: NDArray[np.int64] | NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.log1p((size - counts + 0.5) / (counts + 0.5))


def _look_up(known: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each hash is among the known ones, which ascend, and whether it is."""
    places = np.minimum(np.searchsorted(known, hashes), max(len(known) - 1, 0))
    return places, known[places] == hashes if len(known) else np.zeros(len(hashes), dtype=bool)


def _counted(texts: Sequence[str]) -> tuple[NDArray[np.uint64], csr_array]:
    """Return the tokens of some texts, ascending, and how often each occurs in each text."""
    found = [np.unique(hashed_tokens(text), return_counts=True) for text in texts]
    hashes, columns = np.unique(_joined([tokens for tokens, _ in found], np.uint64), return_inverse=True)
    counts = _joined([np.minimum(numbers, _MAX_COUNT) for _, numbers in found], np.uint16)
    starts = np.cumsum([0, *(len(tokens) for tokens, _ in found)]).astype(np.int32)
    return hashes, csr_array((counts, columns.astype(np.int32), starts), shape=(len(texts), len(hashes)))


def _stacked(parts: list[tuple[NDArray[np.uint64], csr_array]]) -> tuple[NDArray[np.uint64], csr_array]:
    """Return the tokens of several tables, and the rows of all over these; the list is emptied, to hold each row once."""
    hashes = np.unique(np.concatenate([of for of, _ in parts]))
    shape = sum(table.shape[0] for _, table in parts), len(hashes)
    total = sum(table.nnz for _, table in parts)
    data, columns = np.empty(total, dtype=np.uint16), np.empty(total, dtype=np.int32)
    sizes, start = [], 0
    while parts:
        of, table = parts.pop(0)
        data[start : start + table.nnz] = table.data
        columns[start : start + table.nnz] = np.searchsorted(hashes, of)[table.indices]
        sizes.append(np.diff(table.indptr))
        start += table.nnz
    ends = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int32)
    return hashes, csr_array((data, columns, ends), shape=shape)


def _joined(parts: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype=dtype)
