"""The numbers in the charts and tables of a report: scores with intervals, and ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from embedtune.evaluation.record import short_name

if TYPE_CHECKING:
    from embedtune.evaluation.record import VerdictRecord
    from embedtune.evaluation.result import Evaluation

# Edges of the bins beyond the cut-offs.
_FAR_RANKS = (20, 50, 100)


class Score(NamedTuple):
    """A mean over the questions, and its confidence interval."""

    value: float
    low: float
    high: float


class Run(NamedTuple):
    """A retriever: its name in the report, its result, and the score for each metric."""

    name: str
    evaluation: Evaluation
    scores: dict[str, Score]


class RankBin(NamedTuple):
    """The number of questions of each run whose relevant chunk has a rank in this bin."""

    label: str
    counts: list[int]


def runs_of(verdict: VerdictRecord) -> list[Run]:
    """Return the retrievers of a verdict: before, after and then the baselines, each with a distinct name."""
    evaluations = [verdict.before, verdict.after, *verdict.baselines]
    return [
        Run(name, evaluation, _scores(evaluation, verdict.confidence_level))
        for name, evaluation in zip(_names(evaluations), evaluations, strict=True)
    ]


def rank_histogram(runs: Sequence[Run]) -> list[RankBin]:
    """Count the ranks of the relevant chunk, in bins that end at each cut-off.

    Every question is in one bin. If the ranking is shorter than the corpus, the last bin counts what was not found.
    """
    first = runs[0].evaluation
    edges = sorted({*first.k, first.depth, *(rank for rank in _FAR_RANKS if first.k[-1] < rank < first.depth)})
    ranks = [run.evaluation.per_query["rank"][:] for run in runs]
    bins, start = [], 1
    for end in edges:
        label = f"{start}" if start == end else f"{start} to {end}"
        bins.append(RankBin(label, [sum(r is not None and start <= r <= end for r in column) for column in ranks]))
        start = end + 1
    if first.depth == first.num_chunks:
        return bins
    return [*bins, RankBin(f"beyond {first.depth}", [column.count(None) for column in ranks])]


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Distinguish results of equal name by a number."""
    seen: Counter[str] = Counter()
    names = []
    for evaluation in evaluations:
        name = short_name(evaluation)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def _scores(evaluation: Evaluation, confidence_level: float) -> dict[str, Score]:
    intervals = evaluation.intervals(confidence_level=confidence_level)
    return {metric: Score(value, *intervals[metric]) for metric, value in evaluation.metrics.items()}
