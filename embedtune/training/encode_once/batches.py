"""Batches in which a repeated text is tokenised, and encoded, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from embedtune.models.packing.pack import can_pack, is_padded, pack_in_parts, position_offset

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.data_collator import BaseDataCollator

TEXT_ROWS = "text_rows"
"""The key of a batch under which stands, for each row and column, which of the encoded texts it is."""

# How many runs of rows a batch has at least, each about one chunk.
_CHUNKS_PER_BATCH = 8

# A group of padded texts is cut where padding would exceed this share of it.
_MAX_PADDING = 0.1


class Reading(NamedTuple):
    """How a column's texts are read; only texts that are read alike can be one text.

    Attributes:
        prompt: What is put before each text.
        task: The route of a ``Router``.
        max_length: Where a text is cut, if not where the model cuts it.
    """

    prompt: str | None
    task: str | None
    max_length: int | None

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``preprocess``."""
        limit = {} if self.max_length is None else {"max_length": self.max_length}
        return {"prompt": self.prompt, "task": self.task} | limit


class ViewCollator(SentenceTransformerDataCollator):
    """The stock collator, which does not warn about a question behind its chunk: two of embedtune's views are like that."""

    def maybe_warn_about_column_order(self, column_names: list[str]) -> None:
        """Warn of columns that are likely in the wrong order, except in tables whose first column is ``chunk``."""
        if column_names[:1] != ["chunk"]:
            super().maybe_warn_about_column_order(column_names)


class UniqueTextCollator(ViewCollator):
    """Collate rows so that every distinct text of the batch stands in it once.

    Instead of a padded tensor for each column, the batch has the distinct texts, end to end where the model allows it and
    in groups of similar length where it does not, and a tensor `TEXT_ROWS` of shape ``(batch_size, num_columns)`` that says
    which text stands where. Texts are equal if their prompts and routes are, too.

    Args:
        collator: The stock collator, whose prompts, routes and labels are kept.
        model: The model that will read the texts.
        max_tokens: How many tokens one pass through the model may have; a longer text stands alone. No limit if None.
    """

    def __init__(
        self, collator: BaseDataCollator, model: SentenceTransformer, *, max_tokens: int | None = None
    ) -> None:
        super().__init__(
            preprocess_fn=collator.preprocess_fn,
            valid_label_columns=collator.valid_label_columns,
            router_mapping=collator.router_mapping,
            prompts=collator.prompts,
            max_length=collator.max_length,
        )
        self.max_tokens: int | None = max_tokens
        self.position_offset: int = position_offset(model)
        tasks = {None, *_leaves(collator.router_mapping)}
        self.packable: set[str | None] = {task for task in tasks if can_pack(model, task)}

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows; those that hold anything but texts are collated as sentence-transformers does."""
        columns = [c for c in features[0] if c not in {"dataset_name", *self.valid_label_columns}] if features else []
        if not columns or any(not isinstance(row[column], str) for row in features for column in columns):
            stock: dict[str, Any] = super().__call__(features)
            return stock
        if tuple(columns) not in self._warned_columns:
            self.maybe_warn_about_column_order(columns)
        rest = super().__call__([{k: v for k, v in row.items() if k not in columns} for row in features])
        readings = self._readings(columns, rest)
        places: dict[tuple[Reading, str], int] = {}
        batch: dict[str, Any] = {}
        for reading in dict.fromkeys(readings.values()):
            texts = list(dict.fromkeys(row[c] for c in columns if readings[c] == reading for row in features))
            for members, part in self._tokenise(texts, reading):
                number = sum(key.endswith("_input_ids") for key in batch)
                batch |= {f"texts{number}_{key}": value for key, value in part.items()}
                places |= {(reading, text): len(places) + i for i, text in enumerate(members)}
        rows = [[places[readings[c], row[c]] for c in columns] for row in features]
        # First, because the trainer takes the length of a batch's first tensor for the size of the batch.
        whole: dict[str, Any] = {TEXT_ROWS: torch.tensor(rows)} | rest | batch
        return whole

    def _readings(self, columns: Sequence[str], rest: Mapping[str, Any]) -> dict[str, Reading]:
        routes, prompts = self._resolve_router_mapping(dict(rest)), self._resolve_prompts(dict(rest))
        readings = {}
        for position, column in enumerate(columns):
            task = self._get_task_for_column(column, position, routes)
            prompt = self._get_prompt_for_column(prompts, column) if prompts else None
            readings[column] = Reading(prompt or None, task, self._get_max_length_for_task(task))
        return readings

    def _tokenise(self, texts: list[str], reading: Reading) -> Iterator[tuple[list[str], dict[str, Any]]]:
        """Yield texts, and what the model takes for them, sorted by length."""
        stamp = {"task": reading.task} if reading.task is not None else {}
        if reading.task in self.packable:
            texts.sort(key=len)
            features = self.preprocess_fn(texts, **reading.options())
            if is_padded(features):
                for rows, part in pack_in_parts(
                    features, max_tokens=self.max_tokens, position_offset=self.position_offset
                ):
                    yield [texts[i] for i in rows], part | stamp
                return
        for group in _alike(texts, self.max_tokens):
            yield group, self.preprocess_fn(group, **reading.options()) | stamp


def _leaves(mapping: Any) -> Iterator[str]:
    """Yield the values of a mapping of columns, or of datasets to columns."""
    for value in (mapping or {}).values():
        yield from _leaves(value) if isinstance(value, Mapping) else [value]


def _alike(texts: list[str], max_tokens: int | None) -> Iterator[list[str]]:
    """Cut texts into groups of similar length, counted in characters, at about four of them a token."""
    group: list[str] = []
    total = 0
    for text in sorted(texts, key=len):
        width = len(text) + 1
        padded = width * (len(group) + 1)
        too_long = max_tokens is not None and padded > 4 * max_tokens
        if group and (too_long or padded - total - width > _MAX_PADDING * padded):
            yield group
            group, total = [], 0
        group.append(text)
        total += width
    yield group


class GroupedBatchSampler(DefaultBatchSampler):
    """Keep rows that share their most repeated text, as a rule those about one chunk, together.

    The rows are shuffled in every epoch, then put into runs about one chunk, and the runs are shuffled; batches are cut from the
    sequence, so every row comes once an epoch. A run has at most an eighth of a batch's rows, because batches about one or two
    chunks would save more computing, and train otherwise than rows in random order. A batch still has fewer different chunks
    than a random one; a loss that takes negatives from the batch therefore has fewer of them.

    Pass the class: ``TuningArguments(batch_sampler=GroupedBatchSampler)``.

    Args:
        dataset: Rows with columns of text.
        batch_size: Rows in a batch.
        drop_last: Drop the last batch if it is not full.
        valid_label_columns: Columns that hold no texts.
        generator: Shared by the samplers of a trainer, and not used here.
        seed: With the epoch, it determines the order.

    Example:
        >>> from datasets import Dataset
        >>> chunks = ["a", "b", "c", "d", "e", "f", "g", "h"] * 4
        >>> rows = Dataset.from_dict({"anchor": [f"question {i}" for i in range(32)], "positive": chunks})
        >>> [len({chunks[row] for row in batch}) for batch in GroupedBatchSampler(rows, batch_size=32, drop_last=False)]
        [8]
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        drop_last: bool,
        valid_label_columns: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            valid_label_columns=valid_label_columns,
            generator=generator,
            seed=seed,
        )
        self.group_of_row: np.ndarray[Any, np.dtype[np.int64]] = _most_repeated(
            dataset, skip={"dataset_name", *(valid_label_columns or ())}
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
    """Return how many rows about one chunk follow one another at most."""
    return max(1, batch_size // _CHUNKS_PER_BATCH)


def runs_of_groups(sizes: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Cut groups into runs of nearly equal length, and number them for each row, group by group.

    Args:
        sizes: How many rows each group has.
        longest: How many rows a run may have.

    Example:
        >>> runs_of_groups(np.array([5, 2]), 3).tolist()
        [0, 0, 0, 1, 1, 2, 2]
    """
    num_runs = -(-sizes // longest)
    rank = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    runs: NDArray[np.int64] = np.repeat(num_runs.cumsum() - num_runs, sizes)
    runs += rank * np.repeat(num_runs, sizes) // np.repeat(sizes, sizes)
    return runs


def _most_repeated(dataset: Dataset, *, skip: Iterable[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Number the values of the column of texts that has the fewest different ones, and return the number of each row."""
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
