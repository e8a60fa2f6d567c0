"""Confidence intervals for a difference between two retrievers that answered the same questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
    clusters as there are, with replacement, and takes the mean over all questions in them. The interval is the
    percentile interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; on clusters: Field and
    Welsh, "Bootstrapping clustered data", 2007).

    Args:
        differences: One row a question and one column a metric, of shape ``(num_queries, num_metrics)``.
        clusters: Which cluster each question belongs to, numbered from 0, of shape ``(num_queries,)``.
        confidence: How often the interval should hold the true difference.
        num_resamples: How many resamples to draw.
        seed: Draws them.

    Returns:
        The lower and the upper bounds, both of shape ``(num_metrics,)``.

    Example:
        >>> low, high = paired_interval(np.array([[0.0], [1.0], [0.0], [1.0]]), np.array([0, 1, 2, 3]))
        >>> low.tolist(), high.tolist()
        ([0.0], [1.0])
    """
    sizes = np.bincount(clusters).astype(np.float64)
    sums = np.zeros((len(sizes), differences.shape[1]))
    np.add.at(sums, clusters, differences)
    rng = np.random.default_rng(seed)
    means = np.empty((num_resamples, differences.shape[1]))
    block = max(1, _DRAWS_PER_BLOCK // len(sizes))
    for start in range(0, num_resamples, block):
        shape = (min(block, num_resamples - start), len(sizes))
        drawn = rng.integers(len(sizes), size=shape) + len(sizes) * np.arange(shape[0])[:, None]
        # How often each cluster is drawn says all about a resample, and makes its mean a matrix product.
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape).astype(np.float64)
        means[start : start + block] = (counts @ sums) / (counts @ sizes)[:, None]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high
