"""What is checked before a run, because sentence-transformers would go wrong in silence."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embedtune.dataset import RetrievalDataset
from embedtune.errors import refuse_name
from embedtune.training.losses import InBatchNegativesLoss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "labels", "score", "scores")
_TEXT_COLUMN = re.compile(r"anchor|positive|candidate|negative(_\d+)?")

# Tokenising a few thousand chunks tells the share well enough, and takes seconds.
_MAX_CHUNKS_COUNTED = 5_000


def check_inputs(model: Any, data: Any) -> None:
    """Raise a ``TypeError`` for a model that is not loaded yet, or data that are no `RetrievalDataset`."""
    refuse_name(model)
    if data is not None and not isinstance(data, RetrievalDataset):
        raise TypeError(
            f"data is a {type(data).__name__}. Make a RetrievalDataset with build_dataset(...) or "
            "RetrievalDataset.from_pairs(...), or give rows to train on as train_dataset."
        )


def check_columns(dataset: Any, *, name: str) -> None:
    """Raise a ``ValueError`` if a dataset has columns that are no training columns.

    sentence-transformers tokenises every column it is given: an id column would be trained on as a hard negative.
    """
    for part, column_names in _columns(dataset, name):
        unexpected = [c for c in column_names if c not in LABEL_COLUMNS and not _TEXT_COLUMN.fullmatch(c)]
        if unexpected:
            raise ValueError(
                f"{part} has the columns {column_names}, and {unexpected} would be trained on as texts. Use data.pairs(...), "
                "data.triplets(...) or data.labelled_pairs(...), or keep only anchor, positive, negative (negative_1, "
                "negative_2, ...) and label, by rename_columns and select_columns."
            )


def check_rows(dataset: Any, *, name: str) -> None:
    """Raise a ``ValueError`` if there is nothing in a dataset, or in one of several."""
    parts = (
        {f"{name}[{key!r}]": part for key, part in dataset.items()} if isinstance(dataset, Mapping) else {name: dataset}
    )
    for part_name, part in parts.items():
        if isinstance(part, Sized) and not len(part):
            raise ValueError(
                f"{part_name} has no rows. Generate questions about its chunks, or hold fewer out for the test."
            )


def _columns(dataset: Any, name: str) -> list[tuple[str, list[str]]]:
    if isinstance(dataset, Mapping):
        return [(f"{name}[{key!r}]", list(part.column_names)) for key, part in dataset.items()]
    return [(name, list(dataset.column_names))]


def warn_about_cut_chunks(model: SentenceTransformer, data: RetrievalDataset, *, prompt: str = "") -> float:
    """Warn if chunks are longer than the model reads, and return the share of tokens that would be cut."""
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
            "%d of %d chunks are longer than the %d tokens the model reads (the longest has %d): %.1f%% of the text is "
            "cut off, in training and in search. Make smaller chunks, e.g. chunk_documents(..., max_tokens=%d, "
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

    A step of 1e-5 is lost on a weight of 0.1: bfloat16 has 8 bits, and the next number is 5e-4 away.
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
    """Warn if negatives come from the batch, and there is one row in it."""
    if not isinstance(loss, InBatchNegativesLoss) or args.train_batch_size * args.world_size > 1:
        return
    if all(not any(column.startswith("negative") for column in columns) for _, columns in _columns(dataset, "")):
        logger.warning(
            "A batch of one row has no other chunks to take as negatives: the loss is 0, and nothing is learnt. Set "
            "per_device_train_batch_size=8 or more; mini_batch_num_tokens=... keeps the memory of a small batch."
        )


def _overhead(tokenizer: Any, prompt: str) -> int:
    """Return how many tokens the prompt and the special tokens take."""
    return len(tokenizer(prompt, truncation=False, padding=False)["input_ids"])
