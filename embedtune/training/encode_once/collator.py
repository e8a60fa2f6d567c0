"""Batches in which a repeated text is tokenised and encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from embedtune.models.packing.pack import can_pack, is_padded, pack_in_parts, position_offset

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.data_collator import BaseDataCollator

TEXT_ROWS = "text_rows"
"""The key of a batch that holds, for each row and column, the index of its text among the encoded texts."""

# A group of padded texts is cut before padding exceeds this share of it.
_MAX_PADDING = 0.1


class Reading(NamedTuple):
    """How the texts of a column are read. Texts that are read differently are different texts.

    Attributes:
        prompt: The prefix of each text.
        task: The route of a ``Router``.
        max_length: Maximum number of tokens, if it differs from the model's.
    """

    prompt: str | None
    task: str | None
    max_length: int | None

    def options(self) -> dict[str, Any]:
        """Return the arguments of ``preprocess``."""
        limit = {} if self.max_length is None else {"max_length": self.max_length}
        return {"prompt": self.prompt, "task": self.task} | limit


class ViewCollator(SentenceTransformerDataCollator):
    """The stock collator, without its warning about a question after its chunk: two of embedtune's views are like that."""

    def maybe_warn_about_column_order(self, column_names: list[str]) -> None:
        """Warn about columns that are probably in the wrong order, except if the first column is ``chunk``."""
        if column_names[:1] != ["chunk"]:
            super().maybe_warn_about_column_order(column_names)


class UniqueTextCollator(ViewCollator):
    """Collate rows into a batch that contains each distinct text once.

    Instead of one padded tensor per column, the batch contains the distinct texts, packed if the model allows it and
    otherwise padded in groups of similar length, and a tensor `TEXT_ROWS` of shape ``(batch_size, num_columns)`` with the
    index of each text. Texts are equal only if their prompts and routes are.

    Args:
        collator: The stock collator, whose prompts, routes and labels are kept.
        model: The model that will read the texts.
        max_tokens: Maximum number of tokens per forward pass; a longer text is encoded alone. None for no limit.
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
        """Collate rows. Rows that contain anything but texts are collated as in sentence-transformers."""
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
        # First, because the trainer reads the batch size from the first tensor.
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
        """Yield groups of texts, sorted by length, each with the model's input."""
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
    """Cut texts into groups of similar length, estimated at four characters per token."""
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
