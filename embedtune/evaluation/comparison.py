"""One result compared with others on the same questions: the change of each metric, and whether it can be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from embedtune.evaluation.statistics import holm, paired_interval, permutation_p_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.evaluation.result import Evaluation

Decision = Literal["better", "worse", "cannot tell"]

MIN_DOCUMENTS = 6
"""With fewer documents, nothing is decided about documents that are not trained on."""


@dataclass(frozen=True)
class MetricChange:
    """The change of one metric.

    Attributes:
        before: Its mean before.
        after: Its mean after.
        difference: After minus before.
        low: Lower bound of the paired bootstrap interval of the difference.
        high: Upper bound.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The judged result compared with another one.

    Attributes:
        other: The other result.
        decision: ``"better"`` or ``"worse"`` than the other, or ``"cannot tell"``.
        metrics: The change of each metric from the other result to the judged one.
        p_value: Of the paired permutation test on the primary metric, adjusted for the number of comparisons in its family.
        num_changed: For how many chunks the primary metric differs.
    """

    other: Evaluation
    decision: Decision
    metrics: Mapping[str, MetricChange]
    p_value: float
    num_changed: int


def compare_with_each(
    after: Evaluation, others: Sequence[Evaluation], *, confidence_level: float, num_resamples: int, seed: int
) -> tuple[Comparison, ...]:
    """Compare a result with the first of the others, as a question of its own, and with the rest as a family.

    The first comparison holds at the full level however many others there are: if two retrievers are equally good, it calls
    one of them better in at most ``1 - confidence_level`` of the cases. The rest have that probability of any false finding
    among all of them together.
    """
    families = [family for family in (others[:1], others[1:]) if family]
    return tuple(
        comparison
        for family in families
        for comparison in _family(
            after, family, confidence_level=confidence_level, num_resamples=num_resamples, seed=seed
        )
    )


def _family(
    after: Evaluation, others: Sequence[Evaluation], *, confidence_level: float, num_resamples: int, seed: int
) -> tuple[Comparison, ...]:
    """Compare a result with each of the others: Bonferroni's intervals, each at a higher level, and Holm's p-values."""
    differences = [_differences(other, after) for other in others]
    low, high = paired_interval(
        np.concatenate(differences, axis=1),
        after.clusters,
        confidence_level=1 - (1 - confidence_level) / len(others),
        num_resamples=num_resamples,
        seed=seed,
        by_seed=np.concatenate([_seed_differences(other, after) for other in others], axis=1),
    )
    primary = list(after.metrics).index(after.primary_metric)
    of_primary = np.stack([columns[:, primary] for columns in differences], axis=1)
    p_values = holm(permutation_p_values(of_primary, after.clusters, num_resamples=num_resamples, seed=seed))
    bounds = zip(np.split(low, len(others)), np.split(high, len(others)), strict=True)
    return tuple(
        _comparison(after, other, columns, low_high, float(p), confidence_level)
        for other, columns, low_high, p in zip(others, differences, bounds, p_values, strict=True)
    )


def _differences(before: Evaluation, after: Evaluation) -> NDArray[np.float64]:
    """Return the difference of each question and metric, of shape ``(num_queries, num_metrics)``."""
    return np.stack([after.per_query_metrics[n] - before.per_query_metrics[n] for n in after.metrics], axis=1)


def _seed_differences(before: Evaluation, after: Evaluation) -> NDArray[np.float64]:
    """Return the mean difference of each training seed and metric, of shape ``(num_seeds, num_metrics)``.

    A retriever without seeds, such as BM25, is the same beside every seed of the other.
    """
    means = [
        np.stack([seeds.mean(axis=1) for seeds in result.per_seed_metrics.values()], axis=1)
        for result in (before, after)
    ]
    difference: NDArray[np.float64] = means[1] - means[0]
    return difference


def _comparison(
    after: Evaluation,
    other: Evaluation,
    differences: NDArray[np.float64],
    bounds: tuple[NDArray[np.float64], NDArray[np.float64]],
    p_value: float,
    confidence_level: float,
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
        decision=_decide(metrics[after.primary_metric], p_value, confidence_level, _is_too_few(after)),
        metrics=metrics,
        p_value=p_value,
        num_changed=int(np.count_nonzero(np.abs(sums) > 1e-12)),
    )


def _is_too_few(result: Evaluation) -> bool:
    return result.documents is not None and len(set(result.documents)) < MIN_DOCUMENTS


def _decide(change: MetricChange, p_value: float, confidence_level: float, is_too_few: bool) -> Decision:
    # Both must agree: the bootstrap is too confident when few clusters changed, and the test says nothing about the size.
    if is_too_few or p_value > 1 - confidence_level or change.low <= 0 <= change.high:
        return "cannot tell"
    return "better" if change.low > 0 else "worse"
