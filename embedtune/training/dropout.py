"""The dropout of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout probability of every layer."""
    for module, name in _places(model):
        setattr(module, name, probability)


@contextmanager
def dropout_within(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Set the dropout probability of every layer within the block. None leaves them as they are."""
    before = [(module, name, getattr(module, name)) for module, name in _places(model)]
    if probability is not None:
        set_dropout(model, probability)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
        elif isinstance(getattr(module, "attention_dropout", None), float):  # decoders pass a number to the kernel
            yield module, "attention_dropout"
