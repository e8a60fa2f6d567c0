"""EmbeddingTrainer: SentenceTransformerTrainer that knows what a RetrievalDataset is."""

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
from embedtune.models.prompts import prompt_of
from embedtune.models.selfcheck import check_model
from embedtune.training.adapters import is_tied, load_trained_weights, save_trained_weights
from embedtune.training.arguments import TuningArguments
from embedtune.training.columns import check_table, fill_columns
from embedtune.training.encode_once.trainer import EncodeOnceTrainer
from embedtune.training.guards import (
    check_inputs,
    warn_about_cut_chunks,
    warn_about_half_precision,
    warn_about_single_rows,
)
from embedtune.training.losses import CosineEmbeddingLoss, InBatchNegativesLoss, RetrievalLoss, TripletMarginLoss
from embedtune.training.model_card import ModelCardCallback
from embedtune.training.resilience.guarded import GuardedTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset

logger = logging.getLogger(__name__)

LOSSES: dict[str, type[RetrievalLoss]] = {
    "in-batch": InBatchNegativesLoss,
    "triplet": TripletMarginLoss,
    "cosine": CosineEmbeddingLoss,
}


class EmbeddingTrainer(EncodeOnceTrainer, GuardedTrainer):
    """Fine-tune a SentenceTransformer on a `RetrievalDataset`.

    A ``SentenceTransformerTrainer`` that in addition

    * takes ``data`` and chooses the view that the loss needs,
    * fills prompts (and routes) for each column from the model: the stock trainer would train without the prompts that
      ``encode_query`` uses,
    * evaluates retrieval on the dev split and keeps the checkpoint that is best at it,
    * encodes every distinct text of a batch once, and without padding, to the same loss and gradient,
    * refuses columns that would be trained on by mistake, and warns of chunks that the model would cut,
    * loses nothing: stops at a loss that is no number, resumes from complete checkpoints only, and leaves one at SIGTERM
      and Ctrl-C.

    Everything else is the stock trainer's: callbacks, trackers, ``accelerate launch``.

    Args:
        model: The model to train; it is changed in place.
        args: The arguments.
        data: Questions and chunks. The ``train`` split is trained on; ``dev``, if there, chooses the checkpoint.
        train_dataset: Rows to train on instead of a view of ``data``.
        eval_dataset: Rows on which to compute the loss besides.
        loss: A loss (or a function from a model to one) instead of the one that ``args.loss`` names. With ``data`` it is
            given the view it was made for; a loss that is not embedtune's is given ``data.pairs("train")``.
        evaluator: One evaluator or several to run besides the dev split's. One on a test split never chooses the
            checkpoint.
        **options: Further arguments of ``SentenceTransformerTrainer``, for instance ``callbacks``.

    Raises:
        ValueError: If there is nothing to train on, or a dataset has columns that no loss takes.

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
        check_inputs(model, data)
        # A copy, because what is filled in belongs to this model and these data.
        args = copy.copy(args) if args is not None else TuningArguments("tmp_trainer")
        reference = model if model is not None else _from_init(options.get("model_init"))
        loss = loss if loss is not None else LOSSES[args.loss]
        if train_dataset is None:
            train_dataset = view_for(loss, reference, data, args)
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_table(dataset, name=name)
        self._given_columns = args.prompts, args.router_mapping
        fill_columns(args, reference, train_dataset, eval_dataset)
        if args.ddp_find_unused_parameters is None and is_tied(reference):
            args.ddp_find_unused_parameters = False  # looking for them counts a shared parameter twice, and fails
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
        """Train as ``SentenceTransformerTrainer.train`` does, and say so if the base model was the best on dev."""
        output = super().train(*args, **kwargs)
        metric = self.args.metric_for_best_model
        base = next((log[metric] for log in self.state.log_history if log["step"] == 0 and metric in log), None)
        if base is not None and self.state.best_metric is not None and self.state.best_metric <= base:
            logger.warning(
                "No checkpoint retrieves better than the base model on the dev split (%s: %.4f before, %.4f at best). Keep "
                "the base model, or try more data, fewer epochs, a lower learning rate or another loss.",
                metric,
                base,
                self.state.best_metric,
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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model, in safetensors alone."""
        if not self.args.should_save:  # every process comes here, and two would write one file at a time
            return
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        # A pickle that nothing reads again, with paths and settings that need not travel with the model.
        Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            save_trained_weights(self.model, folder)
        elif self.args.check_saved:
            check_saved(self.model, folder)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        if not load_trained_weights(self.model, checkpoint_path):
            super()._load_from_checkpoint(checkpoint_path)

    def _load_best_model(self) -> None:
        """Load the best checkpoint, or raise; the superclass would log the error and keep the last weights."""
        best = str(self.state.best_model_checkpoint)
        self._load_from_checkpoint(best)
        self.model.model_card_data.set_best_model_step(int(best.rpartition("-")[2]))


def check_saved(model: SentenceTransformer, folder: Path) -> None:
    """Raise a ``ValueError`` if plain sentence-transformers gets other vectors from a folder than the model in memory gives."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    if model.device.type == "cuda" and _free_memory(model.device) < 1.5 * size:
        logger.warning(
            "There is no room on %s for a second copy of the model, so %s was not compared with it. In a new process: "
            "check_model(load_model(%r)).",
            model.device,
            folder,
            str(folder),
        )
        return
    check_model(model, folder=folder).raise_if_failed()


def _free_memory(device: torch.device) -> int:
    """Return the bytes that a GPU has left: what nobody holds, and what PyTorch keeps since training and does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the probability of dropout in every layer of a model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif isinstance(getattr(module, "attention_dropout", None), float):  # decoders pass a number to the kernel
            setattr(module, "attention_dropout", probability)  # noqa: B010  # the type checker expects a module


def _from_init(model_init: Callable[[], SentenceTransformer] | None) -> SentenceTransformer:
    if model_init is None:
        raise ValueError("EmbeddingTrainer needs a model: EmbeddingTrainer(model, args, data=data).")
    return model_init()


def view_for(loss: Any, model: SentenceTransformer, data: RetrievalDataset | None, args: TuningArguments) -> Dataset:
    """Return the view of the training split that the loss was made for."""
    if data is None:
        raise ValueError("There is nothing to train on: pass data=build_dataset(...), or a train_dataset.")
    if isinstance(loss, Mapping):
        raise ValueError("Several losses need several datasets: pass train_dataset={name: dataset, ...} as well.")
    if "train" not in data.qrels:
        raise ValueError(f"The dataset has no split 'train', only {data.splits}.")
    inner = _innermost(loss if isinstance(loss, nn.Module) else loss(model))
    if not isinstance(inner, RetrievalLoss):
        return data.pairs("train")
    if inner.view == "pairs":
        return data.pairs("train", with_ids=inner.uses_ids)
    seed = args.data_seed if args.data_seed is not None else args.seed
    view = data.triplets if inner.view == "triplets" else data.labelled_pairs
    return view("train", num_negatives=args.num_negatives, seed=seed)


def _innermost(loss: nn.Module) -> nn.Module:
    """Return the loss inside wrappers such as ``MatryoshkaLoss``."""
    inner = dict(loss.named_children()).get("loss")
    return loss if inner is None else _innermost(inner)


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
        dev = TopKEvaluator(data, "dev", k=_dev_cut_offs(args, data), batch_size=args.per_device_eval_batch_size)
        given, judges = [dev, *given], [dev, *judges]
    if args.metric_for_best_model is None and judges and judges[0].primary_metric:
        args.metric_for_best_model = f"eval_{judges[0].primary_metric}"
        args.greater_is_better = judges[0].greater_is_better
    if not given and not has_eval_dataset:
        args.eval_strategy, args.eval_on_start = "no", False
    if args.load_best_model_at_end and args.metric_for_best_model is None:
        _keep_the_last(args, has_eval_dataset=has_eval_dataset)
    return given if len(given) > 1 else next(iter(given), None)


def _dev_cut_offs(args: TuningArguments, data: RetrievalDataset) -> list[int]:
    """Return 10 and the cut-off of the chosen metric: few, because every metric of every evaluation is printed."""
    _, _, chosen = (args.metric_for_best_model or "").partition("@")
    return [min(10, len(data.corpus)), *([int(chosen)] if chosen.isdigit() else [])]


def _keep_the_last(args: TuningArguments, *, has_eval_dataset: bool) -> None:
    """Choose the checkpoint by the loss if there is one to compute; else keep the last, and say so."""
    if has_eval_dataset:
        args.metric_for_best_model, args.greater_is_better = "eval_loss", False
        return
    args.load_best_model_at_end = False
    logger.warning(
        "There is no dev split to choose the best checkpoint by, so the last one is kept. "
        "build_dataset(..., dev_size=0.1) makes one."
    )
