"""Batches of whole chunks: each chunk with all the questions that it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.util import get_world_size

from embedtune.training.encode_once.sampler import runs_of_groups

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray


class ChunkBatchSampler(DefaultBatchSampler):
    """Build batches of ``batch_size`` different chunks, each with all its questions.

    A chunk of five questions is encoded once, and all five learn from one pass. The chunks are shuffled in every epoch and
    dealt out to batches of nearly equal size, at most ``batch_size`` chunks each, so the last batch is not a small one.
    A chunk with more than ``batch_size`` questions is cut into parts of at most that many, which count as chunks of their
    own. With several processes, the number of batches is a multiple of theirs.

    For losses that mask known answers, such as `InBatchNegativesLoss` on ``data.pairs(split, with_ids=True)``: others would push
    questions away from their own chunk.

    Args:
        dataset: Rows with a column ``positive``, the chunk.
        batch_size: Chunks in a batch.
        drop_last: Ignored: all batches are nearly equal, and no question is left out.
        valid_label_columns: Ignored.
        generator: Ignored.
        seed: With the epoch, it determines the order.

    Example:
        >>> from datasets import Dataset
        >>> rows = {"anchor": [f"question {i}" for i in range(5)], "positive": ["a", "a", "b", "b", "c"]}
        >>> sampler = ChunkBatchSampler(Dataset.from_dict(rows), batch_size=2, drop_last=False)
        >>> sorted(len({rows["positive"][row] for row in batch}) for batch in sampler)
        [1, 2]
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size=batch_size, **options)
        self.chunk_of_row: NDArray[np.int64] = _numbered(dataset["positive"][:])
        self.chunks_per_batch = batch_size
        # accelerate drops every batch that has other than batch_size rows, unless there is no batch_size.
        self.batch_size: Any = batch_size if get_world_size() == 1 else None

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed or 0, self.epoch))
        rows = rng.permutation(len(self.chunk_of_row))
        rows = rows[np.argsort(self.chunk_of_row[rows], kind="stable")]
        parts = np.split(rows, np.flatnonzero(np.diff(self._parts())) + 1)
        # Repeated only where there are fewer chunks than processes.
        order = np.resize(rng.permutation(len(parts)), max(len(parts), len(self)))
        for batch in np.array_split(order, len(self)):
            yield [int(row) for part in batch for row in parts[part]]

    def __len__(self) -> int:
        num_batches = -(-(self._parts()[-1] + 1) // self.chunks_per_batch)
        processes = get_world_size()
        return int(-(-num_batches // processes) * processes)

    def _parts(self) -> NDArray[np.int64]:
        """Number the parts of chunks, for each row in the order of the chunks."""
        return runs_of_groups(np.bincount(self.chunk_of_row), self.chunks_per_batch)


def _numbered(values: list[str]) -> NDArray[np.int64]:
    """Number different values in the order of their first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
