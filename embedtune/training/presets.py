"""Settings with which training fits a given memory."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from embedtune.models.lora import has_adapters
from embedtune.training.arguments import TuningArguments
from embedtune.training.memory import MemoryEstimate, estimate_memory

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset

# What is left to the CUDA context, to libraries' workspaces and to gaps between the allocator's blocks: an assumption.
_RESERVED, _USABLE = 1.0, 0.92
_GIB = 2**30


def settings_for(
    memory: str, *, model: SentenceTransformer, data: RetrievalDataset, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the first settings by which training fits, those that cost least first.

    Args:
        memory: For instance ``"24GB"``.
        model: What to train.
        data: What to train on.
        settings: Fixed by the user.

    Raises:
        ValueError: If nothing fits, or ``memory`` is no size.
    """
    budget = (_parsed(memory) * _USABLE - _RESERVED) * _GIB
    estimates: list[MemoryEstimate] = []
    for chosen in _candidates(model, settings):
        estimate = estimate_memory(model, TuningArguments(**(chosen | settings)), data=data, device="cuda")
        if estimate.total <= budget:
            return chosen | settings
        estimates.append(estimate)
    # Not always the last: over several batches of a step, gradients are there while activations are at their peak.
    smallest = min(estimates, key=lambda estimate: estimate.total)
    remedy = "" if has_adapters(model) else " Train a LoRA: load_model(..., lora=True)."
    raise ValueError(
        f"Training does not fit into {memory}: the smallest settings take\n{smallest}\n{remedy} Make shorter chunks, or lower "
        "max_seq_length."
    )


def _candidates(model: SentenceTransformer, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return settings from the fastest to the smallest; a batch is halved last, because it holds the negatives."""
    batch = settings.get("per_device_train_batch_size", TuningArguments.per_device_train_batch_size)
    steps = settings.get("gradient_accumulation_steps", 1)
    base: dict[str, Any] = {"bf16": _has_bf16()}
    checkpointed = base | {"gradient_checkpointing": True}
    found = [base, checkpointed]
    if find_spec("bitsandbytes") is not None and not has_adapters(model):
        checkpointed = checkpointed | {"optim": "paged_adamw_8bit"}
        found.append(checkpointed)
    while batch > 1 and "per_device_train_batch_size" not in settings:
        batch, steps = batch // 2, steps * 2
        halved = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        found.append(checkpointed | halved)
    return found


def _has_bf16() -> bool:
    """Say whether the accelerator computes in bfloat16; where there is none yet, assume so."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def _parsed(memory: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?\s*", memory, flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"memory={memory!r} is no size such as '24GB'.")
    return float(match[1])
