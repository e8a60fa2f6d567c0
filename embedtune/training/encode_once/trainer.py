"""The part of EmbeddingTrainer that encodes each distinct text of a batch once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, IterableDataset
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer

from embedtune.models.packing.attention import packed_attention
from embedtune.models.packing.pack import tokens_per_pass
from embedtune.training.columns import columns_of, is_transformed
from embedtune.training.encode_once.chunk_batches import ChunkBatchSampler
from embedtune.training.encode_once.collator import TEXT_ROWS, UniqueTextCollator, ViewCollator
from embedtune.training.encode_once.embedded_loss import loss_of_columns, takes_embeddings
from embedtune.training.encode_once.gradient_cache import GradientCachedLoss
from embedtune.training.encode_once.sampler import GroupedBatchSampler
from embedtune.training.loss_kinds import is_row_by_row, needs_distinct_texts, takes_whole_chunks

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import BatchSampler, DataLoader

logger: logging.Logger = logging.getLogger(__name__)


class EncodeOnceTrainer(SentenceTransformerTrainer):
    """A ``SentenceTransformerTrainer`` whose batches contain each distinct text once.

    The loss and its gradient are those of the stock trainer's batch. A loss that needs more than embeddings gets the stock
    trainer's batches, and a warning says so.

    Args:
        *args: Passed on.
        **kwargs: Passed on.

    Raises:
        ValueError: If ``mini_batch_num_tokens`` is set but gradients cannot be cached.
    """

    data_collator: Any
    data_collator_class = ViewCollator

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_up_batches()

    def set_up_batches(self) -> None:
        """Choose how batches are drawn and collated. Call it again after a change of the model, the loss, the rows or arguments."""
        if isinstance(self.data_collator, self.data_collator_class):
            self.data_collator = self.get_data_collator(self.model, self.args, self.processing_class)
        self._group_rows = bool(self.args.group_rows)
        self._keep_texts_distinct()
        if not self.args.encode_once and self.args.mini_batch_num_tokens is None:
            return
        if reason := self._why_not():
            if self.args.mini_batch_num_tokens is not None:
                raise ValueError(
                    f"mini_batch_num_tokens={self.args.mini_batch_num_tokens} is not possible here, because {reason}."
                )
            logger.warning("Repeated texts are encoded once per row, which takes longer, because %s.", reason)
            return
        max_tokens = self.args.mini_batch_num_tokens or tokens_per_pass(self.model, self.args.device)
        self.data_collator = UniqueTextCollator(self.data_collator, self.model, max_tokens=max_tokens)
        if self.args.group_rows is None:
            self._group_rows = is_row_by_row(self.loss) or self._takes_whole_chunks(self.train_dataset)
        if self.args.ddp_broadcast_buffers is None:
            # Each forward pass would wait for the other processes, which may have a different number of passes.
            self.args.ddp_broadcast_buffers = False

    def _keep_texts_distinct(self) -> None:
        """Choose batches without duplicates for losses that would use a question's own chunk as its negative."""
        tables = self.train_dataset.values() if isinstance(self.train_dataset, Mapping) else [self.train_dataset]
        columns = [columns_of(table) for table in tables if isinstance(table, Dataset)]
        if (
            not self.args.group_rows
            and self.args.batch_sampler == BatchSamplers.BATCH_SAMPLER
            and any(needs_distinct_texts(self.loss, names) for names in columns)
        ):
            self.args.batch_sampler = BatchSamplers.NO_DUPLICATES

    def _why_not(self) -> str | None:
        """Return why the texts of a batch cannot be encoded once, or None if they can."""
        args = self.args
        losses = self.loss.values() if isinstance(self.loss, Mapping) else [self.loss]
        own_loop = [
            name
            for name in ("compute_loss", "collect_features")
            if getattr(type(self), name) is not getattr(EncodeOnceTrainer, name)
        ]
        reasons = {
            "encode_once is False": not args.encode_once,
            "you passed a data_collator": type(self.data_collator) is not self.data_collator_class,
            f"{type(self).__name__} overrides {' and '.join(own_loop)}": bool(own_loop),
            "the loss caches gradients itself (use MultipleNegativesRankingLoss with mini_batch_num_tokens instead)": any(
                isinstance(loss, CachedMultipleNegativesRankingLoss) for loss in losses
            ),
            f"{_name(self.loss)} needs more than the embeddings of its columns": not takes_embeddings(self.loss),
            "several GPUs share this process (start one process per GPU with torchrun)": args.n_gpu > 1,
            "a compiled model would be compiled again for each batch": bool(args.torch_compile),
            "FSDP and DeepSpeed need equally many passes on each device": self.is_fsdp_enabled
            or self.is_deepspeed_enabled,
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def get_batch_sampler(self, dataset: Dataset, **options: Any) -> BatchSampler | None:
        """Return a sampler that groups rows, if this is wanted and ``batch_sampler`` is not set."""
        if self._group_rows and isinstance(dataset, Dataset) and self.args.batch_sampler == BatchSamplers.BATCH_SAMPLER:
            sampler_class = ChunkBatchSampler if self._takes_whole_chunks(dataset) else GroupedBatchSampler
            return sampler_class(dataset, **options)
        sampler: BatchSampler | None = super().get_batch_sampler(dataset, **options)
        return sampler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of an epoch.

        Raises:
            ValueError: If there are none.
        """
        loader: DataLoader[Any] = super().get_train_dataloader()
        if not isinstance(self.train_dataset, IterableDataset) and not len(loader):
            raise ValueError(
                f"There are fewer rows than the {self.args.train_batch_size} of a batch, and dataloader_drop_last=True leaves out "
                "the last one. Set dataloader_drop_last=False, or a smaller per_device_train_batch_size."
            )
        return loader

    def _build_dataloader(self, *args: Any, **options: Any) -> DataLoader[Any]:
        loader: DataLoader[Any] = super()._build_dataloader(*args, **options)
        if self.args.dataloader_persistent_workers:
            # Starting workers draws a number, which a run that is resumed would do once more than one that was not.
            loader.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _takes_whole_chunks(self, dataset: Any) -> bool:
        """Return whether batches are built from whole chunks. A mixture of datasets has batches of equal size."""
        alone = isinstance(self.train_dataset, Dataset) and isinstance(dataset, Dataset)
        return alone and not is_transformed(dataset) and takes_whole_chunks(self.loss, dataset.column_names)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run a forward and a backward pass, both with the attention that packed texts need."""
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
        if self.args.mini_batch_num_tokens is not None:
            cached = GradientCachedLoss(model, loss_fn, rows, trained=self.model)
            total: Tensor = cached(parts, labels)
            if cached.components:
                self.track_loss_components(cached.components)
            return total
        texts = torch.cat([model(dict(part))["sentence_embedding"] for part in parts])
        columns = [texts[column] for column in rows.unbind(dim=1)]
        loss = loss_of_columns(loss_fn, columns, labels, model=self.model)
        if not isinstance(loss, dict):
            return loss
        self.track_loss_components(loss)
        return torch.stack(list(loss.values())).sum()


def _name(loss: nn.Module | Mapping[str, nn.Module]) -> str:
    losses = loss.values() if isinstance(loss, Mapping) else [loss]
    return ", ".join(type(part).__name__ for part in losses if not takes_embeddings(part))
