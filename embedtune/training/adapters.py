"""What a checkpoint holds besides the model: the weights of a LoRA and of the loss. Detection of routes that share weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from embedtune.models.lora import has_adapters, transformers_of

TRAINED_WEIGHTS, LOSS_WEIGHTS = "trained.safetensors", "loss.safetensors"


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


def save_loss_weights(loss: nn.Module | Mapping[str, nn.Module], folder: str | Path) -> None:
    """Write the weights of a loss, such as a classifier or a learned temperature. Does nothing for a loss without any."""
    path = Path(folder, LOSS_WEIGHTS)
    path.unlink(missing_ok=True)
    if weights := _loss_weights(loss):
        save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, path)


def load_loss_weights(loss: nn.Module | Mapping[str, nn.Module], folder: str | Path) -> None:
    """Load the weights of a loss.

    Raises:
        ValueError: If the checkpoint has those of another loss, or none.
    """
    path, weights = Path(folder, LOSS_WEIGHTS), _loss_weights(loss)
    saved = load_file(path) if path.exists() else {}
    if {name: tensor.shape for name, tensor in saved.items()} != {name: t.shape for name, t in weights.items()}:
        raise ValueError(
            f"The checkpoint {str(folder)!r} has {len(saved)} tensors in {LOSS_WEIGHTS}, but this loss has other ones "
            f"({len(weights)}). Resume with the loss of the run that wrote it."
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(saved[name])


def _loss_weights(loss: nn.Module | Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of one or several losses, without those of models."""
    parts = loss if isinstance(loss, Mapping) else {"": loss}
    seen = {
        id(tensor)
        for part in parts.values()
        for module in part.modules()
        if isinstance(module, SentenceTransformer)
        for tensor in (*module.parameters(), *module.buffers())
    }
    weights: dict[str, Tensor] = {}
    for key, part in parts.items():
        for prefix, module in part.named_modules():  # not state_dict(): a sharded model would gather all of its weights
            kept = [(name, b) for name, b in module.named_buffers(recurse=False) if name not in _not_saved(module)]
            for name, tensor in [*module.named_parameters(recurse=False), *kept]:
                if id(tensor) not in seen:
                    seen.add(id(tensor))  # datasets may share a loss
                    weights[f"{key}/{prefix}.{name}"] = tensor
    return weights


def _not_saved(module: nn.Module) -> set[str]:
    return module._non_persistent_buffers_set


def is_tied(model: SentenceTransformer) -> bool:
    """Return whether several routes share parameters."""
    backbones = [part.model for route, part in transformers_of(model) if route]
    owned = [{id(parameter) for parameter in backbone.parameters()} for backbone in backbones]
    return len(owned) > 1 and bool(set.intersection(*owned))
