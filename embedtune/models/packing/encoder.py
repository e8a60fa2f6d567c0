"""Texts end to end instead of padded to the longest: no computing on padding, the same vectors."""

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

logger = logging.getLogger(__name__)

Features = dict[str, Any]

# Of different lengths, so that texts that see each other, or wrong positions, change the vectors.
_PROBE = ["a", "Which of the two is older, and by how much?", "The old one. " * 8, "b c", "Is it?"]

# A larger block of memory is mapped anew for each tensor, page by page, by the allocator of Linux (DEFAULT_MMAP_THRESHOLD_MAX
# of glibc): with many tokens at once a fifth of a step goes there.
_LARGEST_REUSED_BLOCK = 2**25

# Each pass adds to the gradients of all weights. By arithmetic, not measured: that may cost what is saved where tokens are fewer.
_FEWEST_TOKENS = 2048

_verdicts: weakref.WeakKeyDictionary[nn.Module, dict[str | None, bool]] = weakref.WeakKeyDictionary()


def pack(features: Mapping[str, Any], *, position_offset: int = 0) -> Features:
    """Lay the texts of a padded batch end to end.

    Args:
        features: What ``SentenceTransformer.preprocess`` returns, with an ``attention_mask`` of shape
            ``(num_texts, width)`` in which every text has a token.
        position_offset: The position of a first token.

    Returns:
        What ``SentenceTransformer.forward`` takes inside of `packed_attention`: tensors of shape ``(1, num_tokens)``.
    """
    inside = features["attention_mask"].bool()
    packed = {
        key: value[inside].unsqueeze(0) if isinstance(value, Tensor) and value.shape == inside.shape else value
        for key, value in features.items()
        if key != "attention_mask"
    }
    lengths = inside.sum(dim=1)
    packed["position_ids"] = (inside.cumsum(dim=1) - 1 + position_offset)[inside].unsqueeze(0)
    packed["cu_seq_lens_q"] = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)  # what Pooling knows flat inputs by
    packed[TEXT_LENGTHS] = tuple(lengths.tolist())
    return packed


def packs(
    features: Mapping[str, Any], *, max_tokens: int | None = None, position_offset: int = 0
) -> Iterator[tuple[Tensor, Features]]:
    """Lay the texts of a padded batch end to end, sorted by length and in parts of at most so many tokens.

    Args:
        features: What `pack` takes.
        max_tokens: How many tokens a part may have; a longer text stands alone. No limit if None.
        position_offset: The position of a first token.

    Yields:
        Which texts are in a part, and what `pack` makes of them.
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
    """Cut texts into parts of at most ``max_tokens`` tokens."""
    start = total = 0
    for end, length in enumerate(lengths):
        if max_tokens is not None and end > start and total + length > max_tokens:
            yield order[start:end]
            start, total = end, 0
        total += length
    yield order[start:]


def tokens_per_pass(model: nn.Module, device: torch.device | str) -> int | None:
    """Return how many tokens should go through a model at once on a CPU, where more are slower; None elsewhere.

    The widest tensor of so many tokens is one whose memory is used again.
    """
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    if torch.device(device).type != "cpu" or not widths:
        return None
    return max(_FEWEST_TOKENS, _LARGEST_REUSED_BLOCK // (4 * max(widths)))


def position_offset(model: SentenceTransformer) -> int:
    """Return the position of a first token: after the padding's in the family of RoBERTa, else 0."""
    for module in model.modules():
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            return padding + 1
    return 0


def is_padded(features: Mapping[str, Any]) -> bool:
    """Say whether features are those of padded texts that each have a token, which is what `pack` takes."""
    mask, ids = features.get("attention_mask"), features.get("input_ids")
    return (
        isinstance(mask, Tensor)
        and mask.ndim == 2
        and isinstance(ids, Tensor)
        and ids.shape == mask.shape
        and bool(mask.any(1).all())
    )


def can_pack(model: SentenceTransformer, task: str | None = None) -> bool:
    """Say whether texts end to end get the vectors that padded texts get: it is tried out on a few short texts.

    Attention that looks only so far, positions counted otherwise, modules of one's own: many things can stand in the
    way, and a wrong vector is worse than a slow one.

    Args:
        model: The model, with whatever modules.
        task: The route of a ``Router``.
    """
    parts = [part for _, part in transformers_of(model)]
    compiled = getattr(model, "_compiled_call_impl", None) is not None  # and would be compiled for each batch
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
    except Exception as error:  # whatever a module of the user's own makes of it, it is a no
        logger.debug("Texts cannot be packed for this model: %r", error)
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
    show_progress_bar: bool = False,
) -> NDArray[np.float32]:
    """Encode as ``SentenceTransformer.encode`` does, without padding.

    Args:
        model: One that `can_pack`.
        texts: What to encode.
        prompt: Put before each text.
        task: The route of a ``Router``.
        batch_size: How many texts go through the model at once.
        show_progress_bar: Show the progress.

    Returns:
        Vectors of shape ``(num_texts, dim)``.
    """
    model.eval()
    order = np.argsort([-len(text) for text in texts], kind="stable")
    offset = position_offset(model)
    limit = tokens_per_pass(model, model.device)
    vectors: list[Tensor] = []
    places: list[NDArray[np.int64]] = []
    computing: list[Tensor] = []
    with packed_attention(model):
        for start in trange(0, len(texts), batch_size, desc="Batches", disable=not show_progress_bar):
            batch = order[start : start + batch_size]
            features = model.preprocess([texts[i] for i in batch], prompt=prompt, task=task)
            parts = [(torch.arange(len(batch)), features)]
            if is_padded(features):
                parts = list(packs(features, max_tokens=limit, position_offset=offset))
            # Only now ask for the batch before: a GPU has been computing it while the CPU tokenised this one.
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
