"""The peak memory of a training step, measured on tensors that have shapes but no contents."""

from __future__ import annotations

import copy
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.types import Role


@dataclass(frozen=True)
class Column:
    """One column of a batch.

    Attributes:
        role: Whether it holds questions or chunks.
        num_rows: Number of texts.
        num_tokens: Tokens of the longest text, to which the others are padded.
    """

    role: Role
    num_rows: int
    num_tokens: int


def peak_activations(
    model: SentenceTransformer,
    columns: Iterable[Column],
    *,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    fused_attention: bool = True,
    accumulating: bool = False,
    one_pass: bool = False,
    prepare: Callable[[nn.Module], None] | None = None,
) -> int:
    """Return the peak bytes of a forward and backward pass, in addition to the weights and all their gradients.

    Activations are freed while gradients are created, so this may be small. The step runs on tensors without contents
    (``FakeTensorMode``), which takes no memory and does not change the model. It may be on the device ``"meta"``.

    Args:
        model: The model to train.
        columns: The batch. Nothing of a column is freed before the backward pass.
        bf16: Run under autocast.
        gradient_checkpointing: Keep only the input of each layer, and compute the rest again.
        fused_attention: Attention with dropout does not keep its probabilities, as on GPUs. On CPUs it does.
        accumulating: Gradients exist from the start.
        one_pass: The model is called once for all columns, so the word embeddings get a single gradient, at the very end.
            Otherwise it is called once per column.
        prepare: A change to the copy of the model before the step.
    """
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("ignore", FutureWarning)  # of the name gradient_checkpointing_enable
        fake = _without_contents(model, gradients=accumulating)
        if prepare is not None:
            prepare(fake)
        if fused_attention:
            _fuse_attention(fake)
        if gradient_checkpointing:
            fake.gradient_checkpointing_enable()
        embeddings = _frozen_embeddings(fake)
        word_gradients = sum(weight.nbytes for weight in {module.weight for module in embeddings})
        if not one_pass:
            _imitate_gradients(embeddings)
        fake.train()
        batches = [_features(fake, column) for column in columns]
        with _LiveBytes(fake) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                vectors = [fake(dict(features))["sentence_embedding"] for features in batches]
            # Chunks of a frozen index have no gradient.
            torch.autograd.backward([column.float().sum() for column in vectors if column.requires_grad])
    gradients = 0 if accumulating else _num_bytes(fake.parameters())
    peak = max(int(live.peak) - gradients, word_gradients)
    return peak if accumulating else peak - word_gradients


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks the bytes of the storages that operations create, except the model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        own = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in own)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: Any) -> None:
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._remove, storage.nbytes())
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _remove(self, num_bytes: int) -> None:
        self.live -= num_bytes


def _fuse_attention(model: nn.Module) -> None:
    """Turn off dropout in attention: on a GPU it is part of the kernel, which keeps nothing of it."""
    for module in model.modules():
        if "Attention" in type(module).__name__:
            for child in module.children():
                if isinstance(child, nn.Dropout):
                    child.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                setattr(module, "attention_dropout", 0.0)  # noqa: B010  # mypy expects a module


def _frozen_embeddings(model: nn.Module) -> list[nn.Embedding]:
    """Freeze the trained embeddings, unless nothing else is trained, and return them."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    found = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight in trained]
    if trained == {module.weight for module in found}:
        return []
    for module in found:
        module.weight.requires_grad_(False)
    return found


def _imitate_gradients(embeddings: Iterable[nn.Embedding]) -> None:
    """Create one gradient per embedding in the backward pass: on a real device, further ones are added to it in place."""
    kept: dict[Tensor, Tensor] = {}
    anchor = torch.zeros((), requires_grad=True)

    def watch(module: Any, _: Any, output: Tensor) -> Any:
        def make_gradient() -> None:
            kept.setdefault(module.weight, torch.empty_like(module.weight))

        return _CalledBack.apply(output, anchor, make_gradient)  # type: ignore[no-untyped-call]

    for module in embeddings:
        module.register_forward_hook(watch)


class _CalledBack(torch.autograd.Function):
    """The identity; its backward pass calls a function."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _: Tensor, function: Callable[[], None]) -> Tensor:
        ctx.function = function
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None, None]:
        ctx.function()
        return None, None, None


def _num_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)


def _without_contents(model: SentenceTransformer, *, gradients: bool) -> Any:
    """Copy a model with tensors of the same shapes, with gradients if they are accumulated."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
        if gradients and tensor.requires_grad:
            memo[id(tensor)].grad = torch.empty_like(empty)
    return copy.deepcopy(model, memo)


def _features(model: nn.Module, column: Column) -> dict[str, Any]:
    if any(
        isinstance(module, StaticEmbedding) for module in model.modules()
    ):  # its texts follow each other, without padding
        size = column.num_rows * column.num_tokens
        offsets = torch.arange(0, size, column.num_tokens, device="cpu")
        return {"input_ids": torch.ones(size, dtype=torch.long, device="cpu"), "offsets": offsets, "task": column.role}
    ones = torch.ones(column.num_rows, column.num_tokens, dtype=torch.long, device="cpu")
    return {"input_ids": ones, "attention_mask": ones.clone(), "task": column.role, "modality": "text"}
