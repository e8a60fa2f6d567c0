"""An index that grows: a large part that stays as it is, and a small one for what came since."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.compute

from embedtune.retrieval.words import WordStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from embedtune.retrieval.index import ChunkIndex
    from embedtune.retrieval.search import Similarity

# Merging copies all vectors and words, so it happens when a share of the index has changed, and not for each chunk.
_MIN_CHANGED, _SHARE_CHANGED = 256, 50


@dataclass(frozen=True, eq=False, repr=False)
class IndexParts:
    """Chunks in two indexes. What is found in them is what is found in `merged`, and a few new chunks cost little.

    A position counts the rows of `main` first, and then those of `tail`. It never changes; `changed` returns other parts.

    Attributes:
        main: The large part.
        tail: What was added since, and what was updated.
        gone: The rows of `main` that were removed or updated, of shape ``(len(main),)``.
    """

    main: ChunkIndex
    tail: ChunkIndex
    gone: NDArray[np.bool_]

    @classmethod
    def of(cls, index: ChunkIndex) -> Self:
        """Return the parts of an index: all of it, and nothing."""
        empty = replace(index, chunks=index.chunks.slice(0, 0), vectors=np.asarray(index.vectors[:0]))
        parts = cls(index, empty, np.zeros(len(index), dtype=bool))
        parts.__dict__["merged"] = index
        return parts

    def __len__(self) -> int:
        return len(self.main) + len(self.tail) - self.num_gone

    @cached_property
    def num_gone(self) -> int:
        """How many rows of `main` are not in the corpus any more."""
        return int(self.gone.sum())

    @property
    def is_merged(self) -> bool:
        """Whether `main` is all there is."""
        return not len(self.tail) and not self.num_gone

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared."""
        return self.main.similarity

    @cached_property
    def merged(self) -> ChunkIndex:
        """All chunks as one index, sorted by id."""
        gone = {self.main.ids[row] for row in np.flatnonzero(self.gone).tolist()}
        words = self.tail.words if "words" in self.main.__dict__ else None
        return self.main.replaced(gone, self.tail.chunks, self.tail.vectors, words=words)

    @cached_property
    def words(self) -> WordStatistics:
        """How rare the words of the corpus are."""
        removed = self.main.words.take(np.flatnonzero(self.gone)).compact() if self.num_gone else None
        return WordStatistics((self.main.words, self.tail.words), removed)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Numbers by which positions are in the order of their ids, which breaks ties."""
        step = len(self.tail) + 1
        before = [bisect_left(self.main.ids, chunk) * step + row for row, chunk in enumerate(self.tail.ids)]
        return np.concatenate([np.arange(len(self.main)) * step + step - 1, np.array(before, dtype=np.int64)])

    def find(self, chunk_ids: Iterable[str]) -> list[int]:
        """Return the position of each id, or -1."""
        return [self._find(chunk) for chunk in chunk_ids]

    def of_documents(self, document_ids: Sequence[str]) -> list[str]:
        """Return the ids of the chunks of some documents."""
        wanted = pyarrow.array(document_ids, pyarrow.string())
        found = []
        for index, gone in ((self.main, self.gone), (self.tail, np.zeros(len(self.tail), dtype=bool))):
            is_wanted = pyarrow.compute.is_in(index.chunks["document_id"], value_set=wanted)
            rows = np.flatnonzero(is_wanted.to_numpy() & ~gone)
            found += index.rows(rows)["_id"].to_pylist()
        return found

    def rows(self, positions: Sequence[int] | NDArray[np.int64]) -> pyarrow.Table:
        """Return the chunks at some positions."""
        wanted = np.asarray(positions, dtype=np.int64)
        is_new = wanted >= len(self.main)
        both = pyarrow.concat_tables([self.main.rows(wanted[~is_new]), self.tail.rows(wanted[is_new] - len(self.main))])
        order = np.empty(len(wanted), dtype=np.int64)
        order[np.concatenate([np.flatnonzero(~is_new), np.flatnonzero(is_new)])] = np.arange(len(wanted))
        return both.take(pyarrow.array(order))

    def vectors_at(self, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors at some positions, of shape ``(num_positions, dim)``."""
        wanted = np.asarray(positions, dtype=np.int64)
        is_new = wanted >= len(self.main)
        found = np.empty((len(wanted), self.main.vectors.shape[1]), dtype=np.float32)
        found[~is_new] = self.main.vectors[wanted[~is_new]]
        found[is_new] = self.tail.vectors[wanted[is_new] - len(self.main)]
        return found

    def changed(self, old: Iterable[str], chunks: pyarrow.Table, vectors: NDArray[np.float32]) -> IndexParts:
        """Return the parts without some chunks and with others.

        Args:
            old: The ids that go; of ids that are not there nothing goes.
            chunks: The rows that come, sorted by id.
            vectors: Their vectors, of shape ``(num_rows, dim)``.
        """
        positions = np.array([p for p in self.find(old) if p >= 0], dtype=np.int64)
        gone = self.gone.copy()
        gone[positions[positions < len(self.main)]] = True
        of_tail = positions[positions >= len(self.main)] - len(self.main)
        if "words" in self.main.__dict__:
            _ = self.tail.words  # so that the words of new chunks alone are counted
        tail = self.tail.replaced({self.tail.ids[row] for row in of_tail.tolist()}, chunks, vectors)
        parts = IndexParts(self.main, tail, gone)
        if len(tail) + parts.num_gone <= max(_MIN_CHANGED, len(self.main) // _SHARE_CHANGED):
            return parts
        if "words" in self.main.__dict__:
            parts.merged.words.prepare()  # now, and not by the next question
        return IndexParts.of(parts.merged)

    def _find(self, chunk_id: str) -> int:
        row = self.main.position_of.get(chunk_id, -1)
        if row >= 0 and not self.gone[row]:
            return row
        new = self.tail.position_of.get(chunk_id, -1)
        return new + len(self.main) if new >= 0 else -1


class SomeChunks(IndexParts):
    """Some chunks of a larger corpus, with the words of all of it, which say more than theirs."""

    is_merged = False

    @classmethod
    def of_corpus(cls, index: ChunkIndex, words: WordStatistics) -> Self:
        """Return the chunks of an index, and what the whole corpus says about words."""
        parts = cls.of(index)
        parts.__dict__["words"] = words
        return parts
