"""LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685) for a SentenceTransformer: add, merge, save."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Router, Transformer
from torch import nn

from embedtune.errors import OptionalDependencyError
from embedtune.models.quantized import dequantize, is_quantized, merge_quantized
from embedtune.models.repository import quiet_transformers

if TYPE_CHECKING:
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

TUNED = "tuned"  # peft's name for the adapter that load_model(lora=...) adds

# What can be merged into plain weights, and put on the base model again from the adapter's file alone. The other settings of a
# LoraConfig keep something outside of the merged layers; the other initialisations change the base by chance or by data.
_SETTINGS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "fan_in_fan_out", "use_rslora", "use_dora", "init_lora_weights"),
    *(
        "task_type",
        "peft_type",
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    "runtime_config",
}
_STARTS = (True, False, "gaussian", "orthogonal", "olora", "pissa")


def require_peft(purpose: str) -> None:
    """Raise an ``OptionalDependencyError`` if peft is not installed."""
    if find_spec("peft") is None:
        raise OptionalDependencyError("peft", extra="lora", purpose=purpose)


def transformers_of(model: SentenceTransformer) -> Iterator[tuple[str, Any]]:
    """Yield each ``Transformer`` module with its route, which is empty without a ``Router``."""
    for module in model.children():
        if isinstance(module, Transformer):
            yield "", module
        elif isinstance(module, Router):
            for route, parts in module.sub_modules.items():
                yield from ((route, part) for part in parts if isinstance(part, Transformer))


def has_adapters(model: SentenceTransformer) -> bool:
    """Return whether the model has adapters."""
    return any(getattr(part.model, "_hf_peft_config_loaded", False) for _, part in transformers_of(model))


def add_lora(model: SentenceTransformer, lora: bool | LoraConfig | str | Path) -> None:
    """Attach a LoRA to each transformer of the model, and freeze everything else.

    Args:
        model: Changed in place.
        lora: True for rank 16 on every linear layer of the blocks, a ``LoraConfig``, or the folder ``adapters`` of a
            saved model, to continue training it.
    """
    require_peft("lora=")
    if not isinstance(lora, (bool, str, Path)):
        check_mergeable(lora)
    if not any(True for _ in transformers_of(model)):
        raise ValueError(
            f"lora={lora!r} needs a transformer, and the model has none ({type(model[0]).__name__}). Leave it out: all weights of "
            "such a model are trained at little cost."
        )
    for route, part in transformers_of(model):
        with warnings.catch_warnings():  # jina-embeddings-v3 keeps its own adapter
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            if isinstance(lora, (str, Path)):
                load_adapter(part.model, adapter_folder(lora, route, TUNED), name=TUNED)
            else:
                part.model.add_adapter(_config(part.model, lora), adapter_name=TUNED)
        check_mergeable(part.model.peft_config[TUNED])
        active = list(part.model.peft_config)
        part.model.set_adapter(active if len(active) > 1 else TUNED)
    train_only(model, f".{TUNED}.")


def train_only(model: SentenceTransformer, marker: str) -> None:
    """Train the parameters whose name contains ``marker``; freeze the rest and poolers, which no embedding uses."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(marker in name and ".pooler." not in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()  # small updates are lost in bfloat16


def adapter_folder(root: str | Path, route: str, name: str) -> Path:
    """Return the folder of one adapter inside the folder ``adapters`` of a saved model."""
    folder = Path(root, route, name)
    if not all((folder / file).is_file() for file in ("adapter_config.json", "adapter_model.safetensors")):
        raise FileNotFoundError(
            f"There is no adapter in {str(folder)!r}. Pass lora= the folder 'adapters' of a saved LoRA model, and load the model "
            "that it was trained on."
        )
    return folder


def load_adapter(backbone: Any, source: str | Path, *, name: str, **options: Any) -> None:
    """Load a trainable adapter, and raise a ``ValueError`` if a tensor is missing."""
    with quiet_transformers():
        info = backbone.load_adapter(str(source), adapter_name=name, is_trainable=True, **options)
    missing = sorted(key for key in info.missing_keys if f".{name}." in key)
    if missing:
        missing = _load_magnitudes(backbone, Path(source, "adapter_model.safetensors"), missing, name)
    if missing:
        raise ValueError(
            f"The adapter {str(source)!r} lacks {len(missing)} tensors, such as {missing[0]!r}. Download or save it again."
        )


def _load_magnitudes(backbone: nn.Module, file: Path, missing: list[str], name: str) -> list[str]:
    """Load DoRA's magnitudes, whose names in peft's format transformers does not know; return what is still missing."""
    tensors = load_file(file) if file.is_file() else {}
    for key in missing:
        saved = tensors.get("base_model.model." + key.removesuffix(f".{name}.weight"))
        if saved is not None and "lora_magnitude_vector" in key:
            backbone.get_parameter(key).data.copy_(saved)
            missing = [other for other in missing if other != key]
    return missing


def check_mergeable(config: Any) -> None:
    """Raise an error for an adapter that cannot be saved as plain weights, or not be loaded again."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise TypeError(f"lora={config!r} must be True, a peft.LoraConfig or the folder of a saved adapter.")
    plain = LoraConfig()
    changed = [f.name for f in fields(config) if getattr(config, f.name) != getattr(plain, f.name, None)]
    others = sorted(name for name in changed if name not in _SETTINGS)
    if others:
        raise ValueError(
            f"A LoRA with {', '.join(f'{name}={getattr(config, name)!r}' for name in others)} cannot be merged into a plain model: "
            f"leave out {' and '.join(others)}."
        )
    if config.init_lora_weights not in _STARTS:
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} changes the base by chance or by data, so that the saved adapter would "
            f"not fit it again. Use one of {_STARTS}."
        )


def adopt_adapters(model: SentenceTransformer) -> None:
    """Take over adapters of ``model.add_adapter`` or ``get_peft_model``, which saves them unmerged, by unwrapping the model.

    Raises:
        TypeError: If an adapter is not a LoRA.
        ValueError: If a LoRA cannot be merged.
    """
    for _, part in transformers_of(model):
        for config in getattr(part.model, "peft_config", {}).values():
            check_mergeable(config)
        if hasattr(part.model, "get_base_model"):
            configs, part.model = part.model.peft_config, part.model.get_base_model()
            part.model.peft_config, part.model._hf_peft_config_loaded = configs, True


def _config(backbone: Any, lora: bool | LoraConfig) -> LoraConfig:
    """Return a copy of the configuration, which peft will modify."""
    from peft import LoraConfig

    if isinstance(lora, LoraConfig):
        return copy.deepcopy(lora)
    excluded = ".*pooler.*" if getattr(backbone, "pooler", None) is not None else None
    return LoraConfig(r=16, lora_alpha=32, target_modules=_linear_layers(backbone), exclude_modules=excluded)


def _linear_layers(backbone: nn.Module) -> list[str]:
    """Return the names of the linear layers, ignoring existing adapters; in a multimodal model those of its language model."""
    names = (name for name, module in backbone.named_modules() if isinstance(module, nn.Linear) and "lora_" not in name)
    linear = [name.removesuffix(".base_layer") for name in names if "pooler" not in name]
    if getattr(backbone, "language_model", None) is not None:  # towers have layers of the same names
        return sorted(name for name in linear if name.startswith("language_model."))
    return sorted({name.rpartition(".")[2] for name in linear})


def merged_copy(model: SentenceTransformer) -> SentenceTransformer:
    """Return a copy of the model with each LoRA merged into the weights.

    Tensors without a LoRA are shared with the given model, which is not changed.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    merged = copy.copy(model)
    merged._modules = {name: copy.deepcopy(child, shared) for name, child in model.named_children()}
    for _, part in transformers_of(merged):
        _merge(part.model)
    return merged


def _merge(backbone: Any) -> None:
    from peft.tuners.lora import LoraLayer

    for name, layer in list(backbone.named_modules()):
        if not isinstance(layer, LoraLayer):
            continue
        if is_quantized(layer.get_base_layer()):
            backbone.set_submodule(name, merge_quantized(layer))
            continue
        private: Any = copy.deepcopy(layer)
        private.float().merge(safe_merge=True)  # in float32, so that bfloat16 rounds once
        backbone.set_submodule(name, private.get_base_layer().to(layer.get_base_layer().weight.dtype))
    dequantize(backbone)
    # With these attributes save_pretrained would write adapters, or wrong names.
    backbone._hf_peft_config_loaded = False
    for attribute in ("peft_config", "_weight_conversions"):
        backbone.__dict__.pop(attribute, None)


def save_adapters(model: SentenceTransformer, folder: Path) -> None:
    """Write every adapter to ``folder/<route>/<name>`` in peft's format."""
    from peft import get_peft_model_state_dict

    for route, part in transformers_of(model):
        for name, config in getattr(part.model, "peft_config", {}).items():
            target = folder / route / name
            target.mkdir(parents=True, exist_ok=True)
            config.save_pretrained(str(target))
            state = get_peft_model_state_dict(part.model, adapter_name=name, save_embedding_layers=False)
            tensors = {f"base_model.model.{key}": value.detach().contiguous() for key, value in state.items()}
            save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
