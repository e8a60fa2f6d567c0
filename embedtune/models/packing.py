"""Texts end to end instead of padded to the longest: no computing on padding, the same vectors."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from tqdm.auto import trange

from embedtune.models.attention import TEXT_LENGTHS, packed_attention
from embedtune.models.lora import transformers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Features = dict[str, Any]

# Of different lengths, so that texts that see each other, or wrong positions, change the vectors.
_PROBE = ["a", "Which of the two is older, and by how much?", "The old one. " * 8, "b c", "Is it?"]

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
    vectors: list[Tensor] = []
    computing: list[Tensor] = []
    with packed_attention(model):
        for start in trange(0, len(texts), batch_size, desc="Batches", disable=not show_progress_bar):
            batch = [texts[i] for i in order[start : start + batch_size]]
            features = model.preprocess(batch, prompt=prompt, task=task)
            features = pack(features, position_offset=offset) if is_padded(features) else features
            features |= {"task": task} if task else {}
            # Only now ask for the batch before: a GPU has been computing it while the CPU tokenised this one.
            vectors += [part.cpu() for part in computing]
            computing = [model(batch_to_device(features, model.device))["sentence_embedding"].float()]
    vectors += [part.cpu() for part in computing]
    unordered = torch.cat(vectors)[:, : model.truncate_dim].numpy()
    encoded = np.empty_like(unordered)
    encoded[order] = unordered
    return encoded
