"""The part of EmbeddingTrainer that encodes every distinct text of a batch once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from sentence_transformers.base.losses.gradcache import uses_gradient_cache
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer.losses import (
    ContrastiveLoss,
    CosineSimilarityLoss,
    DistillKLDivLoss,
    MarginMSELoss,
    MatryoshkaLoss,
    TripletLoss,
)
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer

from embedtune.models.packing.attention import packed_attention
from embedtune.models.packing.pack import tokens_per_pass
from embedtune.training.encode_once.batches import TEXT_ROWS, GroupedBatchSampler, UniqueTextCollator, ViewCollator
from embedtune.training.encode_once.losses import GradientCachedLoss, embed_texts, loss_of_columns, takes_embeddings
from embedtune.training.losses import RetrievalLoss

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import BatchSampler

logger = logging.getLogger(__name__)

# To these, the other rows of a batch make no difference.
_ROW_BY_ROW = (TripletLoss, ContrastiveLoss, CosineSimilarityLoss, MarginMSELoss, DistillKLDivLoss)

# Tokens of a mini-batch of a cached loss that counts rows, for models without a limit of their own.
_TOKENS_PER_ROW = 512


class EncodeOnceTrainer(SentenceTransformerTrainer):
    """A ``SentenceTransformerTrainer`` whose batches hold each distinct text once, where the loss allows it.

    The loss and its gradient are those of the stock trainer's batch. Where that is not possible, for a loss that needs more
    than embeddings, the stock trainer's batches are used, and that is said once.

    Args:
        *args: Passed on.
        **kwargs: Passed on.

    Raises:
        ValueError: If ``mini_batch_num_tokens`` is given, and there is no way to keep to it.
    """

    data_collator: Any
    data_collator_class = ViewCollator

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group_rows = False
        if not self.args.encode_once and self.args.mini_batch_num_tokens is None:
            self._group_rows = bool(self.args.group_rows)
            return
        if reason := self._why_not():
            if self.args.mini_batch_num_tokens is not None:
                raise ValueError(
                    f"mini_batch_num_tokens={self.args.mini_batch_num_tokens} is not possible here, because {reason}."
                )
            logger.warning("Repeated texts are encoded again for every row, because %s.", reason)
            self._group_rows = bool(self.args.group_rows)
            return
        max_tokens = self._max_tokens() or tokens_per_pass(self.model, self.args.device)
        self.data_collator = UniqueTextCollator(self.data_collator, self.model, max_tokens=max_tokens)
        self._group_rows = self.args.group_rows if self.args.group_rows is not None else is_row_by_row(self.loss)
        if self.args.ddp_broadcast_buffers is None:
            # Each forward pass would wait for the other processes, and they may have more passes, or fewer.
            self.args.ddp_broadcast_buffers = False

    def _why_not(self) -> str | None:
        """Return why the texts of a batch cannot be encoded once, or None if they can."""
        args = self.args
        reasons = {
            "encode_once is False": not args.encode_once,
            "a data_collator of your own makes the batches": type(self.data_collator) is not self.data_collator_class,
            f"{_name(self.loss)} needs more than the embeddings of its columns": not takes_embeddings(self.loss),
            "several GPUs share this process: start one for each with torchrun": args.n_gpu > 1,
            "a compiled model would be compiled for each batch": bool(args.torch_compile),
            "FSDP and DeepSpeed need as many passes on each device": self.is_fsdp_enabled or self.is_deepspeed_enabled,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _max_tokens(self) -> int | None:
        """Return the tokens of a mini-batch where gradients are cached, else None."""
        if self.args.mini_batch_num_tokens is not None:
            return int(self.args.mini_batch_num_tokens)
        losses = self.loss.values() if isinstance(self.loss, Mapping) else [self.loss]
        cached = [_innermost(loss) for loss in losses if uses_gradient_cache(_innermost(loss))]
        per_row = self.model.max_seq_length or _TOKENS_PER_ROW
        return min((loss.mini_batch_num_tokens or loss.mini_batch_size * per_row for loss in cached), default=None)

    def get_batch_sampler(self, dataset: Dataset, **options: Any) -> BatchSampler | None:
        """Keep the questions about one chunk together, where that is wanted and no other sampler is."""
        if self._group_rows and isinstance(dataset, Dataset) and self.args.batch_sampler == BatchSamplers.BATCH_SAMPLER:
            return GroupedBatchSampler(dataset, **options)
        sampler: BatchSampler | None = super().get_batch_sampler(dataset, **options)
        return sampler

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Do a forward and a backward pass, both with the attention that packed texts need."""
        with packed_attention(self.model):
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Encode each text once, and compute the loss from the embeddings of the columns."""
        rows = inputs.pop(TEXT_ROWS, None)
        if rows is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        dataset_name = inputs.pop("dataset_name", None)
        loss_fn = self.loss[dataset_name] if isinstance(self.loss, Mapping) else self.loss
        parts, labels = self.collect_features(inputs)
        with packed_attention(self.model):
            loss = self._loss_of_texts(model, loss_fn, parts, rows, labels)
        return (loss, {}) if return_outputs else loss

    def _loss_of_texts(
        self, model: nn.Module, loss_fn: nn.Module, parts: list[dict[str, Any]], rows: Tensor, labels: Tensor | None
    ) -> Tensor:
        if self.args.mini_batch_num_tokens is not None or uses_gradient_cache(loss_fn):
            cached = GradientCachedLoss(model, loss_fn, rows, trained=self.model)
            total: Tensor = cached(parts, labels)
            if cached.components:
                self.track_loss_components(cached.components)
            return total
        texts = embed_texts(model, parts)
        columns = [texts[column] for column in rows.unbind(dim=1)]
        loss = loss_of_columns(loss_fn, columns, labels, model=self.model)
        if not isinstance(loss, dict):
            return loss
        self.track_loss_components(loss)
        return torch.stack(list(loss.values())).sum()


def _name(loss: nn.Module | Mapping[str, nn.Module]) -> str:
    losses = loss.values() if isinstance(loss, Mapping) else [loss]
    return ", ".join(type(part).__name__ for part in losses if not takes_embeddings(part))


def _innermost(loss: Any) -> Any:
    return _innermost(loss.loss) if isinstance(loss, MatryoshkaLoss) else loss


def is_row_by_row(loss: nn.Module | Mapping[str, nn.Module]) -> bool:
    """Say whether the other rows of a batch make no difference to a row's loss."""
    if isinstance(loss, Mapping):
        return all(is_row_by_row(part) for part in loss.values())
    inner = _innermost(loss)
    return inner.view != "pairs" if isinstance(inner, RetrievalLoss) else type(inner) in _ROW_BY_ROW
