"""learning_curve: how much data is enough, measured on the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import compare
from embedtune.tables import html_table, text_table
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.runs import Plan, Run, base_row, header, loaded, row, told, train_all

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation
    from embedtune.evaluation.verdict import Verdict


@dataclass(frozen=True, eq=False, repr=False)
class LearningCurve:
    """What `learning_curve` found. Printing it shows a sentence and a table.

    Attributes:
        base: The base model's result.
        runs: A run for each fraction, ascending.
        fractions: The share of the training chunks in each.
        against_base: Each run compared with the base model.
        last_step: The last run compared with the one before, or None if there is only one.
        split: Whose questions were asked.
    """

    base: Evaluation
    runs: tuple[Run, ...]
    fractions: tuple[float, ...]
    against_base: tuple[Verdict, ...]
    last_step: Verdict | None
    split: str

    @property
    def sentence(self) -> str:
        """Whether the last step up still helped."""
        if self.last_step is None:
            return "One fraction alone says nothing about more data."
        start = {"better": "More data still helps", "worse": "More data made it worse"}.get(
            self.last_step.decision, "Cannot tell whether more data helps"
        )
        return (
            f"{start}: from {self.fractions[-2]:.0%} to {self.fractions[-1]:.0%} of the training chunks, "
            f"{self.base.primary_metric} on {self.split} changed by {told(self.last_step)} "
            f"(n = {self.last_step.num_queries} questions)."
        )

    def __repr__(self) -> str:
        return f"{self.sentence}\n\n{text_table(*self._table)}"

    def _repr_html_(self) -> str:
        return f"<p><strong>{escape(self.sentence)}</strong></p>{html_table(*self._table)}"

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [row(run, verdict) for run, verdict in zip(self.runs, self.against_base, strict=True)]
        return header(self.base), [base_row(self.base), *rows]


def learning_curve(
    model: str | Path | SentenceTransformer,
    data: RetrievalDataset,
    *,
    fractions: Sequence[float] = (0.25, 0.5, 1.0),
    args: TuningArguments | None = None,
    split: str = "test",
    k: Sequence[int] = (1, 3, 5, 10),
    seed: int = 0,
) -> LearningCurve:
    """Train on growing parts of the training data, and see whether the last part still helped.

    The training questions' chunks are drawn in one order by the seed, and each fraction takes the first of them with all their
    questions, so that a larger fraction holds the smaller ones. The dev and test splits and the corpus stay whole. Every run
    begins with the same weights and takes the same number of epochs, so a smaller fraction also takes fewer steps.
    With the default fractions the runs together cost 1.75 times the last; what that is in rows and tokens is logged before they
    start. The intervals tell how far the questions asked could mislead; they do not tell how much another seed of training, or
    other chunks in the smaller fractions, would change.

    Args:
        model: What to start from: anything that `load_model` takes, or a SentenceTransformer, which is copied for each run
            and not changed.
        data: Questions and chunks.
        fractions: The shares of the training chunks.
        args: Arguments of the trainings; ``output_dir`` is not used, because no model is kept.
        split: The questions to measure with.
        k: The cut-offs.
        seed: Draws the chunks, and the intervals.

    Raises:
        ValueError: If a fraction is not above 0 and at most 1, or there is no such split.

    Example:
        >>> import embedtune as et
        >>> def ask(data):
        ...     args = et.TuningArguments("unused", num_train_epochs=3, dropout=0.0)
        ...     print(et.learning_curve("minilm", data, args=args))
    """
    shares = tuple(sorted({float(fraction) for fraction in fractions}))
    if not shares or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(f"fractions={fractions!r} must be shares above 0 and at most 1, such as (0.25, 0.5, 1.0).")
    evaluator = TopKEvaluator(data, split, k=k)
    start = loaded(model)
    args = args if args is not None else TuningArguments("unused")
    plans = [Plan(f"{share:.0%}", part_of(data, share, seed=seed), args) for share in shares]
    base = evaluator.evaluate(start, name="base")
    runs = train_all(start, plans, [evaluator])
    results = [run.evaluations[split] for run in runs]
    return LearningCurve(
        base=base,
        runs=tuple(runs),
        fractions=shares,
        against_base=tuple(compare(base, result, seed=seed) for result in results),
        last_step=compare(results[-2], results[-1], seed=seed) if len(results) > 1 else None,
        split=split,
    )


def part_of(data: RetrievalDataset, fraction: float, *, seed: int) -> RetrievalDataset:
    """Return the dataset with the training questions of a share of their chunks; a smaller share is part of a larger one."""
    relevant = data.relevant("train")
    chunks = sorted({answers[0] for answers in relevant.values()})
    size = max(1, round(fraction * len(chunks)))
    kept = {chunks[i] for i in np.random.default_rng(seed).permutation(len(chunks))[:size]}
    table = data.qrels["train"]
    rows = [i for i, query in enumerate(table["query-id"][:]) if query in relevant and relevant[query][0] in kept]
    return replace(data, qrels={**data.qrels, "train": table.select(rows)})
