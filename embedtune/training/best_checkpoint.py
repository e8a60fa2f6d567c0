"""Which evaluation chooses the best checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.evaluation import BaseEvaluator

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.metrics import metrics_at_k

if TYPE_CHECKING:
    from embedtune.dataset import RetrievalDataset
    from embedtune.training.arguments import TuningArguments

logger: logging.Logger = logging.getLogger(__name__)


def choose_by_dev(
    args: TuningArguments,
    data: RetrievalDataset | None,
    evaluator: BaseEvaluator | list[BaseEvaluator] | None,
    eval_dataset: Any,
) -> BaseEvaluator | list[BaseEvaluator] | None:
    """Put the dev split's evaluator first, and let it choose the checkpoint.

    Raises:
        ValueError: If the arguments name a metric that no evaluation will have.
    """
    given = [evaluator] if isinstance(evaluator, BaseEvaluator) else list(evaluator or [])
    judges = [e for e in given if not (isinstance(e, TopKEvaluator) and e.split.startswith("test"))]
    if data is not None and "dev" in data.qrels and not any(isinstance(e, TopKEvaluator) for e in judges):
        dev = TopKEvaluator(data, "dev", k=_dev_cutoffs(args, data), batch_size=args.per_device_eval_batch_size)
        given, judges = [dev, *given], [dev, *judges]
    losses = _losses(eval_dataset)
    if args.metric_for_best_model is None:
        _choose_metric(args, judges, losses)
    elif all(type(e).__call__ is TopKEvaluator.__call__ for e in given) and (given or losses):
        check_metric(args, [*losses, *(name for e in given for name in _metrics(e))])
    if not given and not losses:
        args.eval_strategy, args.eval_on_start = "no", False
    if args.load_best_model_at_end and args.metric_for_best_model is None:
        args.load_best_model_at_end = False
        logger.warning("%s, so the last checkpoint is kept. %s", *_why_last(judges, losses))
    return given if len(given) > 1 else next(iter(given), None)


def check_metric(args: TuningArguments, metrics: Collection[str]) -> None:
    """Raise a ``ValueError`` if ``metric_for_best_model`` is not among the metrics of an evaluation."""
    wanted = args.metric_for_best_model
    if wanted is not None and f"eval_{wanted.removeprefix('eval_')}" not in metrics:
        measured = [
            name for name in metrics if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
        ]
        raise ValueError(f"metric_for_best_model={wanted!r} is not one of the metrics of an evaluation: {measured}.")


def check_chosen(args: TuningArguments, model: Any, evaluator: BaseEvaluator | None, eval_dataset: Any) -> None:
    """Raise a ``ValueError`` if no evaluation will have ``metric_for_best_model``, before the first step.

    What an evaluator of the user's own measures is known once it has run: it is run, unless the metric is the one that it names
    as its ``primary_metric``.
    """
    losses = _losses(eval_dataset)
    wanted = (args.metric_for_best_model or "").removeprefix("eval_")
    primary = str(getattr(evaluator, "primary_metric", None)).removeprefix("eval_")
    if not wanted or evaluator is None or f"eval_{wanted}" in losses or wanted == primary:
        return
    if isinstance(evaluator, TopKEvaluator):  # checked when the trainer was made
        return
    measured = evaluator(model)
    names = measured if isinstance(measured, dict) else ["evaluator"]
    check_metric(args, [*losses, *(f"eval_{name.removeprefix('eval_')}" for name in names)])


def _choose_metric(args: TuningArguments, judges: list[BaseEvaluator], losses: list[str]) -> None:
    # An evaluator of the user's own may not have called its superclass's __init__.
    if judges and (metric := getattr(judges[0], "primary_metric", None)):
        args.metric_for_best_model = f"eval_{metric}"
        args.greater_is_better = getattr(judges[0], "greater_is_better", True)
    elif args.load_best_model_at_end and len(losses) == 1:
        args.metric_for_best_model, args.greater_is_better = losses[0], False


def _why_last(judges: list[BaseEvaluator], losses: list[str]) -> tuple[str, str]:
    """Return why no metric was chosen, and the remedy."""
    if losses:
        return (
            f"There is no dev split, and {losses} are as good as each other",
            f"metric_for_best_model={losses[0]!r} chooses one.",
        )
    if judges:
        return (
            f"There is no dev split, and {type(judges[0]).__name__} does not say which of its metrics counts",
            "metric_for_best_model='eval_...' says it.",
        )
    return "There is no dev split to choose the best checkpoint", "build_dataset(..., dev_size=0.1) makes one."


def _losses(eval_dataset: Any) -> list[str]:
    if eval_dataset is None:
        return []
    return [f"eval_{name}_loss" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else ["eval_loss"]


def _metrics(evaluator: TopKEvaluator) -> list[str]:
    nothing = [metrics_at_k(np.zeros((1, k), dtype=bool), np.ones(1, dtype=np.int64), k=k) for k in evaluator.k]
    return [f"eval_{evaluator.name}_{metric}" for metrics in nothing for metric in metrics]


def _dev_cutoffs(args: TuningArguments, data: RetrievalDataset) -> list[int]:
    """Return 10 and the cut-off of the chosen metric. Only these, because every metric of every evaluation is logged."""
    _, _, chosen = (args.metric_for_best_model or "").partition("@")
    return [min(10, len(data.corpus)), *([int(chosen)] if chosen.isdigit() else [])]
