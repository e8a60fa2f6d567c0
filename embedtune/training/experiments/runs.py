"""Several trainings of one model that differ in one thing, each from the same weights."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from embedtune.models.load import load_model
from embedtune.storage import temporary_folder
from embedtune.tables import html_table, text_table
from embedtune.training.loss_kinds import view_for
from embedtune.training.losses import LOSSES
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from pathlib import Path

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.evaluator import TopKEvaluator
    from embedtune.evaluation.result import Evaluation
    from embedtune.evaluation.verdict import Verdict
    from embedtune.training.arguments import TuningArguments

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A training to run.

    Attributes:
        name: Its name in tables.
        data: The training data.
        args: The arguments.
        loss: A function from a model to its loss, or None for the loss that the arguments name.
    """

    name: str
    data: RetrievalDataset
    args: TuningArguments
    loss: Callable[[SentenceTransformer], Any] | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A training that was run.

    Attributes:
        name: Its name in tables.
        num_chunks: Number of chunks that its questions are about.
        num_questions: Number of training questions.
        num_rows: Number of rows trained on, over all epochs.
        seconds: Duration, including checkpoints and evaluations.
        evaluations: The results of the trained model, by split.
    """

    name: str
    num_chunks: int
    num_questions: int
    num_rows: int
    seconds: float
    evaluations: Mapping[str, Evaluation]


@dataclass(frozen=True, eq=False, repr=False)
class RunTable:
    """Runs compared with the base model. Printing it shows sentences and a table.

    Attributes:
        base: The result of the base model.
        runs: The runs.
        against_base: Each run compared with the base model.
    """

    base: Evaluation
    runs: tuple[Run, ...]
    against_base: tuple[Verdict, ...]

    @property
    def sentences(self) -> list[str]:
        """What the comparison shows, the most important sentence first."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return "\n".join([*self.sentences, "", text_table(*self._table)])

    def _repr_html_(self) -> str:
        first, *others = map(escape, self.sentences)
        paragraphs = "".join(f"<p>{line}</p>" for line in [f"<strong>{first}</strong>", *others])
        return paragraphs + html_table(*self._table)

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        metric = self.base.primary_metric
        header = ["", "chunks", "questions", "rows", "seconds", metric, "difference", "interval", "verdict"]
        base = [self.base.name, "0", "0", "0", "0", f"{self.base.metrics[metric]:.3f}", "", "", ""]
        return header, [base, *map(_row, self.runs, self.against_base)]


def loaded(model: str | Path | SentenceTransformer) -> SentenceTransformer:
    """Return the model, or load it if it is a name."""
    return model if isinstance(model, SentenceTransformer) else load_model(model)


def train_all(model: SentenceTransformer, plans: Sequence[Plan], evaluators: Sequence[TopKEvaluator]) -> list[Run]:
    """Train a copy of the model by each plan and evaluate it. The model itself does not change.

    The number of rows is logged before the first run, and the remaining time after each. Checkpoints go to a temporary
    folder, and only the results are kept.
    """
    rows = [_num_rows(model, plan) for plan in plans]
    for plan, num_rows in zip(plans, rows, strict=True):
        logger.info("%s: %d rows.", plan.name, num_rows)
    logger.info("%d runs: %d rows.", len(plans), sum(rows))
    runs: list[Run] = []
    for plan, num_rows in zip(plans, rows, strict=True):
        runs.append(_train(model, plan, num_rows, evaluators))
        seconds = sum(run.seconds for run in runs)
        left = seconds * sum(rows[len(runs) :]) / sum(rows[: len(runs)])
        logger.info("%s finished after %.0f s; about %.0f s remain.", plan.name, seconds, left)
    return runs


def told(verdict: Verdict) -> str:
    """Return the difference of the primary metric with its interval, as part of a sentence."""
    change = verdict.metrics[verdict.primary_metric]
    return f"{change.difference:+.3f}, {100 * verdict.confidence_level:g}% interval {change.low:+.3f} to {change.high:+.3f}"


def _num_rows(model: SentenceTransformer, plan: Plan) -> int:
    """Return the number of rows of a training, over all epochs."""
    args = plan.args
    loss = plan.loss if plan.loss is not None else LOSSES[args.loss]
    num_rows: float = len(view_for(loss, model, plan.data, args)) * args.num_train_epochs
    if args.max_steps > 0:
        num_rows = args.max_steps * args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return round(num_rows)


def _train(model: SentenceTransformer, plan: Plan, num_rows: int, evaluators: Sequence[TopKEvaluator]) -> Run:
    tuned = copy.deepcopy(model)
    start = time.perf_counter()
    with temporary_folder("run") as folder:
        args = copy.copy(plan.args)
        args.output_dir = str(folder)
        EmbeddingTrainer(tuned, args, data=plan.data, loss=plan.loss).train()
    relevant = plan.data.relevant("train")
    return Run(
        name=plan.name,
        num_chunks=len({chunk for chunks in relevant.values() for chunk in chunks}),
        num_questions=len(relevant),
        num_rows=num_rows,
        seconds=time.perf_counter() - start,
        evaluations={evaluator.split: evaluator.evaluate(tuned, name=plan.name) for evaluator in evaluators},
    )


def _row(run: Run, verdict: Verdict) -> list[str]:
    change = verdict.metrics[verdict.primary_metric]
    return [
        run.name,
        *(f"{count:,}" for count in (run.num_chunks, run.num_questions, run.num_rows, round(run.seconds))),
        f"{change.after:.3f}",
        f"{change.difference:+.3f}",
        f"{change.low:+.3f} to {change.high:+.3f}",
        verdict.decision,
    ]
