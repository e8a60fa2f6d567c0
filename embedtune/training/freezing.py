"""Layers that keep their weights during training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from embedtune.models.lora import transformers_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def lower_layers(model: SentenceTransformer, share: float) -> list[nn.Parameter]:
    """Return the parameters of the embeddings and of the lower layers of every transformer in a model.

    Empty for a model of which some parameters are frozen already: a LoRA, a frozen index, or your own choice.

    Args:
        model: The model.
        share: How many of the layers, from 0 (not even the embeddings) to 1.
    """
    if share == 0 or not all(parameter.requires_grad for parameter in model.parameters()):
        return []
    return [parameter for _, part in transformers_of(model) for parameter in _below(part.model, share)]


def freeze_lower_layers(model: SentenceTransformer, share: float) -> list[nn.Parameter]:
    """Freeze what `lower_layers` returns, and return it."""
    frozen = lower_layers(model, share)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def _below(transformer: nn.Module, share: float) -> Iterator[nn.Parameter]:
    """Yield the parameters that come before the first trained layer: transformers define embeddings first, then the layers."""
    stacks = [module for module in transformer.modules() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    trained = {id(parameter) for layer in layers[int(share * len(layers)) :] for parameter in layer.parameters()}
    if not trained:
        return iter(())
    return itertools.takewhile(lambda parameter: id(parameter) not in trained, transformer.parameters())
