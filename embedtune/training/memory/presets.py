"""Settings with which training fits into a given memory."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from embedtune.models.lora import has_adapters
from embedtune.training.arguments import TuningArguments
from embedtune.training.loss_kinds import is_row_by_row
from embedtune.training.losses import LOSSES
from embedtune.training.memory.estimate import MemoryEstimate, estimate_memory

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset

# An assumption: the rest is for the CUDA context, workspaces of libraries and gaps between the allocator's blocks.
_RESERVED_GIB, _USABLE_SHARE = 1.0, 0.92
_GIB = 2**30

# Tokens per mini-batch if gradients are cached.
_MINI_BATCHES = (8192, 4096, 2048, 1024)


def arguments_for_gpu(
    memory: str, *, model: SentenceTransformer, data: RetrievalDataset, **settings: Any
) -> TuningArguments:
    """Choose precision, gradient checkpointing, optimizer and batch size so that training fits into a GPU.

    Tries in this order, and takes the first settings whose `estimate_memory` fits: bf16; gradient checkpointing; 8-bit paged
    AdamW, if bitsandbytes is installed and all weights are trained; the batch in pieces. If the batch holds the negatives,
    or you set its size, it stays whole and its gradients are cached (``mini_batch_num_tokens``); otherwise it is halved, with
    twice the accumulation.

    Args:
        memory: Memory of one GPU, for example ``"24GB"``. 8% and 1 GiB of it are left to the system.
        model: The model to train, with its LoRA if it has one.
        data: The training data. Its longest texts decide.
        **settings: Arguments of `TuningArguments` that are kept, such as ``output_dir``.

    Raises:
        ValueError: If nothing fits, or ``memory`` is not a size.

    Example:
        >>> import embedtune as et
        >>> pairs = [("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])]
        >>> data = et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
        >>> model = et.load_model("minilm", device="cpu")
        >>> arguments_for_gpu("8GB", model=model, data=data, output_dir="out", use_cpu=True).bf16
        True
    """
    budget = (_parse_gib(memory) * _USABLE_SHARE - _RESERVED_GIB) * _GIB
    estimates: list[MemoryEstimate] = []
    for chosen in _candidates(model, settings):
        args = TuningArguments(**(chosen | settings))
        estimate = estimate_memory(model, args, data=data, device="cuda")
        if estimate.total <= budget:
            return args
        estimates.append(estimate)
    # Not always the last: with accumulation, the gradients already exist when activations are at their peak.
    smallest = min(estimates, key=lambda estimate: estimate.total)
    remedy = "" if has_adapters(model) else "Train a LoRA (load_model(..., lora=True)), make "
    raise ValueError(
        f"Training does not fit into {memory}. The smallest settings need\n{smallest}\n{remedy or 'Make '}shorter chunks, or "
        "lower max_seq_length."
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
    size_is_set = "per_device_train_batch_size" in settings
    stays_whole = size_is_set or not is_row_by_row(LOSSES[args.loss](model))
    if stays_whole and args.encode_once and args.mini_batch_num_tokens is None:
        cached = [{"mini_batch_num_tokens": num_tokens} for num_tokens in _MINI_BATCHES]
        # Checkpointing and caching each take about a third more time, so both together come last.
        return found + [base | piece for base in (plain, checkpointed) for piece in cached]
    return found if size_is_set else found + [checkpointed | halved for halved in _halved(args)]


def _halved(args: TuningArguments) -> list[dict[str, Any]]:
    """Return smaller and smaller batches with the same number of rows per step."""
    batch, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return [
        {"per_device_train_batch_size": batch >> n, "gradient_accumulation_steps": steps << n}
        for n in range(1, batch.bit_length())
    ]


def _has_bf16() -> bool:
    """Return whether the GPU computes in bfloat16; True if there is none yet."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def _parse_gib(memory: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?\s*", memory, flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"memory={memory!r} is not a size such as '24GB'.")
    return float(match[1])
