"""learning_curve: whether more training data would help, measured on the user's own data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedtune.bounds import finite, whole
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import compare
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.runs import Plan, RunTable, loaded, told, train_all

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.verdict import Verdict

_OPENINGS = {
    "better": "More data still helps",
    "worse": "More data made it worse",
    "cannot tell": "Cannot tell whether more data helps",
}


@dataclass(frozen=True, eq=False, repr=False)
class LearningCurve(RunTable):
    """The result of `learning_curve`. Printing it shows a sentence and a table.

    Attributes:
        base: The result of the base model.
        runs: One run per fraction, in ascending order.
        against_base: Each run compared with the base model.
        fractions: The share of the training chunks in each run.
        last_step: The last run compared with the one before, or None if there is only one.
        split: The split whose questions were used.
    """

    fractions: tuple[float, ...]
    last_step: Verdict | None
    split: str

    @property
    def sentences(self) -> list[str]:
        """Whether the last step up still helped."""
        if self.last_step is None:
            return ["A single fraction does not show whether more data helps."]
        return [
            f"{_OPENINGS[self.last_step.decision]}: from {self.fractions[-2]:.0%} to {self.fractions[-1]:.0%} of the training "
            f"chunks, {self.base.primary_metric} on {self.split} changed by {told(self.last_step)} "
            f"(n = {self.last_step.num_queries} questions)."
        ]


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
    """Train on growing parts of the training data, and test whether the last part still helped.

    The seed determines one order of the training chunks. Each fraction takes the first of them with all their questions, so
    a larger fraction contains the smaller ones. The dev and test splits and the corpus do not change. Every run starts from
    the same weights and takes the same number of epochs, so a smaller fraction also takes fewer steps. With the default
    fractions, the runs together cost 1.75 times the last; the number of rows is logged before they start. The intervals
    account for the choice of questions, but not for another training seed or other chunks in the smaller fractions.

    Args:
        model: The base model: a name or path for `load_model`, or a SentenceTransformer, which is copied for each run.
        data: Questions and chunks.
        fractions: Shares of the training chunks.
        args: Arguments of the trainings. ``output_dir`` is not used, because no model is kept.
        split: The split to evaluate on.
        k: The cut-offs.
        seed: Seed of the order of chunks and of the intervals.

    Returns:
        The results. Printing them shows a sentence and a table.

    Raises:
        ValueError: If a fraction is not above 0 and at most 1, or the split does not exist.

    Example:
        >>> import embedtune as et
        >>> def ask(data):
        ...     args = et.TuningArguments("unused", num_train_epochs=3, dropout=0.0)
        ...     print(et.learning_curve("minilm", data, args=args))
    """
    whole("seed", seed, at_least=0)
    shares = tuple(sorted({finite("fractions", fraction) for fraction in fractions}))
    if not shares or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(f"fractions={fractions!r} must be above 0 and at most 1, for example (0.25, 0.5, 1.0).")
    evaluator = TopKEvaluator(data, split, k=k)
    start = loaded(model)
    args = args if args is not None else TuningArguments("unused")
    plans = [Plan(f"{size:.0%}", part_of(data, size, seed=seed), args) for size in shares]
    base = evaluator.evaluate(start, name="base")
    runs = train_all(start, plans, [evaluator])
    results = [run.evaluations[split] for run in runs]
    return LearningCurve(
        base=base,
        runs=tuple(runs),
        against_base=tuple(compare(base, result, seed=seed) for result in results),
        fractions=shares,
        last_step=compare(results[-2], results[-1], seed=seed) if len(results) > 1 else None,
        split=split,
    )


def part_of(data: RetrievalDataset, fraction: float, *, seed: int) -> RetrievalDataset:
    """Return the dataset with the training questions of a share of their chunks; smaller shares are part of larger ones."""
    relevant = data.relevant("train")
    chunks = sorted({answers[0] for answers in relevant.values()})
    size = max(1, round(fraction * len(chunks)))
    kept = {chunks[i] for i in np.random.default_rng(seed).permutation(len(chunks))[:size]}
    table = data.qrels["train"]
    rows = [i for i, query in enumerate(table["query-id"][:]) if query in relevant and relevant[query][0] in kept]
    return replace(data, qrels={**data.qrels, "train": table.select(rows)})
