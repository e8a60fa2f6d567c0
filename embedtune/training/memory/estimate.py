"""The memory that training will need, estimated before it starts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.modules import Router

from embedtune.dataset.columns import VIEW_ROLES
from embedtune.models.packing.pack import tokens_per_pass
from embedtune.models.prompts import prompt_of
from embedtune.training.dropout import set_dropout
from embedtune.training.encode_once.sampler import longest_run
from embedtune.training.freezing import freeze_lower_layers, lower_layers
from embedtune.training.losses import LOSSES
from embedtune.training.memory.simulation import Column, peak_activations

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

    from embedtune.dataset import RetrievalDataset
    from embedtune.training.arguments import TuningArguments

# A sample of a few thousand texts finds a length that few exceed, and takes seconds.
_MAX_TEXTS_COUNTED = 5_000
_STATELESS_OPTIMIZERS = ("sgd", "adafactor", "lomo")


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of a training step, in bytes per device.

    Attributes:
        weights: The model.
        gradients: The gradients of the trained weights; twice under DDP, which copies them into buckets.
        optimizer: The states of the optimizer, such as the moments of Adam.
        activations: What a step needs in addition at its peak, for a batch of the longest texts. The tensors of the forward
            pass are freed while the gradients are created, so this may be small if all weights are trained.
        columns: That batch or, with cached gradients, the largest part of it that is in memory at once.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    columns: tuple[Column, ...]

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = [(name, getattr(self, name)) for name in ("weights", "gradients", "optimizer", "activations", "total")]
        batch = ", ".join(f"{c.num_rows} x {c.num_tokens} tokens ({c.role})" for c in self.columns)
        return "\n".join([*(f"{name:12}{_in_gb(size):>10}" for name, size in parts), f"batch: {batch}"])

    __repr__ = __str__


def estimate_memory(
    model: SentenceTransformer, args: TuningArguments, *, data: RetrievalDataset, device: str | None = None
) -> MemoryEstimate:
    """Estimate the peak memory of training before it starts.

    Weights, gradients and optimizer states are counted. Activations come from a step on tensors without contents, which
    sees every layer, LoRA, dropout, bf16 and gradient checkpointing as they are. This takes seconds and no memory, and the
    model may be on the device ``"meta"``.

    Not included: the CUDA context and the libraries' workspaces (0.5 to 1 GB), gaps between the allocator's blocks, and the
    loss itself (the square of the batch size). FSDP and DeepSpeed divide the first three parts among the devices. With packed
    texts of different lengths the estimate is too high, because it assumes the longest. A chunk that occurs in several rows
    of a batch counts once if rows about a chunk are grouped.

    Args:
        model: The model to train.
        args: The arguments of the run: batch size, loss, precision, gradient checkpointing and optimizer count.
        data: The training data. Its longest question and longest chunk make the batch.
        device: ``"cuda"`` or ``"cpu"``. None for the model's device. On a CPU, dropout in attention needs memory that it does
            not need on a GPU.

    Returns:
        The estimate. Printing it shows a table.

    Example:
        >>> import embedtune as et
        >>> pairs = [("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])]
        >>> data = et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
        >>> model = et.load_model("minilm", device="cpu")
        >>> estimate = et.estimate_memory(model, et.TuningArguments("out", per_device_train_batch_size=4), data=data)
        >>> round(estimate.weights / 1e6)
        91
        >>> print(str(estimate).splitlines()[0])
        weights        0.09 GB
    """
    columns = _at_once(_columns(model, args, data), args.mini_batch_num_tokens)
    frozen = {id(parameter) for parameter in lower_layers(model, args.frozen_layers)}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in frozen]
    return MemoryEstimate(
        weights=_num_bytes(model.parameters()) + _num_bytes(model.buffers()),
        gradients=_num_bytes(trained) * (2 if args.world_size > 1 else 1),
        optimizer=_optimizer_bytes(str(getattr(args.optim, "value", args.optim)), trained),
        activations=_activations(model, args, columns, device or model.device.type),
        columns=columns,
    )


def _activations(model: SentenceTransformer, args: TuningArguments, columns: tuple[Column, ...], device: str) -> int:
    def prepare(copy: Any) -> None:
        freeze_lower_layers(copy, args.frozen_layers)
        if args.dropout is not None:
            set_dropout(copy, args.dropout)

    passes = _passes(model, args, columns, device)
    return peak_activations(
        model,
        columns if passes is None else passes,
        one_pass=passes is None,
        bf16=bool(args.bf16 or args.fp16),
        gradient_checkpointing=bool(args.gradient_checkpointing),
        fused_attention=not device.startswith("cpu"),
        accumulating=args.gradient_accumulation_steps > 1
        or args.mini_batch_num_tokens is not None
        or args.world_size > 1,
        prepare=prepare,
    )


def _passes(
    model: SentenceTransformer, args: TuningArguments, columns: tuple[Column, ...], device: str
) -> tuple[Column, ...] | None:
    """Return the parts of a batch that are encoded one after the other, or None if there is a single forward pass."""
    if not args.encode_once:
        return columns
    limit = tokens_per_pass(model, device) if args.mini_batch_num_tokens is None else None
    total = sum(column.num_rows * column.num_tokens for column in columns)
    if limit is not None and total > limit:
        return tuple(part for column in columns for part in _parts(column, max(1, limit // column.num_tokens)))
    return columns if any(isinstance(module, Router) for module in model) else None


def _parts(column: Column, num_rows: int) -> Iterator[Column]:
    """Cut a column into parts of ``num_rows``."""
    for start in range(0, column.num_rows, num_rows):
        yield replace(column, num_rows=min(num_rows, column.num_rows - start))


def _optimizer_bytes(name: str, trained: list[nn.Parameter]) -> int:
    """Return the size of Adam's two moments per weight, of the weight's own type or of one byte."""
    if name.startswith(_STATELESS_OPTIMIZERS):
        return 0
    if "8bit" in name:
        return 2 * sum(parameter.numel() for parameter in trained)
    return 2 * _num_bytes(trained)


def _columns(model: SentenceTransformer, args: TuningArguments, data: RetrievalDataset) -> tuple[Column, ...]:
    """Return a batch of the longest question and the longest chunk."""
    loss = LOSSES[args.loss](model)
    roles = VIEW_ROLES[loss.view]
    texts = {"query": data.queries["text"], "document": data.corpus["text"]}
    longest = {role: _longest(model, texts[role], prompt=prompt_of(model, role)) for role in dict.fromkeys(roles)}
    num_rows = args.per_device_train_batch_size
    grouped = args.encode_once and args.group_rows is not False
    num_texts = {"query": num_rows, "document": num_rows}
    if grouped and loss.view == "pairs":
        num_texts = _whole_chunks(data, num_rows)
    elif grouped:
        num_texts["document"] = _most_chunks(data, num_rows, args.num_negatives)
    return tuple(Column(role, num_texts[role], longest[role]) for role in roles)


def _whole_chunks(data: RetrievalDataset, batch_size: int) -> dict[str, int]:
    """Return the chunks of a batch, and the questions if they are the chunks with the most questions."""
    questions = Counter(chunk for chunks in data.relevant("train").values() for chunk in chunks)
    most = sorted((min(count, batch_size) for count in questions.values()), reverse=True)[:batch_size]
    return {"query": sum(most), "document": len(most)}


def _most_chunks(data: RetrievalDataset, num_rows: int, num_negatives: int) -> int:
    """Return the largest number of chunks in a batch whose rows come in runs about one chunk.

    These are the chunks with the shortest runs, with a single row of another chunk before and after them.
    """
    questions = Counter(chunk for chunks in data.relevant("train").values() for chunk in chunks)
    sizes = [num_negatives * count for count in questions.values()]
    shortest = sorted(size // -(-size // longest_run(num_rows)) for size in sizes)
    whole = sum(total <= num_rows - 2 for total in itertools.accumulate(shortest))
    return min(num_rows, len(questions), whole + 2)


def _at_once(columns: tuple[Column, ...], max_tokens: int | None) -> tuple[Column, ...]:
    """Return what is in memory at once: everything or, with cached gradients, one mini-batch."""
    if max_tokens is None:
        return columns
    longest = max(columns, key=lambda column: column.num_tokens)
    num_rows = min(max(max_tokens // longest.num_tokens, 1), sum(column.num_rows for column in columns))
    return (Column(longest.role, num_rows, longest.num_tokens),)


def _longest(model: SentenceTransformer, texts: Any, *, prompt: str) -> int:
    rows = np.random.default_rng(0).permutation(len(texts))[:_MAX_TEXTS_COUNTED]
    sample = [prompt + texts[int(row)] for row in rows]
    tokenizer: Any = model.tokenizer
    if callable(tokenizer):
        ids = tokenizer(sample, truncation=False, padding=False, verbose=False)["input_ids"]
    else:  # that of a static model, of the package tokenizers
        ids = [encoding.ids for encoding in tokenizer.encode_batch(sample, add_special_tokens=False)]
    longest = max(1, *(len(text) for text in ids))
    return longest if model.max_seq_length is None else int(min(longest, model.max_seq_length))  # infinite if static


def _num_bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _in_gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
