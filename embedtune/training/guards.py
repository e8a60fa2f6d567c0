"""Checks before a run, of what sentence-transformers would get wrong silently."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embedtune.dataset import RetrievalDataset
from embedtune.errors import refuse_name
from embedtune.training.columns import tables_of
from embedtune.training.losses import InBatchNegativesLoss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

# A few thousand chunks are enough to estimate the share, and take seconds.
_MAX_CHUNKS_COUNTED = 5_000


def check_inputs(model: Any, data: Any) -> None:
    """Raise a ``TypeError`` if the model is not loaded yet, or the data are not a `RetrievalDataset`."""
    refuse_name(model)
    if data is not None and not isinstance(data, RetrievalDataset):
        raise TypeError(
            f"data is a {type(data).__name__}. Make a RetrievalDataset with build_dataset(...) or "
            "RetrievalDataset.from_pairs(...), or pass a table of rows as train_dataset."
        )


def warn_about_cut_chunks(model: SentenceTransformer, data: RetrievalDataset, *, prompt: str = "") -> float:
    """Warn if chunks are longer than the model reads, and return the share of tokens that is truncated."""
    limit, tokenizer = model.max_seq_length, getattr(model, "tokenizer", None)
    if limit is None or not callable(tokenizer):
        return 0.0
    rows = np.random.default_rng(0).permutation(len(data.corpus))[:_MAX_CHUNKS_COUNTED]
    texts = data.corpus.select(rows)["text"][:]
    encoded = tokenizer([prompt + text for text in texts], truncation=False, padding=False, verbose=False)
    lengths = np.array([len(ids) for ids in encoded["input_ids"]])
    cut = np.maximum(lengths - limit, 0)
    share = float(cut.sum() / lengths.sum())
    if share:
        logger.warning(
            "%d of %d chunks are longer than the %d tokens that the model reads (the longest has %d): %.1f%% of the text is "
            "truncated, in training and in search. Make smaller chunks, e.g. chunk_documents(..., max_tokens=%d, "
            "tokenizer=model), or raise the limit with load_model(..., max_seq_length=...).",
            int((cut > 0).sum()),
            len(lengths),
            limit,
            int(lengths.max()),
            100 * share,
            limit - _overhead(tokenizer, prompt),
        )
    return share


def warn_about_half_precision(model: SentenceTransformer) -> int:
    """Warn if weights of 16 bits would be trained, and return their number.

    A step of 1e-5 is rounded away on a weight of 0.1: in bfloat16 the next number is 5e-4 away.
    """
    halves = (torch.bfloat16, torch.float16)
    number: int = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad and parameter.dtype in halves
    )
    if number:
        logger.warning(
            "%d weights are trained in %s, in which most small steps are rounded away. Load the model in float32 and set "
            "TuningArguments(bf16=True), or train a LoRA on it: load_model(..., dtype='bfloat16', lora=True).",
            number,
            model.dtype,
        )
    return int(number)


def warn_about_single_rows(loss: Any, args: TrainingArguments, dataset: Any) -> None:
    """Warn if negatives come from the batch, and a batch has only one row."""
    if not isinstance(loss, InBatchNegativesLoss) or args.train_batch_size * args.world_size > 1:
        return
    if not any(column.startswith("negative") for _, table in tables_of(dataset, "") for column in table.column_names):
        logger.warning(
            "A batch of one row has no negatives: the loss is 0 and the model learns nothing. Set "
            "per_device_train_batch_size=8 or more; mini_batch_num_tokens=... limits the memory."
        )


def _overhead(tokenizer: Any, prompt: str) -> int:
    """Return the number of tokens of the prompt and of special tokens."""
    return len(tokenizer(prompt, truncation=False, padding=False)["input_ids"])
