"""Checks before a run, of what sentence-transformers would get wrong silently."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import nn

from embedtune.dataset import RetrievalDataset
from embedtune.errors import refuse_name
from embedtune.training.arguments import TuningArguments
from embedtune.training.columns import columns_of, tables_of
from embedtune.training.losses import InBatchNegativesLoss, models_of

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger: logging.Logger = logging.getLogger(__name__)

# A few thousand chunks are enough to estimate the share, and take seconds.
_MAX_CHUNKS_COUNTED = 5_000


def check_inputs(
    model: Any, args: Any, data: Any, loss: Any, evaluator: Any, *, train_dataset: Any, eval_dataset: Any
) -> None:
    """Raise a ``TypeError`` with the remedy if an argument of the trainer is of another kind than is expected."""
    refuse_name(model)
    if model is not None and not isinstance(model, SentenceTransformer):
        raise TypeError(
            f"model is a {type(model).__name__}. Load it as a SentenceTransformer: load_model(name or folder), or "
            "SentenceTransformer(modules=[Transformer(folder), Pooling(dimension)])."
        )
    if isinstance(args, RetrievalDataset):
        raise TypeError("args is a RetrievalDataset. Pass it by its name: EmbeddingTrainer(model, args, data=data).")
    if args is not None and not isinstance(args, TuningArguments):
        raise TypeError(
            f"args are {type(args).__name__}. Pass TuningArguments(...), which take all arguments of "
            "SentenceTransformerTrainingArguments and more."
        )
    if data is not None and not isinstance(data, RetrievalDataset):
        raise TypeError(
            f"data is a {type(data).__name__}. Make a RetrievalDataset with build_dataset(...) or "
            "RetrievalDataset.from_pairs(...), or pass a table of rows as train_dataset."
        )
    for name, given in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
        for part, table in tables_of(given, name):
            _check_kind_of_table(table, part)
    parts = loss.values() if isinstance(loss, Mapping) else [loss]
    if wrong := [part for part in parts if part is not None and not callable(part)]:
        raise TypeError(
            f"loss={wrong[0]!r} is a {type(wrong[0]).__name__}. Pass a loss, such as InBatchNegativesLoss(model), or name it in "
            "the arguments: TuningArguments(loss='triplet')."
        )
    judges = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    if wrong := [judge for judge in judges if judge is not None and not isinstance(judge, BaseEvaluator)]:
        raise TypeError(
            f"evaluator is a {type(wrong[0]).__name__}. Pass a BaseEvaluator of sentence-transformers, such as "
            "TopKEvaluator(data, 'dev'), or a list of several."
        )


def _check_kind_of_table(table: Any, part: str) -> None:
    if isinstance(table, RetrievalDataset):
        rows = f"Rows of one of its splits {table.splits}: data.pairs(split, with_ids=True)"
        raise TypeError(f"{part} is a RetrievalDataset. Pass it as data=. {rows}.")
    if not isinstance(table, (Dataset, IterableDataset)):
        raise TypeError(
            f"{part} is a {type(table).__name__}. Make a datasets.Dataset of it: Dataset.from_list([{{...}}, ...]), "
            "Dataset.from_dict(...) or Dataset.from_pandas(...)."
        )


def check_loss(loss: nn.Module | Mapping[str, nn.Module], model: SentenceTransformer) -> None:
    """Raise a ``ValueError`` if a loss was made with another model: its gradients would reach that one, and train nothing."""
    for part in loss.values() if isinstance(loss, Mapping) else [loss]:
        for holder, name in models_of(part):
            held = getattr(holder, name)
            if isinstance(held, SentenceTransformer) and held is not model:
                raise ValueError(
                    f"{type(holder).__name__} was made with another model object than the trainer's. Make it again, "
                    f"{type(holder).__name__}(model), or pass the class: loss={type(holder).__name__}."
                )


def check_trainable(loss: nn.Module | Mapping[str, nn.Module], model: SentenceTransformer) -> None:
    """Raise a ``ValueError`` if nothing would be trained."""
    parts = [model, *(loss.values() if isinstance(loss, Mapping) else [loss])]
    if not any(parameter.requires_grad for part in parts for parameter in part.parameters()):
        raise ValueError(
            "All parameters are frozen, so there is nothing to train. Unfreeze some, model.requires_grad_(True), or add a LoRA: "
            "load_model(..., lora=True)."
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
    if not any(column.startswith("negative") for _, table in tables_of(dataset, "") for column in columns_of(table)):
        logger.warning(
            "A batch of one row has no negatives: the loss is 0 and the model learns nothing. Set "
            "per_device_train_batch_size=8 or more; mini_batch_num_tokens=... limits the memory."
        )


def _overhead(tokenizer: Any, prompt: str) -> int:
    """Return the number of tokens of the prompt and of special tokens."""
    return len(tokenizer(prompt, truncation=False, padding=False)["input_ids"])
