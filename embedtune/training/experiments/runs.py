"""Several trainings of one model that differ in one thing, each from the same weights, with what they cost."""

from __future__ import annotations

import copy
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from embedtune.dataset.columns import LABEL_COLUMNS
from embedtune.models.load import load_model
from embedtune.training.trainer import LOSSES, EmbeddingTrainer, view_for

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.evaluator import TopKEvaluator
    from embedtune.evaluation.result import Evaluation
    from embedtune.evaluation.verdict import Verdict
    from embedtune.training.arguments import TuningArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What a training takes.

    Attributes:
        rows: Rows that are trained on, each epoch counted.
        tokens: Tokens in all texts of these rows, as the model cuts them, repeated texts counted each time.
        seconds: The time it took, checkpoints and the dev split included; None before it is done.
    """

    rows: int
    tokens: int
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """One training that is to be done.

    Attributes:
        name: What it is called in tables.
        data: What it is trained on.
        args: With which arguments.
        loss: A function from a model to its loss, or None for the one that the arguments name.
    """

    name: str
    data: RetrievalDataset
    args: TuningArguments
    loss: Callable[[SentenceTransformer], Any] | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """One training that was done.

    Attributes:
        name: What it is called in tables.
        num_chunks: Chunks that its questions are about.
        num_questions: Questions trained on.
        cost: What it took.
        evaluations: How the trained model does, for each split that was asked for.
    """

    name: str
    num_chunks: int
    num_questions: int
    cost: Cost
    evaluations: Mapping[str, Evaluation]


def loaded(model: str | Path | SentenceTransformer) -> SentenceTransformer:
    """Return a model to copy from: the given one, or the one of that name."""
    return model if isinstance(model, SentenceTransformer) else load_model(model)


def estimate(model: SentenceTransformer, plan: Plan) -> Cost:
    """Count the rows and tokens of a training, without doing it."""
    loss = plan.loss if plan.loss is not None else LOSSES[plan.args.loss]
    rows = view_for(loss, model, plan.data, plan.args)
    if plan.args.max_steps > 0:
        rows_per_step = plan.args.train_batch_size * plan.args.world_size * plan.args.gradient_accumulation_steps
        epochs = plan.args.max_steps * rows_per_step / len(rows)
    else:
        epochs = plan.args.num_train_epochs
    return Cost(round(len(rows) * epochs), round(num_tokens(model, rows) * epochs))


def num_tokens(model: SentenceTransformer, rows: Dataset) -> int:
    """Count the tokens of all texts in a table, each cut where the model cuts it."""
    total = 0
    for column in rows.column_names:
        if column not in LABEL_COLUMNS:
            texts = rows[column][:]
            distinct = list(dict.fromkeys(texts))
            ids = model.tokenizer(distinct, truncation=False, padding=False, verbose=False)["input_ids"]
            length = {t: min(len(i), model.max_seq_length or len(i)) for t, i in zip(distinct, ids, strict=True)}
            total += sum(length[text] for text in texts)
    return total


def train_all(model: SentenceTransformer, plans: Sequence[Plan], evaluators: Sequence[TopKEvaluator]) -> list[Run]:
    """Train a copy of the model by each plan and evaluate it; the model itself stays as it is.

    What it will cost is logged beforehand, and after each run how long the rest will take. Checkpoints go to a temporary
    folder; nothing is kept but the results.
    """
    costs = [estimate(model, plan) for plan in plans]
    for plan, cost in zip(plans, costs, strict=True):
        logger.info("%s: %d rows, %d tokens.", plan.name, cost.rows, cost.tokens)
    logger.info("%d runs: %d rows, %d tokens.", len(plans), sum(c.rows for c in costs), sum(c.tokens for c in costs))
    runs: list[Run] = []
    for plan, cost in zip(plans, costs, strict=True):
        runs.append(_train(model, plan, cost, evaluators))
        done, left = sum(c.tokens for c in costs[: len(runs)]), sum(c.tokens for c in costs[len(runs) :])
        seconds = sum(run.cost.seconds or 0.0 for run in runs)
        logger.info("%s is done after %.0f s; about %.0f s to go.", plan.name, seconds, seconds * left / max(done, 1))
    return runs


def _train(model: SentenceTransformer, plan: Plan, cost: Cost, evaluators: Sequence[TopKEvaluator]) -> Run:
    tuned = copy.deepcopy(model)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="embedtune-") as folder:
        args = copy.copy(plan.args)
        args.output_dir = folder
        EmbeddingTrainer(tuned, args, data=plan.data, loss=plan.loss).train()
    relevant = plan.data.relevant("train")
    return Run(
        name=plan.name,
        num_chunks=len({chunk for chunks in relevant.values() for chunk in chunks}),
        num_questions=len(relevant),
        cost=Cost(cost.rows, cost.tokens, time.perf_counter() - start),
        evaluations={evaluator.split: evaluator.evaluate(tuned, name=plan.name) for evaluator in evaluators},
    )


def header(base: Evaluation) -> list[str]:
    """Return the columns that `row` fills."""
    return [
        "",
        "chunks",
        "questions",
        "rows",
        "tokens",
        "seconds",
        base.primary_metric,
        "difference",
        "interval",
        "verdict",
    ]


def base_row(base: Evaluation) -> list[str]:
    """Return the base model's line of a table of runs."""
    return [base.name, "0", "0", "0", "0", "0", f"{base.metrics[base.primary_metric]:.3f}", "", "", ""]


def row(run: Run, verdict: Verdict) -> list[str]:
    """Return a run's line, with its difference from the base model."""
    change = verdict.metrics[verdict.primary_metric]
    counts = (run.num_chunks, run.num_questions, run.cost.rows, run.cost.tokens, round(run.cost.seconds or 0))
    return [
        run.name,
        *(f"{count:,}" for count in counts),
        f"{change.after:.3f}",
        f"{change.difference:+.3f}",
        f"{change.low:+.3f} to {change.high:+.3f}",
        verdict.decision,
    ]


def told(verdict: Verdict) -> str:
    """Return the difference of the primary metric with its interval, as it stands in a sentence."""
    change = verdict.metrics[verdict.primary_metric]
    return f"{change.difference:+.3f}, {100 * verdict.confidence_level:g}% interval {change.low:+.3f} to {change.high:+.3f}"
