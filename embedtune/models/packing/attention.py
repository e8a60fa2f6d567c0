"""Attention over packed texts, without padding, as an attention implementation of transformers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from embedtune.models.lora import transformers_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKED = "embedtune_packed"
TEXT_LENGTHS = "text_lengths"
"""The argument of a model's forward with the number of tokens of each packed text."""

# The overhead of one kernel call, in pairs of tokens: padding that wastes fewer pairs is cheaper than another call. Measured on
# CPUs; estimated for accelerators, which attend to a million pairs in the tens of microseconds that a call takes.
_PAIRS_PER_CALL = 2**11
_PAIRS_PER_LAUNCH = 2**20

# On CPUs the kernel's backward pass is slower in bfloat16 than in float32 for texts shorter than this many tokens. The forward
# pass is not. Outside of inference mode float32 is used even without a graph: gradient checkpointing recomputes such layers.
_SHORT = 512

# Attention arguments of some models that packing does not implement.
_UNKNOWN = ("sliding_window", "position_bias", "softcap", "s_aux", "cache")


Run = tuple[int, ...]
"""The lengths of neighbouring texts that share one kernel call, padded to the longest if they differ."""


@functools.lru_cache(maxsize=64)
def runs_of(lengths: tuple[int, ...], device: str = "cpu") -> tuple[Run, ...]:
    """Group texts, best sorted by length, into few runs with little padding, as suits the kind of device."""
    most_waste = _PAIRS_PER_CALL if device == "cpu" else _PAIRS_PER_LAUNCH
    runs: list[list[int]] = []
    waste = longest = 0
    for length in lengths:
        if runs:
            wider = max(longest, length)
            added = len(runs[-1]) * (wider**2 - longest**2) + wider**2 - length**2
            if waste + added <= most_waste:
                runs[-1].append(length)
                waste, longest = waste + added, wider
                continue
        runs.append([length])
        waste, longest = 0, length
    return tuple(tuple(run) for run in runs)


def packed_attention_forward(
    module: nn.Module,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    *,
    text_lengths: tuple[int, ...] | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention within each text; without ``text_lengths``, the same as transformers' ``sdpa``.

    Args:
        module: The attention layer.
        query: Of shape ``(1, num_heads, num_tokens, head_dim)``.
        key: Of shape ``(1, num_key_heads, num_tokens, head_dim)``.
        value: Like ``key``.
        attention_mask: Of padded texts; None for packed texts.
        text_lengths: The number of tokens of each text.
        is_causal: Whether a token only attends to earlier ones; by default the layer's ``is_causal``.
        **kwargs: Dropout, scaling and whatever else the model passes.

    Returns:
        A tensor of shape ``(1, num_tokens, num_heads, head_dim)``, and None for the weights.

    Raises:
        NotImplementedError: If the layer passes an argument that packing does not implement.
    """
    output: Tensor
    if text_lengths is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **kwargs)
        return output, None
    if unknown := [name for name in _UNKNOWN if kwargs.get(name) is not None]:
        raise NotImplementedError(
            f"Attention with {unknown} is not implemented for packed texts. Encode this model with padding."
        )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    runs = runs_of(tuple(text_lengths), query.device.type)
    sizes = [sum(run) for run in runs]
    outputs = [
        _attend(module, run, *parts, causal=causal, **kwargs)
        for run, *parts in zip(runs, *(states.split(sizes, dim=2) for states in (query, key, value)), strict=True)
    ]
    return torch.cat(outputs, dim=1), None


def _attend(module: nn.Module, run: Run, *states: Any, causal: bool, **kwargs: Any) -> Tensor:
    """Return the output of one run, of shape ``(1, num_tokens, num_heads, head_dim)``.

    ``states`` are queries, keys and values, of shape ``(1, num_heads, num_tokens, head_dim)``.
    """
    shape = len(run), max(run)
    output: Tensor
    rounded = states[0].dtype == torch.bfloat16 and states[0].device.type == "cpu"
    if rounded and max(run) < _SHORT and not torch.is_inference_mode_enabled():
        # Autocast would round the states again.
        with torch.autocast("cpu", enabled=False):
            return _attend(module, run, *(part.float() for part in states), causal=causal, **kwargs).bfloat16()
    if min(run) == max(run):
        batch = [part[0].unflatten(1, shape).transpose(0, 1) for part in states]
        output, _ = sdpa_attention_forward(module, *batch, None, is_causal=causal, **kwargs)
        return output.reshape(1, -1, *output.shape[2:])
    inside, source, kept = _padding_of(run, states[0].device)
    batch = [part[0].index_select(1, source).unflatten(1, shape).transpose(0, 1) for part in states]
    # Padding comes last, so no token of a causal model attends to it.
    mask = None if causal else inside[:, None, None, :].expand(-1, 1, max(run), -1)
    output, _ = sdpa_attention_forward(module, *batch, mask, is_causal=causal, **kwargs)
    return output.flatten(0, 1).index_select(0, kept).unsqueeze(0)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the cached tensors are used in training, too
def _padding_of(run: Run, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mask of a padded run, the token for each position, and the positions that hold a token."""
    lengths = torch.tensor(run)
    columns = torch.arange(max(run))
    inside = columns < lengths[:, None]  # (num_texts, longest)
    first = (lengths.cumsum(0) - lengths)[:, None]
    source = torch.where(inside, first + columns, first).flatten()
    return inside.to(device), source.to(device), inside.flatten().nonzero().squeeze(1).to(device)


def _mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return the mask of padded texts, and None for packed texts, which ``text_lengths`` separates."""
    if attention_mask is None:
        return None
    mask: Tensor | None = sdpa_mask(attention_mask=attention_mask, **kwargs)
    return mask


AttentionInterface.register(PACKED, packed_attention_forward)
AttentionMaskInterface.register(PACKED, _mask)


@contextmanager
def packed_attention(model: SentenceTransformer) -> Iterator[None]:
    """Let the model accept packed texts beside padded ones.

    Keep the context open until the backward pass is over, because gradient checkpointing runs the layers again.
    """
    backbones = [part.model for _, part in transformers_of(model) if part.model.config._attn_implementation == "sdpa"]
    before = [_implementations(backbone.config) for backbone in backbones]
    for backbone in backbones:
        backbone.set_attn_implementation(_implementations(backbone.config, sdpa=PACKED))
    try:
        yield
    finally:
        for backbone, implementations in zip(backbones, before, strict=True):
            backbone.set_attn_implementation(implementations)


def _implementations(config: Any, *, sdpa: str = "sdpa") -> dict[str, Any]:
    """Return the attention of a configuration and of those inside it (towers may need another one than the text)."""
    parts = {key: getattr(config, key, None) for key in config.sub_configs}
    own = config._attn_implementation
    return {"": sdpa if own == "sdpa" else own} | {
        key: _implementations(part, sdpa=sdpa) for key, part in parts.items() if part is not None
    }
