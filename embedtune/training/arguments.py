"""TuningArguments: sentence-transformers' arguments with defaults for fine-tuning on question-chunk pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

from embedtune.bounds import finite, share, whole

LossName = Literal["in-batch", "triplet", "cosine"]


@dataclass
class TuningArguments(SentenceTransformerTrainingArguments):
    """Arguments of `EmbeddingTrainer`: all of ``SentenceTransformerTrainingArguments``, and eight more.

    Args:
        loss: ``"in-batch"`` (`InBatchNegativesLoss`), ``"triplet"`` (`TripletMarginLoss`) or ``"cosine"``
            (`CosineEmbeddingLoss`), with default settings. Pass other losses and settings to the trainer:
            ``EmbeddingTrainer(..., loss=TripletMarginLoss(model, margin=0.5))``.
        num_negatives: Random negatives per question, for losses that read negatives from the table.
        dropout: Dropout probability of every layer during this training. None keeps the model's own, which makes BERT-like
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
    * ``hub_private_repo=True``: with ``push_to_hub``, a new repository is private.
    * ``dataloader_pin_memory``: only with an accelerator; PyTorch warns otherwise.

    Raises:
        TypeError: If an argument is of another kind, such as the string ``"2e-5"``, which YAML makes of a number without a dot.
        ValueError: If an argument is out of bounds.

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
    hub_private_repo: bool | None = True
    dataloader_pin_memory: bool = field(default_factory=torch.accelerator.is_available)

    def __post_init__(self) -> None:
        check_bounds(self)
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
        # accelerate would hand out a stream's batches by rows, and a batch of distinct texts is not made of rows.
        if self.accelerator_config.dispatch_batches is None:
            self.accelerator_config.dispatch_batches = False


def check_bounds(args: TuningArguments) -> None:
    """Raise an error that names the argument and its value if it makes no sense.

    Raises:
        TypeError: If it is not the kind of value that is expected.
        ValueError: If it is out of bounds.
    """
    if args.loss not in get_args(LossName):
        raise ValueError(
            f"loss={args.loss!r} is not one of {get_args(LossName)}. Pass your own loss to the trainer: "
            "EmbeddingTrainer(..., loss=MyLoss(model))."
        )
    whole("num_negatives", args.num_negatives)
    if args.dropout is not None:
        share("dropout", args.dropout, below_one=True)
    share("frozen_layers", args.frozen_layers, below_one=True)
    if args.mini_batch_num_tokens is not None:
        whole("mini_batch_num_tokens", args.mini_batch_num_tokens)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        whole(name, getattr(args, name))
    finite("learning_rate", args.learning_rate, at_least=0)
    whole("max_steps", args.max_steps, at_least=-1)
    if args.max_steps <= 0:  # otherwise it decides
        finite("num_train_epochs", args.num_train_epochs, above=0)
