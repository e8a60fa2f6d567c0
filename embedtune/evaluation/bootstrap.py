"""The paired bootstrap: how sure a difference between two retrievers is that answered the same questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from embedtune.evaluation.intervals import cluster_totals

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A few arrays of 4 MB, whatever the number of clusters.
_DRAWS_PER_BLOCK = 500_000


def paired_interval(
    differences: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bootstrap the mean difference of paired values, drawing whole clusters.

    Questions about one chunk stand or fall together, so they are no independent evidence: each resample draws as many
    clusters as there are, with replacement, and takes the mean over all questions in them (Field and Welsh,
    "Bootstrapping clustered data", 2007). The interval is the mean and, to either side, the standard deviation of the
    resamples' means times a quantile of Student's t (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    chapter 12). The percentile interval is too narrow where there are few clusters.

    Where nothing differs, resampling says nothing. Then it is the largest difference that such questions can overlook:
    zero of ``n`` clusters differ with a chance of ``(1 - p) ** n``, and none differs by more than 1 (Clopper and Pearson,
    1934).

    Args:
        differences: One row a question and one column a metric, between -1 and 1, of shape ``(num_queries, num_metrics)``.
        clusters: Which cluster each question belongs to, numbered from 0, of shape ``(num_queries,)``.
        confidence: How often the interval should hold the true difference.
        num_resamples: How many resamples to draw.
        seed: Draws them.

    Returns:
        The lower and the upper bounds, both of shape ``(num_metrics,)``; -1 and 1 for a single cluster.

    Example:
        >>> low, high = paired_interval(np.array([[0.0], [1.0]] * 20), np.arange(40))
        >>> low.round(2).tolist(), high.round(2).tolist()
        ([0.34], [0.66])
    """
    sums, sizes = cluster_totals(differences, clusters)
    means, num_clusters = sums.sum(axis=0) / sizes.sum(), len(sizes)
    if num_clusters == 1:
        return np.full_like(means, -1.0), np.full_like(means, 1.0)
    resampled = _resampled_means(sums, sizes, num_resamples, seed)
    # Drawn from n clusters, resamples vary by (n - 1) / n of the variance there is.
    errors = resampled.std(axis=0) * np.sqrt(num_clusters / (num_clusters - 1))
    widths = stats.t.ppf((1 + confidence) / 2, num_clusters - 1) * errors
    overlooked = 1 - ((1 - confidence) / 2) ** (1 / num_clusters)
    widths = np.where(np.any(sums, axis=0) | np.any(differences, axis=0), widths, overlooked)
    return np.maximum(means - widths, -1.0), np.minimum(means + widths, 1.0)


def _resampled_means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64], num_resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the mean of each resample, of shape ``(num_resamples, num_metrics)``."""
    rng = np.random.default_rng(seed)
    means = np.empty((num_resamples, sums.shape[1]))
    block = max(1, _DRAWS_PER_BLOCK // len(sizes))
    for start in range(0, num_resamples, block):
        shape = (min(block, num_resamples - start), len(sizes))
        drawn = rng.integers(len(sizes), size=shape) + len(sizes) * np.arange(shape[0])[:, None]
        # How often each cluster is drawn says all about a resample, and makes its mean a matrix product.
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape).astype(np.float64)
        means[start : start + block] = (counts @ sums) / (counts @ sizes)[:, None]
    return means
