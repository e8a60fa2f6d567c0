"""TuningArguments: sentence-transformers' arguments with defaults for fine-tuning on question-chunk pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset

LossName = Literal["in-batch", "triplet", "cosine"]


@dataclass
class TuningArguments(SentenceTransformerTrainingArguments):
    """Arguments of `EmbeddingTrainer`: every one of ``SentenceTransformerTrainingArguments``, and eight more.

    Args:
        loss: ``"in-batch"`` (`InBatchNegativesLoss`), ``"triplet"`` (`TripletMarginLoss`) or ``"cosine"``
            (`CosineEmbeddingLoss`), with their default settings. Other settings and other losses go to the trainer:
            ``EmbeddingTrainer(..., loss=TripletMarginLoss(model, margin=0.5))``.
        num_negatives: Drawn for each question by the losses that are given their negatives.
        dropout: Probability of dropout in every layer while training; the model's own where nothing is given. On a CPU,
            0 makes the steps of BERT-like models faster.
        encode_once: Encode every distinct text of a batch once, to the same loss and gradient: the chunk of five questions
            is encoded once instead of five times. Where loss or model do not allow it, the stock trainer's batches are used.
        group_rows: Bring rows about one chunk together (`GroupedBatchSampler`), which is where texts repeat. Where nothing is given,
            that is done for losses that look at one row at a time, such as ``"triplet"`` and ``"cosine"``; one that takes
            the other chunks of the batch as negatives would have fewer of them.
        mini_batch_num_tokens: Cache gradients (Gao et al. 2021, https://arxiv.org/abs/2101.06983), for any loss: batches of
            any size in the memory of so many tokens, for about a third more time.
        check_saved: Load what ``save_model`` wrote, and raise if it gives other vectors. Not for checkpoints, and not where
            the accelerator has no room for a second copy of the model.

    These defaults differ from ``SentenceTransformerTrainingArguments``:

    * ``per_device_train_batch_size=32``: the other chunks of a batch are the negatives, and eight are few.
    * ``warmup_steps=0.1``: a tenth of the steps.
    * ``eval_strategy="epoch"``, ``save_strategy="epoch"``, ``load_best_model_at_end=True``: the checkpoint that
      retrieves best on the dev split is kept. ``metric_for_best_model`` is filled in by the trainer.
    * ``eval_on_start=True``: the first line of the log is the base model.
    * ``save_total_limit=2``: the best checkpoint and the last.
    * ``logging_steps=0.05``: twenty times in a run.
    * ``logging_nan_inf_filter=False``: a loss that is no number stops the run; it is not logged as 0.
    * ``dataloader_pin_memory``: only where there is an accelerator; PyTorch warns otherwise.

    Example:
        >>> TuningArguments("out/handbook", num_train_epochs=2).per_device_train_batch_size
        32
    """

    loss: LossName = "in-batch"
    num_negatives: int = 5
    dropout: float | None = None
    encode_once: bool = True
    group_rows: bool | None = None
    mini_batch_num_tokens: int | None = None
    check_saved: bool = True
    per_device_train_batch_size: int = 32
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
                f"loss={self.loss!r} is none of {get_args(LossName)}. A loss of your own goes to the trainer: "
                "EmbeddingTrainer(..., loss=MyLoss(model))."
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is no probability below 1.")
        if self.mini_batch_num_tokens is not None and self.mini_batch_num_tokens < 1:
            raise ValueError(f"mini_batch_num_tokens={self.mini_batch_num_tokens} must be positive.")
        # transformers has renamed it; the older name is the one that all versions know which embedtune runs on
        new_name = "activation_checkpointing"
        if getattr(self, new_name, False) is None:
            setattr(self, new_name, self.gradient_checkpointing)
        metric = self.metric_for_best_model
        super().__post_init__()
        # The superclass fills in "loss"; here the trainer does it, with the dev split's retrieval metric.
        if metric is None:
            self.metric_for_best_model = None
            self.greater_is_better = None

    @classmethod
    def for_gpu(
        cls, memory: str, *, model: SentenceTransformer, data: RetrievalDataset, **settings: Any
    ) -> TuningArguments:
        """Choose precision, gradient checkpointing, optimiser and batch size so that training fits a GPU.

        By `estimate_memory`, tried in this order: bf16; gradient checkpointing; 8-bit paged AdamW, where bitsandbytes is
        installed and all weights are trained; the batch in pieces. A batch that holds the negatives, or whose size you set,
        stays whole, and its gradients are cached (``mini_batch_num_tokens``); others are halved, with twice the accumulation.

        Args:
            memory: Of one GPU, for instance ``"24GB"``; 8% and 1 GiB are left to the system.
            model: What to train, with its LoRA if it has one.
            data: The longest texts decide.
            **settings: Arguments of your own, which are kept.

        Raises:
            ValueError: If nothing fits.

        Example:
            >>> import embedtune as et
            >>> pairs = [("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])]
            >>> data = et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
            >>> model = et.load_model("minilm", device="cpu")
            >>> TuningArguments.for_gpu("8GB", model=model, data=data, output_dir="out", use_cpu=True).bf16
            True
        """
        from embedtune.training.memory.presets import settings_for  # which imports this module

        return cls(**settings_for(memory, model=model, data=data, settings=settings))
