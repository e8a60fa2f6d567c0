"""One result held against others for the same questions: each metric's change, and whether it is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from embedtune.evaluation.bootstrap import paired_interval
from embedtune.evaluation.permutation import holm, permutation_p_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.evaluation.result import Evaluation

Decision = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class MetricChange:
    """What became of one metric.

    Attributes:
        before: Its mean before.
        after: Its mean after.
        difference: After minus before.
        low: Lower bound of the difference's paired bootstrap interval.
        high: Upper bound.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result to judge against another one.

    Attributes:
        other: The other one.
        decision: Whether the result to judge is ``"better"`` or ``"worse"`` than the other, or ``"cannot tell"``.
        metrics: Each metric's change from the other to the result to judge.
        p_value: Of the paired permutation test on the primary metric, adjusted for the number of comparisons in
            its family (see `compare`).
        num_changed: For how many chunks the primary metric differs.
    """

    other: Evaluation
    decision: Decision
    metrics: Mapping[str, MetricChange]
    p_value: float
    num_changed: int


def compare_with_each(
    after: Evaluation, others: Sequence[Evaluation], *, confidence: float, num_resamples: int, seed: int
) -> tuple[Comparison, ...]:
    """Hold a result against each of the others: against the first as the question asked beforehand, then against the rest.

    The first comparison is what the verdict is about, whatever else stands in the table, so it is made at the full level:
    of retrievers that are alike it calls at most ``1 - confidence`` of the pairs better or worse. The rest are a family of
    their own, in which at most that share of tables has any false finding.
    """
    return (
        *_family(after, others[:1], confidence=confidence, num_resamples=num_resamples, seed=seed),
        *_family(after, others[1:], confidence=confidence, num_resamples=num_resamples, seed=seed),
    )


def _family(
    after: Evaluation, others: Sequence[Evaluation], *, confidence: float, num_resamples: int, seed: int
) -> tuple[Comparison, ...]:
    """Hold a result against each of the others, so that all intervals and decisions hold at once with ``confidence``.

    The intervals are Bonferroni's, each at the level ``1 - (1 - confidence) / len(others)``; the p-values are Holm's.
    """
    if not others:
        return ()
    differences = [_differences(other, after) for other in others]
    low, high = paired_interval(
        np.concatenate(differences, axis=1),
        after.clusters,
        confidence=1 - (1 - confidence) / len(others),
        num_resamples=num_resamples,
        seed=seed,
    )
    primary = list(after.metrics).index(after.primary_metric)
    p_values = holm(
        permutation_p_values(
            np.stack([columns[:, primary] for columns in differences], axis=1),
            after.clusters,
            num_permutations=num_resamples,
            seed=seed,
        )
    )
    bounds = zip(np.split(low, len(others)), np.split(high, len(others)), strict=True)
    return tuple(
        _comparison(after, other, columns, low_high, float(p), confidence)
        for other, columns, low_high, p in zip(others, differences, bounds, p_values, strict=True)
    )


def _differences(before: Evaluation, after: Evaluation) -> NDArray[np.float64]:
    """Return the difference of each question and metric, of shape ``(num_queries, num_metrics)``."""
    return np.stack([after.per_query_metrics[n] - before.per_query_metrics[n] for n in after.metrics], axis=1)


def _comparison(
    after: Evaluation,
    other: Evaluation,
    differences: NDArray[np.float64],
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
    p_value: float,
    confidence: float,
) -> Comparison:
    means = differences.mean(axis=0)
    metrics = {
        name: MetricChange(other.metrics[name], after.metrics[name], float(mean), float(low), float(high))
        for name, mean, low, high in zip(after.metrics, means, *bounds, strict=True)
    }
    primary = list(after.metrics).index(after.primary_metric)
    sums = np.bincount(after.clusters, weights=differences[:, primary])
    return Comparison(
        other=other,
        decision=_decide(metrics[after.primary_metric], p_value, confidence),
        metrics=metrics,
        p_value=p_value,
        num_changed=int(np.count_nonzero(np.abs(sums) > 1e-12)),
    )


def _decide(change: MetricChange, p_value: float, confidence: float) -> Decision:
    # Both must agree: the bootstrap trusts few changed chunks too much, and the test alone says nothing of the size.
    if p_value > 1 - confidence or change.low <= 0 <= change.high:
        return "cannot tell"
    return "better" if change.low > 0 else "worse"
