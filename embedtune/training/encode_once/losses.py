"""Losses on embeddings that exist already: each distinct text is encoded once, and the loss sees the rows it knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin, RandContext, uses_gradient_cache
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from embedtune.training.losses import RetrievalLoss

Loss = Tensor | dict[str, Tensor]

# The names under which losses hold the model.
_MODEL_NAMES = ("model", "sentence_embedder")


def takes_embeddings(loss: nn.Module | Mapping[str, nn.Module]) -> bool:
    """Say whether a loss is a function of the columns' embeddings and the labels, and of nothing else of the model's."""
    if isinstance(loss, Mapping):
        return all(takes_embeddings(part) for part in loss.values())
    if type(loss) is MatryoshkaLoss:
        return takes_embeddings(loss.get_submodule("loss"))
    if isinstance(loss, CachedMultipleNegativesRankingLoss):  # the cached loss that computes it from embeddings alone
        return type(loss).forward is CachedMultipleNegativesRankingLoss.forward
    # A subclass that overrides forward() may do more there than embed the columns.
    defines = next(
        (c for c in type(loss).__mro__ if {"forward", "compute_loss_from_embeddings"} & vars(c).keys()), nn.Module
    )
    return "compute_loss_from_embeddings" in vars(defines) and not uses_gradient_cache(loss)


def loss_of_columns(loss: nn.Module, columns: list[Tensor], labels: Tensor | None, *, model: nn.Module) -> Loss:
    """Compute a loss from the embeddings of its columns.

    embedtune's losses are asked for just that. Others may prepare their labels first, so they compute all of it, with
    something in the place of the model that has the embeddings already.

    Args:
        loss: One that `takes_embeddings`.
        columns: A tensor of shape ``(batch_size, dim)`` for each column.
        labels: What the loss compares them with.
        model: The model that is trained.
    """
    if isinstance(loss, RetrievalLoss):
        return loss.compute_loss_from_embeddings(columns, labels)
    with _in_place_of_the_model(_Embedded(model), loss):
        value: Loss = loss([{"sentence_embedding": column} for column in columns], labels)
    return value


class _Embedded(nn.Module):
    """Returns the embeddings that it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.get_embedding_dimension: Any = model.get_embedding_dimension

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(features)


@contextmanager
def _in_place_of_the_model(embedded: _Embedded, loss: nn.Module) -> Iterator[None]:
    """Let a loss, and those inside it, see another model. What it keeps from step to step stays its own."""
    holders = [(part, name) for part in _losses(loss) for name in _MODEL_NAMES if name in part._modules]
    models = [part._modules[name] for part, name in holders]
    for part, name in holders:
        part._modules[name] = embedded
    try:
        yield
    finally:
        for (part, name), model in zip(holders, models, strict=True):
            part._modules[name] = model


def _losses(loss: nn.Module) -> Iterator[nn.Module]:
    """Yield a loss and the losses inside it, but no part of the model."""
    yield loss
    for name, child in loss.named_children():
        if name not in _MODEL_NAMES:
            yield from _losses(child)


def embed_texts(model: nn.Module, parts: list[dict[str, Any]]) -> Tensor:
    """Encode the parts of a batch, and return the vectors of all texts, of shape ``(num_texts, dim)``."""
    return torch.cat([model(dict(part))["sentence_embedding"] for part in parts])


def _steps(parts: list[dict[str, Any]], *, together: bool) -> list[list[int]]:
    """Say which parts are encoded in one step: each alone, or, with several processes, the last of each route together.

    Gradients are exchanged in the last step, which must reach every parameter.
    """
    last = sorted({part.get("task"): number for number, part in enumerate(parts)}.values())
    if not together or len(last) == 1:
        return [[number] for number in range(len(parts))]
    return [[number] for number in range(len(parts)) if number not in last] + [last]


class GradientCachedLoss(CachedLossMixin, nn.Module):
    """Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983) for any loss that `takes_embeddings`.

    The parts of a batch are encoded without a graph; the loss is computed, and its gradient with respect to the vectors
    kept; then each part is encoded again, with the same dropout, and its gradient passed on. The activations of one part
    are in memory at a time, for about a third more time.

    Args:
        model: The model that encodes, with whatever is wrapped around it.
        loss: The loss.
        rows: Which text stands in each row and column, of shape ``(batch_size, num_columns)``.
        trained: The model without the wrapping.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, rows: Tensor, *, trained: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.loss: nn.Module = loss
        self.rows: Tensor = rows
        self.trained = trained
        self.mini_batch_size = 1
        self.components: dict[str, Tensor] = {}
        self._order: list[int] = []
        self._sizes: list[int] = []

    def forward(self, parts: list[dict[str, Any]], labels: Tensor | None) -> Tensor:
        """Return the loss, whose backward pass encodes the parts again."""
        steps = _steps(parts, together=isinstance(self.model, DistributedDataParallel))
        self._order, self._sizes = [number for step in steps for number in step], []
        # One row for the superclass, because the collator has cut the batch already.
        features = [{"input_ids": parts[0]["input_ids"][:1], "parts": [parts[i] for i in step]} for step in steps]
        loss: Tensor = CachedLossMixin.forward_cached(self, features, labels)
        return loss

    def embed_minibatch(
        self,
        sentence_feature: dict[str, Any],
        begin: int,  # noqa: ARG002  # the superclass's signature
        end: int,  # noqa: ARG002
        with_grad: bool,
        copy_random_state: bool,
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:
        """Encode the parts of one step."""
        with nullcontext() if random_state is None else random_state, torch.set_grad_enabled(with_grad):
            state = RandContext(sentence_feature["input_ids"]) if copy_random_state else None
            vectors = [self.model(dict(part))["sentence_embedding"] for part in sentence_feature["parts"]]
        if not with_grad:
            self._sizes += [len(part) for part in vectors]
        return torch.cat(vectors), state

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss from the vectors of the steps, and pass its gradient on to them."""
        vectors: Any = torch.cat([rep for step in reps for rep in step])
        vectors = vectors.split(self._sizes)
        texts = torch.cat([part for _, part in sorted(zip(self._order, vectors, strict=True), key=itemgetter(0))])
        columns = [texts[column] for column in self.rows.unbind(dim=1)]
        if uses_gradient_cache(self.loss):
            return self._by_the_loss_itself(columns, labels, with_backward=with_backward)
        loss = loss_of_columns(self.loss, columns, labels, model=self.trained)
        if isinstance(loss, dict):
            self.components = {name: value.detach() for name, value in loss.items()}
            loss = torch.stack(list(loss.values())).sum()
        if with_backward:
            torch.autograd.backward(loss)
            loss = loss.detach()
        return loss

    def _by_the_loss_itself(self, columns: list[Tensor], labels: Tensor | None, *, with_backward: bool) -> Tensor:
        """Let a cached loss of sentence-transformers compute its loss in its own small steps."""
        cached: Any = self.loss
        while isinstance(cached, MatryoshkaLoss):
            cached = cached.loss
        if not with_backward:
            value: Tensor = cached.calculate_loss([[column] for column in columns], labels)
            return value
        leaves = [column.detach().requires_grad_() for column in columns]
        loss: Tensor = cached.calculate_loss([[leaf] for leaf in leaves], labels, with_backward=True)
        torch.autograd.backward(columns, [leaf.grad for leaf in leaves])
        return loss
