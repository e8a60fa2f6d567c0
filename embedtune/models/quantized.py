"""QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): a LoRA over a base in 4 bits, saved as plain weights."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from embedtune.errors import OptionalDependencyError

NF4 = "nf4"


def weights_options(dtype: str, *, lora: Any, device: str | None) -> dict[str, Any]:
    """Return what ``from_pretrained`` is told about the weights.

    Raises:
        ValueError: If the weights are to be in 4 bits without a LoRA, or without an NVIDIA GPU; or in something unknown.
        OptionalDependencyError: If the package for 4 bits is not installed.
    """
    if dtype != NF4:
        if not isinstance(dtype, str) or not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype={dtype!r} must be a name, such as 'float32', 'bfloat16', 'float16' or {NF4!r}.")
        return {"dtype": dtype, "use_safetensors": True}
    _check_possible(lora, device)
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": "bfloat16", "use_safetensors": True, "quantization_config": four_bits}


def _check_possible(lora: Any, device: str | None) -> None:
    if lora is False:
        raise ValueError(f"dtype={NF4!r} is for the frozen base under a LoRA. Pass lora=True, or dtype='bfloat16'.")
    if not torch.cuda.is_available() or torch.device(device or "cuda").type != "cuda":
        where = f"device={device!r} was given" if torch.cuda.is_available() else "PyTorch sees none here"
        raise ValueError(f"dtype={NF4!r} needs an NVIDIA GPU, and {where}. Use dtype='bfloat16' with the LoRA instead.")
    if find_spec("bitsandbytes") is None:
        raise OptionalDependencyError("bitsandbytes", extra="qlora", purpose=f"dtype={NF4!r}")


def is_quantized(layer: Any) -> bool:
    """Return whether the weights of a layer are in 4 bits."""
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def merge_quantized(layer: Any) -> nn.Linear:
    """Return a plain layer with the LoRA of a layer in 4 bits merged, on the CPU."""
    base = layer.get_base_layer()
    weight = _weight(base).float()
    for name in layer.active_adapters:
        variant = layer.lora_variant.get(name)
        weight = variant.merge_safe(layer, name, weight) if variant else weight + layer.get_delta_weight(name)
    return _linear(weight.to(base.weight.quant_state.dtype), base.bias)


def dequantize(backbone: Any) -> None:
    """Replace the layers in 4 bits that have no LoRA by plain ones, and forget that the model was in 4 bits."""
    for name, layer in list(backbone.named_modules()):
        if is_quantized(layer):
            backbone.set_submodule(name, _linear(_weight(layer), layer.bias))
    if getattr(backbone, "hf_quantizer", None) is not None:
        del backbone.config.quantization_config
        for attribute in ("hf_quantizer", "is_quantized", "is_loaded_in_4bit", "quantization_method"):
            backbone.__dict__.pop(attribute, None)


def _weight(layer: Any) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    layer.state_dict()  # a forward pass on a CPU packs the weights anew, in a form of its own, and this takes it back
    weight: torch.Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().cpu(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().cpu(), requires_grad=False)
    return linear
