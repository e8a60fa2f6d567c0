"""Checkpoints of models with a LoRA, and detection of routes that share weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from embedtune.models.lora import has_adapters, transformers_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TRAINED_WEIGHTS = "trained.safetensors"


def save_trained_weights(model: SentenceTransformer, folder: str | Path) -> None:
    """Write the trained parameters, tied ones once. Does nothing for a model without adapters.

    The checkpoint's model has its adapters merged, and training cannot go on from merged weights.
    """
    path = Path(folder, TRAINED_WEIGHTS)
    path.unlink(missing_ok=True)  # a file of another run in the same folder
    if has_adapters(model):
        trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, path)


def load_trained_weights(model: SentenceTransformer, folder: str | Path) -> bool:
    """Load the trained parameters into the model, and return whether the checkpoint has any.

    Raises:
        ValueError: If the checkpoint belongs to another model.
    """
    path = Path(folder, TRAINED_WEIGHTS)
    if not has_adapters(model) and not path.exists():
        return False
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    saved = load_file(path) if path.exists() else {}
    if saved.keys() != trained.keys():
        raise ValueError(
            f"The checkpoint {str(folder)!r} has {len(saved)} tensors in {TRAINED_WEIGHTS}, but this model trains other ones "
            f"({len(trained)}). Load the model with the same arguments (lora=, train=, mode=) as in the run that wrote it."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
    return True


def is_tied(model: SentenceTransformer) -> bool:
    """Return whether several routes share parameters."""
    backbones = [part.model for route, part in transformers_of(model) if route]
    owned = [{id(parameter) for parameter in backbone.parameters()} for backbone in backbones]
    return len(owned) > 1 and bool(set.intersection(*owned))
