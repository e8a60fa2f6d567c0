"""TuningArguments: sentence-transformers' arguments with defaults for fine-tuning on question-chunk pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

LossName = Literal["in-batch", "triplet", "cosine"]


@dataclass
class TuningArguments(SentenceTransformerTrainingArguments):
    """Arguments of `EmbeddingTrainer`: all of ``SentenceTransformerTrainingArguments``, and eight more.

    Args:
        loss: ``"in-batch"`` (`InBatchNegativesLoss`), ``"triplet"`` (`TripletMarginLoss`) or ``"cosine"``
            (`CosineEmbeddingLoss`), with default settings. Pass other losses and settings to the trainer:
            ``EmbeddingTrainer(..., loss=TripletMarginLoss(model, margin=0.5))``.
        num_negatives: Random negatives per question, for losses that read negatives from the table.
        dropout: Dropout probability of every layer during training. None keeps the model's own, which makes BERT-like
            models slower on a CPU.
        frozen_layers: Share of each transformer's layers, counted from the input, that keep their weights during training,
            together with the embeddings. 0 trains everything. No effect on a model that has frozen weights already, such
            as a LoRA.
        encode_once: Encode each distinct text of a batch once. The loss and its gradient do not change. Falls back to the
            stock trainer's batches if the loss or the model does not allow it.
        group_rows: Put rows about the same chunk into the same batch, so that more texts repeat. With ``"in-batch"``, a
            batch then holds ``per_device_train_batch_size`` *chunks*, each with all its questions (`ChunkBatchSampler`);
            with ``"triplet"`` and ``"cosine"``, as many rows (`GroupedBatchSampler`). None does this for every loss that
            it suits, False shuffles the rows.
        mini_batch_num_tokens: Maximum number of tokens per forward pass. Turns on gradient caching (Gao et al. 2021,
            https://arxiv.org/abs/2101.06983) for any loss: large batches in little memory, at about a third more time.
        check_saved: After ``save_model``, load the saved model and raise if its vectors differ. Skipped for checkpoints,
            and if the GPU has no room for a second copy of the model.

    These defaults differ from ``SentenceTransformerTrainingArguments``:

    * ``per_device_train_batch_size=24``: the other chunks of the batch are the negatives, and eight are too few.
    * ``num_train_epochs=6``, ``learning_rate=1e-4``, ``dropout=0``, ``frozen_layers=0.5``: measured with MiniLM, see the
      benchmarks in the documentation. Larger models usually need a lower learning rate.
    * ``warmup_steps=0.1``: a tenth of all steps.
    * ``eval_strategy="epoch"``, ``save_strategy="epoch"``, ``load_best_model_at_end=True``: keeps the checkpoint that
      retrieves best on the dev split. The trainer fills in ``metric_for_best_model``.
    * ``eval_on_start=True``: the first line of the log is the base model.
    * ``save_total_limit=2``: the best and the last checkpoint.
    * ``logging_steps=0.05``: twenty log lines per run.
    * ``logging_nan_inf_filter=False``: a NaN loss stops the run instead of being logged as 0.
    * ``dataloader_pin_memory``: only with an accelerator; PyTorch warns otherwise.

    Example:
        >>> TuningArguments("out/handbook", num_train_epochs=2).per_device_train_batch_size
        24
    """

    loss: LossName = "in-batch"
    num_negatives: int = 5
    dropout: float | None = 0.0
    frozen_layers: float = 0.5
    encode_once: bool = True
    group_rows: bool | None = None
    mini_batch_num_tokens: int | None = None
    check_saved: bool = True
    per_device_train_batch_size: int = 24
    num_train_epochs: float = 6.0
    learning_rate: float = 1e-4
    warmup_steps: float = 0.1
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    eval_on_start: bool = True
    save_total_limit: int | None = 2
    logging_steps: float = 0.05
    logging_nan_inf_filter: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.accelerator.is_available)

    def __post_init__(self) -> None:
        if self.loss not in get_args(LossName):
            raise ValueError(
                f"loss={self.loss!r} is not one of {get_args(LossName)}. Pass your own loss to the trainer: "
                "EmbeddingTrainer(..., loss=MyLoss(model))."
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1.")
        if not 0 <= self.frozen_layers < 1:
            raise ValueError(f"frozen_layers={self.frozen_layers} must be at least 0 and below 1: the share to freeze.")
        if self.mini_batch_num_tokens is not None and self.mini_batch_num_tokens < 1:
            raise ValueError(f"mini_batch_num_tokens={self.mini_batch_num_tokens} must be at least 1.")
        # transformers has renamed gradient_checkpointing; this is the name that every supported version knows.
        new_name = "activation_checkpointing"
        if getattr(self, new_name, False) is None:
            setattr(self, new_name, self.gradient_checkpointing)
        metric = self.metric_for_best_model
        super().__post_init__()
        # The superclass fills in "loss". The trainer fills in the retrieval metric of the dev split instead.
        if metric is None:
            self.metric_for_best_model = None
            self.greater_is_better = None
