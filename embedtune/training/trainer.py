"""EmbeddingTrainer: a SentenceTransformerTrainer that takes a RetrievalDataset."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import nn
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.models.export import check_savable, merge_when_saved
from embedtune.models.prompts import prompt_of
from embedtune.models.selfcheck import check_model
from embedtune.training.adapters import is_tied, load_trained_weights, save_trained_weights
from embedtune.training.arguments import TuningArguments
from embedtune.training.columns import check_table, fill_columns
from embedtune.training.dropout import set_dropout
from embedtune.training.encode_once.trainer import EncodeOnceTrainer
from embedtune.training.freezing import freeze_lower_layers
from embedtune.training.guards import (
    check_inputs,
    warn_about_cut_chunks,
    warn_about_half_precision,
    warn_about_single_rows,
)
from embedtune.training.loss_kinds import view_for
from embedtune.training.losses import LOSSES
from embedtune.training.model_card import ModelCardCallback
from embedtune.training.resilience.guarded import GuardedTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset

logger = logging.getLogger(__name__)


class EmbeddingTrainer(EncodeOnceTrainer, GuardedTrainer):
    """Fine-tune a SentenceTransformer on a `RetrievalDataset`.

    A ``SentenceTransformerTrainer`` that in addition

    * takes ``data`` and chooses the view that the loss reads,
    * fills in the prompt and route of each column from the model: the stock trainer would train without the prompts that
      ``encode_query`` uses,
    * evaluates retrieval on the dev split and keeps the best checkpoint,
    * encodes each distinct text of a batch once, without padding, with the same loss and gradient,
    * refuses columns that would be trained on by mistake, and warns of chunks that the model would cut,
    * stops at a NaN loss, resumes only from complete checkpoints, and writes one at SIGTERM and Ctrl-C.

    Everything else is as in the stock trainer: callbacks, trackers, ``accelerate launch``.

    Args:
        model: The model to train. It is changed in place.
        args: The arguments.
        data: Questions and chunks. Trains on the split ``train``; ``dev``, if it exists, chooses the checkpoint.
        train_dataset: Rows to train on instead of a view of ``data``.
        eval_dataset: Rows to compute the loss on, in addition to the dev split.
        loss: A loss, or a function from a model to a loss, instead of the one that ``args.loss`` names. With ``data``,
            embedtune's losses get their own view, other losses ``data.pairs("train")``.
        evaluator: One or more evaluators to run in addition to the dev split's. An evaluator of a test split never
            chooses the checkpoint.
        **options: Further arguments of ``SentenceTransformerTrainer``, for example ``callbacks``.

    Raises:
        ValueError: If there is nothing to train on, or a dataset has columns that the loss cannot read.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs([("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])],
        ...                                       test_size=0, dev_size=0)
        >>> model = et.load_model("minilm", device="cpu")
        >>> args = et.TuningArguments("/tmp/embedtune-example", max_steps=1, eval_strategy="no", save_strategy="no",
        ...                           load_best_model_at_end=False, disable_tqdm=True)
        >>> trainer = et.EmbeddingTrainer(model, args, data=data)
        >>> trainer.train_dataset.column_names
        ['anchor', 'positive', 'label']
        >>> trainer.train()  # doctest: +SKIP
    """

    training_args_class = TuningArguments
    model_card_callback_class = ModelCardCallback

    def __init__(
        self,
        model: SentenceTransformer | None = None,
        args: TuningArguments | None = None,
        *,
        data: RetrievalDataset | None = None,
        train_dataset: Dataset | Mapping[str, Dataset] | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        loss: nn.Module | Callable[[SentenceTransformer], nn.Module] | Mapping[str, Any] | None = None,
        evaluator: BaseEvaluator | list[BaseEvaluator] | None = None,
        **options: Any,
    ) -> None:
        self._frozen: list[nn.Parameter] = []
        check_inputs(model, data)
        # A copy, because the settings filled in below depend on this model and this data.
        args = copy.copy(args) if args is not None else TuningArguments("tmp_trainer")
        reference = model if model is not None else _from_init(options.get("model_init"))
        merge_when_saved(reference)
        if args.check_saved:
            check_savable(reference)
        loss = loss if loss is not None else LOSSES[args.loss]
        if train_dataset is None:
            train_dataset = view_for(loss, reference, data, args)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_table(dataset, name=name)
        self._given_columns = args.prompts, args.router_mapping
        fill_columns(args, reference, train_dataset, eval_dataset)
        if args.ddp_find_unused_parameters is None and is_tied(reference):
            args.ddp_find_unused_parameters = False  # the search would count a shared parameter twice, and fail
        if data is not None:
            warn_about_cut_chunks(reference, data, prompt=prompt_of(reference, "document"))
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            loss=loss,
            evaluator=_choose_by_dev(args, data, evaluator, has_eval_dataset=eval_dataset is not None),
            **options,
        )
        if args.dropout is not None:
            set_dropout(self.model, args.dropout)
        warn_about_half_precision(self.model)
        warn_about_single_rows(self.loss, self.args, self.train_dataset)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ``SentenceTransformerTrainer.train`` does, and warn if no checkpoint is better than the base model."""
        try:
            output = super().train(*args, **kwargs)
        finally:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
        metric = self.args.metric_for_best_model or ""
        metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        base = next((log[metric] for log in self.state.log_history if log["step"] == 0 and metric in log), None)
        best = self.state.best_metric
        if base is None or best is None or (best > base if self.args.greater_is_better else best < base):
            return output
        logger.warning(
            "No checkpoint is better than the base model: %s was %.4f before training and is %.4f at best. Keep the base "
            "model, or try more data, fewer epochs, a lower learning rate or another loss.",
            metric,
            base,
            best,
        )
        return output

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as ``SentenceTransformerTrainer.evaluate`` does, with checks and prompts for a table of your own."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            check_table(eval_dataset, name="eval_dataset")
            if isinstance(self.data_collator, self.data_collator_class):
                settings = copy.copy(self.args)
                settings.prompts, settings.router_mapping = self._given_columns
                fill_columns(settings, self.model, self.train_dataset, self.eval_dataset, eval_dataset)
                self.data_collator.prompts = settings.prompts
                self.data_collator.router_mapping = settings.router_mapping
        metrics: dict[str, float] = super().evaluate(eval_dataset, *args, **kwargs)
        return metrics

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Freeze the lower layers until the end of training, and create the optimizer of the others."""
        self._frozen += freeze_lower_layers(self.model, self.args.frozen_layers)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model, without pickled files."""
        if not self.args.should_save:  # every process comes here, and two would write the same file
            return
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        # A pickle that nothing reads, with paths and settings that do not belong to the model.
        Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            save_trained_weights(self.model, folder)
        elif self.args.check_saved:
            check_saved(self.model, folder)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        if not load_trained_weights(self.model, checkpoint_path):
            super()._load_from_checkpoint(checkpoint_path)

    def _load_best_model(self) -> None:
        """Load the best checkpoint. Errors are raised; the superclass would log them and keep the last weights."""
        best = str(self.state.best_model_checkpoint)
        self._load_from_checkpoint(best)
        self.model.model_card_data.set_best_model_step(int(best.rpartition("-")[2]))


def check_saved(model: SentenceTransformer, folder: Path) -> None:
    """Raise a ``ValueError`` if plain sentence-transformers gets other vectors from the saved model than from this one."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    if model.device.type == "cuda" and _free_memory(model.device) < 1.5 * size:
        logger.warning(
            "The saved model in %s was not checked, because %s has no room for a second copy. Check it in a new process: "
            "check_model(load_model(%r)).",
            folder,
            model.device,
            str(folder),
        )
        return
    check_model(model, folder=folder).raise_if_failed()


def _free_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU, including those that PyTorch has reserved but does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _from_init(model_init: Callable[[], SentenceTransformer] | None) -> SentenceTransformer:
    if model_init is None:
        raise ValueError("EmbeddingTrainer needs a model: EmbeddingTrainer(model, args, data=data).")
    return model_init()


def _choose_by_dev(
    args: TuningArguments,
    data: RetrievalDataset | None,
    evaluator: BaseEvaluator | list[BaseEvaluator] | None,
    *,
    has_eval_dataset: bool,
) -> BaseEvaluator | list[BaseEvaluator] | None:
    """Put the dev split's evaluator first, and let it choose the checkpoint."""
    given = [evaluator] if isinstance(evaluator, BaseEvaluator) else list(evaluator or [])
    judges = [e for e in given if not (isinstance(e, TopKEvaluator) and e.split.startswith("test"))]
    if data is not None and "dev" in data.qrels and not any(isinstance(e, TopKEvaluator) for e in judges):
        dev = TopKEvaluator(data, "dev", k=_dev_cutoffs(args, data), batch_size=args.per_device_eval_batch_size)
        given, judges = [dev, *given], [dev, *judges]
    if args.metric_for_best_model is None and judges and judges[0].primary_metric:
        args.metric_for_best_model = f"eval_{judges[0].primary_metric}"
        args.greater_is_better = judges[0].greater_is_better
    if not given and not has_eval_dataset:
        args.eval_strategy, args.eval_on_start = "no", False
    if args.load_best_model_at_end and args.metric_for_best_model is None:
        if has_eval_dataset:
            args.metric_for_best_model, args.greater_is_better = "eval_loss", False
        else:
            args.load_best_model_at_end = False
            logger.warning(
                "There is no dev split to choose the best checkpoint, so the last one is kept. "
                "build_dataset(..., dev_size=0.1) makes one."
            )
    return given if len(given) > 1 else next(iter(given), None)


def _dev_cutoffs(args: TuningArguments, data: RetrievalDataset) -> list[int]:
    """Return 10 and the cut-off of the chosen metric. Only these, because every metric of every evaluation is logged."""
    _, _, chosen = (args.metric_for_best_model or "").partition("@")
    return [min(10, len(data.corpus)), *([int(chosen)] if chosen.isdigit() else [])]
