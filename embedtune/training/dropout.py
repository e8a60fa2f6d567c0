"""The dropout of a model."""

from __future__ import annotations

from torch import nn


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the dropout probability of every layer."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):  # decoders pass a number to the kernel
            setattr(module, "attention_dropout", probability)  # noqa: B010  # mypy expects a module
