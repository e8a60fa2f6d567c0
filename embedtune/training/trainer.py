"""EmbeddingTrainer: a SentenceTransformerTrainer that takes a RetrievalDataset."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, number_of_arguments
from transformers.utils import PushInProgress

from embedtune.models.export import check_savable, merge_when_saved
from embedtune.models.prompts import prompt_of
from embedtune.training.adapters import (
    is_tied,
    load_loss_weights,
    load_trained_weights,
    save_loss_weights,
    save_trained_weights,
)
from embedtune.training.arguments import TuningArguments, check_bounds
from embedtune.training.best_checkpoint import check_chosen, check_metric, choose_by_dev
from embedtune.training.columns import check_table, fill_columns
from embedtune.training.dropout import dropout_within
from embedtune.training.encode_once.trainer import EncodeOnceTrainer
from embedtune.training.freezing import freeze_lower_layers
from embedtune.training.guards import (
    check_inputs,
    check_loss,
    check_trainable,
    warn_about_cut_chunks,
    warn_about_half_precision,
    warn_about_single_rows,
)
from embedtune.training.loss_kinds import view_for
from embedtune.training.losses import LOSSES
from embedtune.training.model_card import ModelCardCallback
from embedtune.training.resilience.guarded import GuardedTrainer
from embedtune.training.saving import check_saved, upload_checkpoint

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.evaluation import BaseEvaluator
    from torch import nn

    from embedtune.dataset import RetrievalDataset

logger: logging.Logger = logging.getLogger(__name__)


class EmbeddingTrainer(EncodeOnceTrainer, GuardedTrainer):
    """Fine-tune a SentenceTransformer on a `RetrievalDataset`.

    A ``SentenceTransformerTrainer`` that in addition

    * takes ``data`` and chooses the view that the loss reads,
    * fills in the prompt and route of each column from the model: the stock trainer would train without the prompts that
      ``encode_query`` uses,
    * evaluates retrieval on the dev split and keeps the best checkpoint,
    * encodes each distinct text of a batch once, without padding, with the same loss and gradient,
    * refuses columns that would be trained on by mistake, a loss of another model and a metric that no evaluation has, and
      warns of chunks that the model would cut,
    * stops at a NaN loss, resumes only from complete checkpoints, with the weights of the loss, and writes one at SIGTERM and
      Ctrl-C; refuses a second training in the same ``output_dir``,
    * in a ``hyperparameter_search``, takes over ``loss``, ``num_negatives`` and all other arguments that are tried.

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
        TypeError: If an argument is of another kind, such as a `RetrievalDataset` as ``train_dataset``.
        ValueError: If there is nothing to train on, a dataset has columns that the loss cannot read, or the loss was made with
            another model.

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

    push_in_progress: Any
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
        check_inputs(model, args, data, loss, evaluator, train_dataset=train_dataset, eval_dataset=eval_dataset)
        # A copy, because the settings filled in below depend on this model and this data.
        args = copy.copy(args) if args is not None else TuningArguments("tmp_trainer")
        check_bounds(args)  # they may have been changed since they were made
        self._data, self._given, self._own = data, copy.copy(args), (loss is not None, train_dataset is not None)
        reference = model if model is not None else _from_init(options.get("model_init"))
        merge_when_saved(reference)
        if args.check_saved:
            check_savable(reference)
        loss = loss if loss is not None else LOSSES[args.loss]
        if train_dataset is None:
            train_dataset = view_for(loss, reference, data, args)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_table(dataset, name=name)
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
            evaluator=choose_by_dev(args, data, evaluator, eval_dataset),
            **options,
        )
        if self.model_init is None:
            check_loss(self.loss, self.model)
        warn_about_half_precision(self.model)
        warn_about_single_rows(self.loss, self.args, self.train_dataset)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as ``SentenceTransformerTrainer.train`` does, and warn if no checkpoint is better than the base model."""
        try:
            output = super().train(*args, **kwargs)
        finally:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen.clear()
        metric = self.args.metric_for_best_model or ""
        metric = metric if metric.startswith("eval_") else f"eval_{metric}"
        base = next((log[metric] for log in self.state.log_history if log["step"] == 0 and metric in log), None)
        best = self.state.best_metric
        if base is None or best is None or (best > base if self.args.greater_is_better else best < base):
            return output
        logger.warning(
            "No checkpoint is better than the base model: %s was %.4f before training and is %.4f at best. Compare both "
            "on other questions before you use it, or try more data, fewer epochs, a lower learning rate or another loss.",
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
                settings.prompts, settings.router_mapping = self._given.prompts, self._given.router_mapping
                fill_columns(settings, self.model, self.train_dataset, self.eval_dataset, eval_dataset)
                self.data_collator.prompts = settings.prompts
                self.data_collator.router_mapping = settings.router_mapping
        metrics: dict[str, float] = super().evaluate(eval_dataset, *args, **kwargs)
        return metrics

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate within a training. Before the first step a misspelt metric is noticed."""
        metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
        if self.state.global_step == 0:
            check_metric(self.args, metrics)
        return metrics

    def _hp_search_setup(self, trial: Any) -> None:
        """Take over what a hyperparameter search tries. Every training with a ``model_init`` comes here with a new model."""
        super()._hp_search_setup(trial)
        if self.model_init is None:
            return
        check_bounds(self.args)
        own_loss, own_rows = self._own
        if own_loss and self.args.loss != self._given.loss:
            raise ValueError(
                f"loss={self.args.loss!r} cannot be searched, because the trainer was given a loss. Leave it out."
            )
        if own_rows and self.args.num_negatives != self._given.num_negatives:
            raise ValueError(
                f"num_negatives={self.args.num_negatives} cannot be searched, because the trainer was given a train_dataset. "
                "Pass data= instead."
            )
        for name in ("prompts", "router_mapping", "batch_sampler"):
            setattr(self.args, name, getattr(self._given, name))
        if not own_loss:
            self.loss: Any = self.prepare_loss(LOSSES[self.args.loss], self.model)
        if not own_rows:
            rows = view_for(self.loss, self.model, self._data, self.args)
            self.train_dataset: Any = self.preprocess_dataset(rows, dataset_name="train")
        fill_columns(self.args, self.model, self.train_dataset, self.eval_dataset)
        self.set_up_batches()

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        check_trainable(self.loss, self.model)
        if not self.args.eval_on_start and self.args.eval_strategy != "no" and not kwargs.get("resume_from_checkpoint"):
            check_chosen(self.args, self.model, self.evaluator, self.eval_dataset)
        with dropout_within(self.model, self.args.dropout):
            return super()._inner_training_loop(*args, **kwargs)

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
            save_loss_weights(self.loss, folder)
        elif self.args.check_saved:
            check_saved(self.model, folder)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        if not load_trained_weights(self.model, checkpoint_path):
            super()._load_from_checkpoint(checkpoint_path)
        load_loss_weights(self.loss, checkpoint_path)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload the model of a checkpoint in the background, unless an upload is still under way."""
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        wanted = self.args.hub_strategy != HubStrategy.END and (self.args.hub_always_push or not busy)
        if not self.is_world_process_zero() or not wanted:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        uploads = upload_checkpoint(
            checkpoint_folder, self.args, repo_id=str(self.hub_model_id), step=self.state.global_step
        )
        if busy:
            self.push_in_progress.jobs.extend(uploads)
        else:
            self.push_in_progress = PushInProgress(uploads)

    def _load_best_model(self) -> None:
        """Load the best checkpoint. Errors are raised; the superclass would log them and keep the last weights."""
        best = str(self.state.best_model_checkpoint)
        self._load_from_checkpoint(best)
        self.model.model_card_data.set_best_model_step(int(best.rpartition("-")[2]))


def _from_init(model_init: Callable[..., SentenceTransformer] | None) -> SentenceTransformer:
    if model_init is None:
        raise ValueError("EmbeddingTrainer needs a model: EmbeddingTrainer(model, args, data=data).")
    return model_init(None) if number_of_arguments(model_init) else model_init()
