"""Packing: a batch without padding, with the same embeddings."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from tqdm.auto import trange

from embedtune.models.lora import transformers_of
from embedtune.models.packing.attention import TEXT_LENGTHS, packed_attention

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

logger: logging.Logger = logging.getLogger(__name__)

Features = dict[str, Any]

# Texts of different lengths: attention across texts, or wrong positions, would change their embeddings.
_PROBE = ["a", "Which of the two is older, and by how much?", "The old one. " * 8, "b c", "Is it?"]

# glibc maps larger blocks of memory anew for each tensor (DEFAULT_MMAP_THRESHOLD_MAX), which takes a fifth of a training step
# with many tokens.
_LARGEST_REUSED_BLOCK = 2**25

# Each pass adds to the gradients of all weights, which may cost more than it saves with fewer tokens (estimated, not measured).
_FEWEST_TOKENS = 2048

_verdicts: weakref.WeakKeyDictionary[nn.Module, dict[str | None, bool]] = weakref.WeakKeyDictionary()


def pack(features: Mapping[str, Any], *, position_offset: int = 0) -> Features:
    """Pack a padded batch.

    Args:
        features: From ``SentenceTransformer.preprocess``, with an ``attention_mask`` of shape ``(num_texts, width)`` in
            which every text has a token.
        position_offset: The position id of a text's first token.

    Returns:
        Features for ``SentenceTransformer.forward`` inside `packed_attention`, with tensors of shape ``(1, num_tokens)``.
    """
    inside = features["attention_mask"].bool()
    packed = {
        key: value[inside].unsqueeze(0) if isinstance(value, Tensor) and value.shape == inside.shape else value
        for key, value in features.items()
        if key != "attention_mask"
    }
    lengths = inside.sum(dim=1)
    packed["position_ids"] = (inside.cumsum(dim=1) - 1 + position_offset)[inside].unsqueeze(0)
    packed["cu_seq_lens_q"] = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)  # Pooling recognises packed inputs by it
    packed[TEXT_LENGTHS] = tuple(lengths.tolist())
    return packed


def pack_in_parts(
    features: Mapping[str, Any], *, max_tokens: int | None = None, position_offset: int = 0
) -> Iterator[tuple[Tensor, Features]]:
    """Pack a padded batch, sorted by length, in parts of at most ``max_tokens`` tokens.

    Args:
        features: As for `pack`.
        max_tokens: Tokens of a part; a longer text gets a part of its own. No limit if None.
        position_offset: As for `pack`.

    Yields:
        The indices of a part's texts, and its packed features.
    """
    lengths = features["attention_mask"].sum(dim=1)
    order = torch.argsort(lengths, stable=True)
    for rows in _within(order, lengths[order].tolist(), max_tokens):
        part = {
            key: value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == len(order) else value
            for key, value in features.items()
        }
        yield rows, pack(part, position_offset=position_offset)


def _within(order: Tensor, lengths: Sequence[int], max_tokens: int | None) -> Iterator[Tensor]:
    """Split texts into parts of at most ``max_tokens`` tokens."""
    start = total = 0
    for end, length in enumerate(lengths):
        if max_tokens is not None and end > start and total + length > max_tokens:
            yield order[start:end]
            start, total = end, 0
        total += length
    yield order[start:]


def tokens_per_pass(model: nn.Module, device: torch.device | str) -> int | None:
    """Return how many tokens to send through a model at once on a CPU, where more are slower; None elsewhere.

    With this many tokens the widest tensor fits into memory that the allocator reuses.
    """
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    if torch.device(device).type != "cpu" or not widths:
        return None
    return max(_FEWEST_TOKENS, _LARGEST_REUSED_BLOCK // (4 * max(widths)))


def position_offset(model: SentenceTransformer) -> int:
    """Return the position id of a first token: ``padding_idx + 1`` in models like RoBERTa, else 0."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding + 1
    return 0


def is_padded(features: Mapping[str, Any]) -> bool:
    """Return whether features are a padded batch in which every text has a token, as `pack` needs it."""
    mask, ids = features.get("attention_mask"), features.get("input_ids")
    return (
        isinstance(mask, Tensor)
        and mask.ndim == 2
        and isinstance(ids, Tensor)
        and ids.shape == mask.shape
        and bool(mask.any(1).all())
    )


def can_pack(model: SentenceTransformer, task: str | None = None) -> bool:
    """Return whether packed texts get the same embeddings as padded ones, by comparing a few short texts.

    Sliding windows, other position ids or custom modules may change them, and a wrong embedding is worse than a slow one.

    Args:
        model: The model, with any modules.
        task: The route of a ``Router``.
    """
    parts = [part for _, part in transformers_of(model)]
    compiled = getattr(model, "_compiled_call_impl", None) is not None  # would be recompiled for each batch
    if (
        not parts
        or compiled
        or any(getattr(part.model.config, "_attn_implementation", None) != "sdpa" for part in parts)
    ):
        return False
    verdicts = _verdicts.setdefault(model, {})
    if task not in verdicts:
        was_training = model.training
        model.eval()
        verdicts[task] = _gives_the_same(model, task)
        model.train(was_training)
    return verdicts[task]


@torch.no_grad()
def _gives_the_same(model: SentenceTransformer, task: str | None) -> bool:
    try:
        features = batch_to_device(model.preprocess(_PROBE, task=task), model.device)
        if not is_padded(features):
            return False
        features |= {"task": task} if task else {}
        with packed_attention(model):
            flat = model(pack(features, position_offset=position_offset(model)))["sentence_embedding"]
        padded = model(features)["sentence_embedding"]
    except Exception as error:  # a custom module may raise anything
        logger.debug("This model cannot encode packed texts: %r", error)
        return False
    tolerance = 3e-2 if padded.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return flat.shape == padded.shape and bool((flat - padded).norm() <= tolerance * padded.norm())


@torch.inference_mode()
def encode_packed(
    model: SentenceTransformer,
    texts: Sequence[str],
    *,
    prompt: str | None,
    task: str | None,
    batch_size: int,
    show_progress_bar: bool | None = None,
) -> NDArray[np.float32]:
    """Encode like ``SentenceTransformer.encode``, without padding.

    Args:
        model: A model for which `can_pack` is True.
        texts: The texts to encode.
        prompt: Put before each text.
        task: The route of a ``Router``.
        batch_size: Texts per batch.
        show_progress_bar: Show a progress bar; by default only in a terminal, after two seconds.

    Returns:
        Embeddings of shape ``(num_texts, dim)``.
    """
    model.eval()
    order = np.argsort([-len(text) for text in texts], kind="stable")
    offset = position_offset(model)
    limit = tokens_per_pass(model, model.device)
    vectors: list[Tensor] = []
    places: list[NDArray[np.int64]] = []
    computing: list[Tensor] = []
    with packed_attention(model):
        hidden = None if show_progress_bar is None else not show_progress_bar
        for start in trange(
            0, len(texts), batch_size, desc="Encoding", delay=2 * (hidden is None), leave=False, disable=hidden
        ):
            batch = order[start : start + batch_size]
            features = model.preprocess([texts[i] for i in batch], prompt=prompt, task=task)
            parts = [(torch.arange(len(batch)), features)]
            if is_padded(features):
                parts = list(pack_in_parts(features, max_tokens=limit, position_offset=offset))
            # Fetch the previous batch only now: the GPU computed it while the CPU tokenized this one.
            vectors += [part.cpu() for part in computing]
            computing = [_vectors(model, part, task) for _, part in parts]
            places += [batch[rows.numpy()] for rows, _ in parts]
    vectors += [part.cpu() for part in computing]
    unordered = torch.cat(vectors)[:, : model.truncate_dim].numpy()
    encoded = np.empty_like(unordered)
    encoded[np.concatenate(places)] = unordered
    return encoded


def _vectors(model: SentenceTransformer, features: Features, task: str | None) -> Tensor:
    features = features | ({"task": task} if task else {})
    vectors: Tensor = model(batch_to_device(features, model.device))["sentence_embedding"]
    return vectors.float()
