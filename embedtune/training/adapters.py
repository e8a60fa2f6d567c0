"""What training a LoRA or tied modules needs of a trainer: checkpoints that come back, and settings for several devices."""

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
    """Write the parameters that are trained, each tied one once; does nothing for a model without adapters.

    The model in the checkpoint has the adapters merged, and training cannot be continued from a sum.
    """
    path = Path(folder, TRAINED_WEIGHTS)
    path.unlink(missing_ok=True)  # of another run in the same folder, which would be taken for this one's
    if has_adapters(model):
        trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, path)


def load_trained_weights(model: SentenceTransformer, folder: str | Path) -> bool:
    """Read them back into the model, and say whether there were any.

    Raises:
        ValueError: If the checkpoint is not one of this model.
    """
    path = Path(folder, TRAINED_WEIGHTS)
    if not has_adapters(model) and not path.exists():
        return False
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    saved = load_file(path) if path.exists() else {}
    if saved.keys() != trained.keys():
        raise ValueError(
            f"The checkpoint {str(folder)!r} does not hold the {len(trained)} tensors that this model trains, but {len(saved)}"
            f" in {TRAINED_WEIGHTS}. Load the model with the same lora=, train= and mode= as in the run that wrote it."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
    return True


def is_tied(model: SentenceTransformer) -> bool:
    """Say whether several routes share parameters."""
    backbones = [part.model for route, part in transformers_of(model) if route]
    owned = [{id(parameter) for parameter in backbone.parameters()} for backbone in backbones]
    return len(owned) > 1 and bool(set.intersection(*owned))
