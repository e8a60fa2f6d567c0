"""Batches that hold several rows about one chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.sampler import DefaultBatchSampler

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

# A batch consists of at least this many runs of rows, each about one chunk.
_RUNS_PER_BATCH = 8


class GroupedBatchSampler(DefaultBatchSampler):
    """Put rows that share their most repeated text, usually the chunk, into the same batch.

    Every epoch the rows are shuffled and put into runs about one chunk, and the runs are shuffled; batches are cut from
    that sequence, so each row occurs once per epoch. A run has at most an eighth of a batch's rows: batches about one or two
    chunks would save more computing, but train worse than rows in random order. Since a batch has fewer distinct chunks
    than a random one, losses with in-batch negatives have fewer negatives.

    Pass the class: ``TuningArguments(batch_sampler=GroupedBatchSampler)``.

    Args:
        dataset: Rows with columns of text.
        batch_size: Rows per batch.
        drop_last: Drop the last batch if it is not full.
        valid_label_columns: Columns that do not hold texts.
        generator: Accepted because trainers pass it, but not used.
        seed: With the epoch, determines the order.

    Example:
        >>> from datasets import Dataset
        >>> chunks = ["a", "b", "c", "d", "e", "f", "g", "h"] * 4
        >>> rows = Dataset.from_dict({"anchor": [f"question {i}" for i in range(32)], "positive": chunks})
        >>> [len({chunks[row] for row in batch}) for batch in GroupedBatchSampler(rows, batch_size=32, drop_last=False)]
        [8]
    """

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.group_of_row: NDArray[np.int64] = _groups(
            dataset, skip={"dataset_name", *(self.valid_label_columns or ())}
        )

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed or 0, self.epoch))
        rows = rng.permutation(len(self.group_of_row))
        rows = rows[np.argsort(self.group_of_row[rows], kind="stable")]
        run_of_row = runs_of_groups(np.bincount(self.group_of_row), longest_run(self.batch_size))
        place = rng.permutation(run_of_row.max(initial=-1) + 1)
        rows = rows[np.argsort(place[run_of_row], kind="stable")]
        end = len(self) * self.batch_size
        for start in range(0, min(end, len(rows)), self.batch_size):
            yield rows[start : start + self.batch_size].tolist()

    def __len__(self) -> int:
        full, rest = divmod(len(self.group_of_row), self.batch_size)
        return int(full + (rest > 0 and not self.drop_last))


def longest_run(batch_size: int) -> int:
    """Return how many rows about one chunk follow each other at most."""
    return max(1, batch_size // _RUNS_PER_BATCH)


def runs_of_groups(sizes: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Cut groups into runs of nearly equal length, and return the run of each row, group by group.

    Args:
        sizes: Rows per group.
        longest: Maximum rows per run.

    Example:
        >>> runs_of_groups(np.array([5, 2]), 3).tolist()
        [0, 0, 0, 1, 1, 2, 2]
    """
    num_runs = -(-sizes // longest)
    rank = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    runs: NDArray[np.int64] = np.repeat(num_runs.cumsum() - num_runs, sizes)
    runs += rank * np.repeat(num_runs, sizes) // np.repeat(sizes, sizes)
    return runs


def _groups(dataset: Dataset, *, skip: Iterable[str]) -> NDArray[np.int64]:
    """Number the distinct texts of the column that has the fewest, and return the number of each row."""
    best: dict[str, int] | None = None
    numbers = np.arange(len(dataset))
    plain = dataset.with_format(None)
    for column in dataset.column_names:
        if column in skip or getattr(dataset.features[column], "dtype", None) not in ("string", "large_string"):
            continue
        values: dict[str, int] = {}
        column_numbers = [
            values.setdefault(value, len(values))
            for part in plain.select_columns([column]).iter(batch_size=1000)
            for value in part[column]
        ]
        if best is None or len(values) < len(best):
            best, numbers = values, np.array(column_numbers, dtype=np.int64)
    return numbers
