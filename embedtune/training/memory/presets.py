"""Settings with which training fits a given memory."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from embedtune.models.lora import has_adapters
from embedtune.training.arguments import TuningArguments
from embedtune.training.encode_once.trainer import is_row_by_row
from embedtune.training.memory.estimate import MemoryEstimate, estimate_memory
from embedtune.training.trainer import LOSSES

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.training.losses import RetrievalLoss

# What is left to the CUDA context, to libraries' workspaces and to gaps between the allocator's blocks: an assumption.
_RESERVED, _USABLE = 1.0, 0.92
_GIB = 2**30

# Tokens of the pieces of a batch whose gradients are cached.
_PIECES = (8192, 4096, 2048, 1024)


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
    """Return settings from the fastest to the smallest."""
    plain: dict[str, Any] = {"bf16": _has_bf16()}
    checkpointed = plain | {"gradient_checkpointing": True}
    found = [plain, checkpointed]
    if find_spec("bitsandbytes") is not None and not has_adapters(model):
        small_states = {"optim": "paged_adamw_8bit"}
        plain, checkpointed = plain | small_states, checkpointed | small_states
        found.append(checkpointed)
    args = TuningArguments(**settings)
    chosen_batch = "per_device_train_batch_size" in settings
    if _keeps_its_batch(LOSSES[args.loss](model), args, chosen=chosen_batch):
        cached = [{"mini_batch_num_tokens": num_tokens} for num_tokens in _PIECES]
        # Each costs about a third more time, so both together come last.
        return found + [base | piece for base in (plain, checkpointed) for piece in cached]
    return found if chosen_batch else found + [checkpointed | halved for halved in _halved(args)]


def _keeps_its_batch(loss: RetrievalLoss, args: TuningArguments, *, chosen: bool) -> bool:
    """Say whether the batch stays whole, and its gradients are cached: it holds the negatives, or the user has chosen it."""
    return args.encode_once and args.mini_batch_num_tokens is None and (chosen or not is_row_by_row(loss))


def _halved(args: TuningArguments) -> list[dict[str, Any]]:
    """Return smaller and smaller batches, with as many rows to a step: the same gradient, where rows do not see each other."""
    batch, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return [
        {"per_device_train_batch_size": batch >> n, "gradient_accumulation_steps": steps << n}
        for n in range(1, batch.bit_length())
    ]


def _has_bf16() -> bool:
    """Say whether the accelerator computes in bfloat16; where there is none yet, assume so."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def _parsed(memory: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?\s*", memory, flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"memory={memory!r} is no size such as '24GB'.")
    return float(match[1])
