"""A training step in which every tensor has a shape and no contents: what it would hold in memory, at its peak."""

from __future__ import annotations

import copy
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.types import Role


@dataclass(frozen=True)
class Column:
    """One column of a batch as the model gets it.

    Attributes:
        role: Whether it holds questions or chunks.
        num_rows: Its texts.
        num_tokens: The longest one's tokens, to which the others are padded.
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
    """Return the bytes that one forward and backward pass holds at its peak on top of the weights and all their gradients.

    While gradients come, activations go, so that may be little.

    The step is run on tensors without contents (``FakeTensorMode``), so that it takes no memory, and the model is not
    changed. It may be on the device ``"meta"``.

    Args:
        model: What to train.
        columns: The batch. Nothing of one column is freed before the backward pass.
        bf16: Under autocast.
        gradient_checkpointing: Keep only what goes into each layer, and compute it again.
        fused_attention: Attention with dropout keeps no matrix of probabilities, as on GPUs; on CPUs it does.
        accumulating: There are gradients from the start.
        one_pass: The model is called once for all columns, so that there is one gradient of the word embeddings, at the very
            end. Otherwise it is called for one column after the other.
        prepare: Something to do to the copy of the model first.
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
        batches = [_features(column) for column in columns]
        with _LiveBytes(fake) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                vectors = [fake(dict(features))["sentence_embedding"] for features in batches]
            torch.autograd.backward([column.float().sum() for column in vectors])
    gradients = 0 if accumulating else _num_bytes(fake.parameters())
    peak = max(int(live.peak) - gradients, word_gradients)
    return peak if accumulating else peak - word_gradients


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations create, besides a model's own, and takes them off when they are freed."""

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
    """Take the dropout out of attention: on a GPU it is part of the kernel, and nothing of it is kept."""
    for module in model.modules():
        if "Attention" in type(module).__name__:
            for child in module.children():
                if isinstance(child, nn.Dropout):
                    child.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                setattr(module, "attention_dropout", 0.0)  # noqa: B010  # the type checker expects a module


def _frozen_embeddings(model: nn.Module) -> list[nn.Embedding]:
    """Freeze the embeddings that would be trained, unless there is nothing else, and return them."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    found = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight in trained]
    if trained == {module.weight for module in found}:
        return []
    for module in found:
        module.weight.requires_grad_(False)
    return found


def _imitate_gradients(embeddings: Iterable[nn.Embedding]) -> None:
    """Have a gradient for each pass: the first stays, further ones are added to it in place, which autograd does not do here."""
    kept: dict[Tensor, Tensor] = {}
    anchor = torch.zeros((), requires_grad=True)

    def watch(module: Any, _: Any, output: Tensor) -> Any:
        def make_gradient() -> None:
            kept.setdefault(module.weight, torch.empty_like(module.weight))

        return _CalledBack.apply(output, anchor, make_gradient)  # type: ignore[no-untyped-call]

    for module in embeddings:
        module.register_forward_hook(watch)


class _CalledBack(torch.autograd.Function):
    """Does nothing, and calls a function when the backward pass comes by."""

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
    """Copy a model with tensors of the same shapes, and if wanted with gradients, as from the second batch of a step on."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
        if gradients and tensor.requires_grad:
            memo[id(tensor)].grad = torch.empty_like(empty)
    return copy.deepcopy(model, memo)


def _features(column: Column) -> dict[str, Any]:
    ones = torch.ones(column.num_rows, column.num_tokens, dtype=torch.long, device="cpu")
    return {"input_ids": ones, "attention_mask": ones.clone(), "task": column.role, "modality": "text"}
