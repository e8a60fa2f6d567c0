"""Losses computed from embeddings that already exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sentence_transformers.base.losses.gradcache import uses_gradient_cache
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import Tensor, nn

from embedtune.training.losses import RetrievalLoss, models_of

Loss = Tensor | dict[str, Tensor]


def takes_embeddings(loss: nn.Module | Mapping[str, nn.Module]) -> bool:
    """Return whether a loss depends only on its columns' embeddings and the labels."""
    if isinstance(loss, Mapping):
        return all(takes_embeddings(part) for part in loss.values())
    if type(loss) is MatryoshkaLoss:
        return takes_embeddings(loss.get_submodule("loss"))
    # A subclass that overrides forward() may do more there than embed the columns.
    defines = next(
        (c for c in type(loss).__mro__ if {"forward", "compute_loss_from_embeddings"} & vars(c).keys()), nn.Module
    )
    return "compute_loss_from_embeddings" in vars(defines) and not uses_gradient_cache(loss)


def loss_of_columns(loss: nn.Module, columns: list[Tensor], labels: Tensor | None, *, model: nn.Module) -> Loss:
    """Return a loss of embeddings.

    sentence-transformers' losses may prepare labels in ``forward``, so ``forward`` is called, with a stand-in for the model
    that returns the given embeddings.

    Args:
        loss: A loss that `takes_embeddings`.
        columns: One tensor of shape ``(batch_size, dim)`` per column.
        labels: The labels of the batch.
        model: The model that is trained.
    """
    if isinstance(loss, RetrievalLoss):
        return loss.compute_loss_from_embeddings(columns, labels)
    with _model_replaced(_Embedded(model), loss):
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
def _model_replaced(embedded: _Embedded, loss: nn.Module) -> Iterator[None]:
    """Replace the model of a loss, and of the losses inside it, within the block."""
    holders = list(models_of(loss))
    models = [part._modules[name] for part, name in holders]
    for part, name in holders:
        part._modules[name] = embedded
    try:
        yield
    finally:
        for (part, name), model in zip(holders, models, strict=True):
            part._modules[name] = model
