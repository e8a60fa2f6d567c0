"""Confidence intervals for the means of metrics, with questions about one chunk taken together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower bound.
        high: Upper bound.
    """

    low: float
    high: float


def cluster_totals(
    values: NDArray[np.float64], clusters: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each cluster's sums, of shape ``(num_clusters, num_columns)``, and its size, of shape ``(num_clusters,)``."""
    sizes = np.bincount(clusters).astype(np.float64)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, clusters, values)
    return sums, sizes


def standard_error(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cluster-robust standard error of each column's mean, of shape ``(num_columns,)``.

    That of a ratio of two totals over clusters (Cochran, "Sampling Techniques", 1977, section 9A.1).

    Example:
        >>> standard_error(np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([0, 1, 2, 3])).round(3)
        array([0.289])
    """
    sums, sizes = cluster_totals(values, clusters)
    num_clusters = len(sizes)
    residuals = sums - sizes[:, None] * (sums.sum(axis=0) / sizes.sum())
    variance = (residuals**2).sum(axis=0) * num_clusters / max(num_clusters - 1, 1)
    error: NDArray[np.float64] = np.sqrt(variance) / sizes.sum()
    return error


def mean_intervals(
    values: NDArray[np.float64], clusters: NDArray[np.int64], *, confidence: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return intervals for the means of values between 0 and 1, such as metrics.

    Wilson's interval (1927) for as many questions as carry the information there is: ``mean * (1 - mean) / error ** 2``,
    with the cluster-robust standard error, and with the quantile of Student's t for that many clusters (after Korn and
    Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from survey
    data", 1998). Unlike the bootstrap's it does not collapse where all questions are hits.

    Args:
        values: One row a question and one column a metric, of shape ``(num_queries, num_metrics)``.
        clusters: Which cluster each question belongs to, numbered from 0, of shape ``(num_queries,)``.
        confidence: How often the interval should hold the true mean.

    Returns:
        The lower and the upper bounds, both of shape ``(num_metrics,)``; 0 and 1 for a single cluster.

    Example:
        >>> low, high = mean_intervals(np.ones((50, 1)), np.arange(50))
        >>> low.round(3).tolist(), high.round(3).tolist()
        ([0.925], [1.0])
    """
    means, num_clusters = values.mean(axis=0), int(clusters.max()) + 1
    if num_clusters == 1:
        return np.zeros_like(means), np.ones_like(means)
    errors, spread = standard_error(values, clusters), means * (1 - means)
    # Where all values are equal there is no error to measure: then each cluster counts once.
    is_measured = (errors > 0) & (spread > 1e-12)
    num = np.divide(spread, errors**2, out=np.full_like(means, num_clusters), where=is_measured)
    quantile = stats.t.ppf((1 + confidence) / 2, num_clusters - 1)
    share = quantile**2 / num
    centres = (means + share / 2) / (1 + share)
    widths = np.sqrt(share * (np.maximum(spread, 0) + share / 4)) / (1 + share)
    return np.clip(centres - widths, 0, means), np.clip(centres + widths, means, 1)
