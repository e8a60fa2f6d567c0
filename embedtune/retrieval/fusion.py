"""One score from vectors and words, and how much the words count in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers.util import SimilarityFunction
from tqdm.auto import tqdm

from embedtune.retrieval.search import Ranking, top_k
from embedtune.retrieval.selection import top_k_of_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.index import ChunkIndex
    from embedtune.retrieval.parts import IndexParts
    from embedtune.retrieval.words import WordIndex, WordStatistics, WordWeights

# How far down the vectors and the words are each searched for candidates where the search is approximate.
_CANDIDATES = 100
_SCORES_PER_BLOCK = 4_000_000


@dataclass(frozen=True, eq=False)
class Fusion:
    """How vectors and words become one score: ``similarity + word_weight * words``.

    Attributes:
        word_weight: How much the words count: 0 for vectors alone, infinity for words alone.
        weights: What training questions taught about words; None if there were none.
    """

    word_weight: float
    weights: WordWeights | None = None

    def __post_init__(self) -> None:
        if isinstance(self.word_weight, bool) or not isinstance(self.word_weight, Real) or not self.word_weight >= 0:
            raise ValueError(
                f"word_weight={self.word_weight!r} must be 0 or more: 0 for vectors alone, math.inf for words alone."
            )

    @property
    def kind(self) -> str:
        """What is searched: ``"vectors"``, ``"words"`` or ``"vectors and words"``."""
        return {0.0: "vectors", math.inf: "words"}.get(self.word_weight, "vectors and words")

    def rank(
        self,
        index: ChunkIndex,
        questions: Sequence[str],
        vectors: NDArray[np.float32],
        k: int,
        *,
        approximate: bool = False,
        parts: IndexParts | None = None,
        show_progress_bar: bool | None = None,
    ) -> Ranking:
        """Find the ``k`` chunks of an index with the highest scores for each question; ties are broken by position.

        Args:
            index: What is searched.
            questions: The questions, which the words are taken from.
            vectors: The questions' vectors, of shape ``(num_questions, dim)``; not read where words alone count.
            k: How many to find, at most the number of chunks.
            approximate: Look for candidates in the graph of the vectors instead of comparing with all of them.
            parts: What ``index`` is one part of: the whole says how rare a word is, and what of its main part is gone.
            show_progress_bar: By default only in a terminal, after two seconds.
        """
        gone = parts.gone if parts is not None and parts.num_gone and index is parts.main else None
        corpus = parts.words if parts is not None and self.word_weight else None
        search = self._nearby if approximate else self._all
        found = []
        for block in question_blocks(len(questions), len(index), show_progress_bar):
            words = index.words.scores(questions[block], self.weights, corpus=corpus) if self.word_weight else None
            if words is not None and math.isinf(self.word_weight):
                found.append(_best_words(_without(words, gone, 0), k))
            else:
                found.append(search(index, vectors[block], words, k, gone))
        return Ranking(*(np.concatenate(part) for part in zip(*found, strict=True)))

    def rank_parts(
        self,
        parts: IndexParts,
        questions: Sequence[str],
        vectors: NDArray[np.float32],
        k: int,
        *,
        approximate: bool = False,
        show_progress_bar: bool | None = None,
    ) -> Ranking:
        """Find what `rank` finds in the merged index; the arguments are its, and positions are those of ``parts``."""
        rank = partial(self.rank, show_progress_bar=show_progress_bar)
        if parts.is_merged:
            return rank(parts.main, questions, vectors, k, approximate=approximate)
        found = []
        for index, first in ((parts.main, 0), (parts.tail, len(parts.main))):
            if len(index):
                is_near = approximate and first == 0
                some = rank(index, questions, vectors, min(k, len(index)), approximate=is_near, parts=parts)
                found.append((np.where(some.positions >= 0, some.positions + first, -1), some.scores))
        positions, scores = (np.concatenate(both, axis=1) for both in zip(*found, strict=True))
        keys = np.where(positions < 0, np.inf, -scores)
        order = np.lexsort((parts.places[positions], keys), axis=1)[:, :k]
        return Ranking(np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def word_scores(
        self,
        words: WordIndex,
        questions: Sequence[str],
        positions: NDArray[np.int64],
        *,
        corpus: WordStatistics | None = None,
    ) -> NDArray[np.float32]:
        """Return what words contribute to the scores of chunks, of the shape of ``positions``; 0 for a position of -1.

        Args:
            words: Those of the chunks.
            questions: As given to `rank`.
            positions: Of shape ``(num_questions, k)``.
            corpus: The words of the whole, if these chunks are a part of it.
        """
        found = np.zeros(positions.shape, dtype=np.float32)
        if not self.word_weight:
            return found
        weight = np.float32(1 if math.isinf(self.word_weight) else self.word_weight)
        for block in question_blocks(len(questions), len(words)):
            scores = weight * words.scores(questions[block], self.weights, corpus=corpus)
            found[block] = np.take_along_axis(scores, np.maximum(positions[block], 0), axis=1)
        return np.where(positions >= 0, found, np.float32(0))

    def _all(
        self,
        index: ChunkIndex,
        vectors: NDArray[np.float32],
        words: NDArray[np.float32] | None,
        k: int,
        gone: NDArray[np.bool_] | None,
    ) -> Ranking:
        extra = None if words is None else self.word_weight * words
        if gone is not None:
            extra = _without(
                np.zeros((len(vectors), len(index)), np.float32) if extra is None else extra, gone, -np.inf
            )
        return top_k(
            vectors,
            index.vectors,
            k,
            similarity=index.similarity,
            extra=None if extra is None else lambda rows, columns: extra[rows, columns],
            is_checked=True,
        )

    def _nearby(
        self,
        index: ChunkIndex,
        vectors: NDArray[np.float32],
        words: NDArray[np.float32] | None,
        k: int,
        gone: NDArray[np.bool_] | None,
    ) -> Ranking:
        """Score the candidates of the graph and those of the words exactly."""
        num_gone = 0 if gone is None else int(gone.sum())
        depth = min(max(k, _CANDIDATES) + num_gone, len(index))
        candidates = index.graph.search(vectors, depth)
        if words is not None:
            candidates = np.concatenate([candidates, _best_words(_without(words, gone, 0), depth).positions], axis=1)
        if gone is not None:
            candidates = np.where(gone[candidates], -1, candidates)  # a position of -1 stays one
        candidates = np.sort(candidates, axis=1)
        candidates[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -1
        candidates = np.sort(candidates, axis=1)
        scores = similarities(index, vectors, candidates)
        if words is not None:
            scores = scores + self.word_weight * np.take_along_axis(words, np.maximum(candidates, 0), axis=1)
        order = np.argsort(np.where(candidates < 0, np.inf, -scores), axis=1, kind="stable")[:, :k]
        return Ranking(np.take_along_axis(candidates, order, axis=1), np.take_along_axis(scores, order, axis=1))


def _without(scores: NDArray[np.float32], gone: NDArray[np.bool_] | None, value: float) -> NDArray[np.float32]:
    """Return scores in which the chunks that are gone have a value that is never among the best."""
    return scores if gone is None else np.where(gone, np.float32(value), scores)


def similarities(
    index: ChunkIndex | IndexParts, vectors: NDArray[np.float32], positions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the similarity of each question and each of its chunks, of the shape of ``positions``; 0 for a position of -1."""
    score = SimilarityFunction.to_similarity_pairwise_fn("dot" if index.similarity == "cosine" else index.similarity)
    flat = positions.ravel()
    chunks = torch.from_numpy(np.ascontiguousarray(index.vectors_at(np.maximum(flat, 0))))
    questions = torch.from_numpy(np.repeat(vectors, positions.shape[1], axis=0))
    found: NDArray[np.float32] = score(questions, chunks).numpy().reshape(positions.shape)
    return np.where(positions >= 0, found, np.float32(0))


def rank_by_words(index: WordIndex, questions: Sequence[str], weights: WordWeights | None, k: int) -> Ranking:
    """Find the ``k`` chunks that hold most of each question's weight; those that share no token with it are not found."""
    blocks = question_blocks(len(questions), len(index))
    parts = [_best_words(index.scores(questions[block], weights), k) for block in blocks]
    return Ranking(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _best_words(scores: NDArray[np.float32], k: int) -> Ranking:
    found, positions = top_k_of_scores(scores, k)
    return Ranking(np.where(found > 0, positions, -1), found)


def check_ranking(queries: Sequence[str], num_documents: int, k: int) -> None:
    """Raise a ``ValueError`` unless there are queries and as many documents as are wanted."""
    if not len(queries):
        raise ValueError("There are no queries. Give at least one.")
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= num_documents:
        raise ValueError(f"k={k} is out of range for {num_documents} documents. Choose k from 1 to that number.")


def question_blocks(num_questions: int, num_chunks: int, show_progress_bar: bool | None = None) -> Iterator[slice]:
    """Yield slices of the questions whose scores for all chunks fit a block.

    Args:
        num_questions: How many questions there are.
        num_chunks: How many scores each has.
        show_progress_bar: By default only in a terminal, after two seconds.
    """
    size = max(1, _SCORES_PER_BLOCK // max(num_chunks, 1))
    starts: Iterable[int] = range(0, num_questions, size)
    hidden = None if show_progress_bar is None else not show_progress_bar
    if num_questions > size:  # a bar costs more than a question
        starts = tqdm(starts, desc="Scoring", unit="block", delay=2 * (hidden is None), leave=False, disable=hidden)
    yield from (slice(start, start + size) for start in starts)
