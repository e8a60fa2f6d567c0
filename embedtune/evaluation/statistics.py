"""How certain a mean or a difference is: intervals and p-values that keep questions about one chunk or document together.

Questions about one chunk are found or missed together, so they are not independent. Every function takes ``clusters``, the
number of each question's chunk or document, counted from 0, of shape ``(num_queries,)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bounds the memory of resampling to a few arrays of 4 MB, for any number of clusters.
_DRAWS_PER_BLOCK = 500_000
# Sums that differ only by rounding count as equal.
_ROUNDING = 1e-9


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
    """Return the sum of each cluster, of shape ``(num_clusters, num_columns)``, and its size, of shape ``(num_clusters,)``."""
    sizes = np.bincount(clusters).astype(np.float64)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, clusters, values)
    return sums, sizes


def standard_error(values: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the cluster-robust standard error of the mean of each column, of shape ``(num_columns,)``.

    The mean is a ratio of two totals over clusters (Cochran, "Sampling Techniques", 1977, section 9A.1).

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


def degrees_of_freedom(sizes: NDArray[np.float64]) -> float:
    """Return how many clusters of equal size tell as much as clusters of these sizes, less one; at least one.

    Kish's effective number, ``sum(sizes) ** 2 / sum(sizes ** 2)`` ("Survey Sampling", 1965): with few clusters of unequal size,
    Student's t with the number of clusters less one promises too much (Carter, Schnepel and Steigerwald, "Asymptotic behavior
    of a t-test robust to cluster heterogeneity", 2017).

    Example:
        >>> degrees_of_freedom(np.array([5.0, 5.0, 5.0])), round(degrees_of_freedom(np.array([13.0, 1.0, 1.0])), 2)
        (2.0, 1.0)
    """
    return max(1.0, float(sizes.sum() ** 2 / (sizes**2).sum()) - 1)


def mean_intervals(
    values: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    confidence_level: float = 0.95,
    by_seed: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return confidence intervals for means of values between 0 and 1, such as metrics.

    Wilson's interval (1927) with the effective number of questions, ``mean * (1 - mean) / error ** 2``, where the error is
    cluster-robust and the quantile is Student's t (after Korn and Graubard, "Confidence intervals for proportions with small
    expected number of positive counts estimated from survey data", 1998). Unlike the bootstrap interval it does not
    collapse to a point when all questions are hits.

    Args:
        values: Of shape ``(num_queries, num_metrics)``.
        clusters: The cluster of each question.
        confidence_level: How often the interval should contain the true mean.
        by_seed: The mean of each training seed, of shape ``(num_seeds, num_metrics)``, if ``values`` are means over seeds:
            the interval then covers the draw of the seeds too.

    Returns:
        Lower and upper bounds, both of shape ``(num_metrics,)``; 0 and 1 for a single cluster.

    Example:
        >>> low, high = mean_intervals(np.ones((50, 1)), np.arange(50))
        >>> low.round(3).tolist(), high.round(3).tolist()
        ([0.925], [1.0])
    """
    means, num_clusters = values.mean(axis=0), int(clusters.max()) + 1
    if num_clusters == 1:
        return np.zeros_like(means), np.ones_like(means)
    _, sizes = cluster_totals(values, clusters)
    errors, df = _with_seeds(standard_error(values, clusters), degrees_of_freedom(sizes), by_seed)
    spread = means * (1 - means)
    # If all values are equal, no error can be measured, and each cluster counts once.
    is_measured = (errors > 0) & (spread > 1e-12)
    num = np.divide(spread, errors**2, out=np.full_like(means, num_clusters), where=is_measured)
    quantile = stats.t.ppf((1 + confidence_level) / 2, df)
    share = quantile**2 / num
    centres = (means + share / 2) / (1 + share)
    widths = np.sqrt(share * (np.maximum(spread, 0) + share / 4)) / (1 + share)
    return np.clip(centres - widths, 0, means), np.clip(centres + widths, means, 1)


def paired_interval(
    differences: NDArray[np.float64],
    clusters: NDArray[np.int64],
    *,
    confidence_level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
    by_seed: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return bootstrap intervals for the mean difference between two retrievers on the same questions.

    Each resample draws whole clusters with replacement, as many as there are, and takes the mean over their questions
    (Field and Welsh, "Bootstrapping clustered data", 2007). The interval is the mean plus and minus the standard deviation
    of these means times a quantile of Student's t (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
    12) with the `degrees_of_freedom` of the clusters; the percentile interval is too narrow for few clusters.

    If nothing differs, there is nothing to resample. The interval is then the largest difference that ``n`` equal clusters
    do not exclude: all ``n`` are equal with probability ``(1 - p) ** n`` (Clopper and Pearson, 1934).

    Args:
        differences: Values between -1 and 1, of shape ``(num_queries, num_metrics)``.
        clusters: The cluster of each question.
        confidence_level: How often the interval should contain the true difference.
        num_resamples: How many resamples to draw.
        seed: Seed of the resamples.
        by_seed: The mean difference of each training seed, of shape ``(num_seeds, num_metrics)``, if ``differences`` are means
            over seeds: the interval then covers the draw of the seeds too.

    Returns:
        Lower and upper bounds, both of shape ``(num_metrics,)``; -1 and 1 for a single cluster.

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
    # The variance between resamples of n clusters is (n - 1) / n of the unbiased one.
    errors = resampled.std(axis=0) * np.sqrt(num_clusters / (num_clusters - 1))
    errors, df = _with_seeds(errors, degrees_of_freedom(sizes), by_seed)
    widths = stats.t.ppf((1 + confidence_level) / 2, df) * errors
    overlooked = 1 - ((1 - confidence_level) / 2) ** (1 / num_clusters)
    widths = np.where(np.any(differences, axis=0), widths, overlooked)
    return np.maximum(means - widths, -1.0), np.minimum(means + widths, 1.0)


def _with_seeds(
    errors: NDArray[np.float64], df: float, by_seed: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the standard errors with the variance of the mean over seeds added, and their degrees of freedom.

    The degrees of freedom of a sum of two variances are Satterthwaite's ("An approximate distribution of estimates of variance
    components", 1946).
    """
    if by_seed is None or len(by_seed) < 2:
        return errors, np.full_like(errors, df)
    variances = np.stack([errors**2, by_seed.var(axis=0, ddof=1) / len(by_seed)])
    parts = (variances**2 / np.array([[df], [len(by_seed) - 1.0]])).sum(axis=0)
    total = variances.sum(axis=0)
    return np.sqrt(total), np.divide(total**2, parts, out=np.full_like(errors, df), where=parts > 0)


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
        # How often each cluster was drawn determines the mean, as a matrix product.
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(shape).astype(np.float64)
        means[start : start + block] = (counts @ sums) / (counts @ sizes)[:, None]
    return means


def permutation_p_values(
    differences: NDArray[np.float64], clusters: NDArray[np.int64], *, num_resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Return two-sided p-values of the paired permutation test, which flips the signs of whole clusters.

    If ``m`` clusters differ, a p-value is at least ``2 ** (1 - m)``: at a level of 5%, fewer than six are never enough.

    Args:
        differences: One column for each comparison, of shape ``(num_queries, num_comparisons)``.
        clusters: The cluster of each question.
        num_resamples: How many permutations to draw; where there are fewer in all, the test is exact.
        seed: Seed of the permutations.

    Returns:
        P-values of shape ``(num_comparisons,)``.

    Example:
        >>> permutation_p_values(np.array([[1.0]] * 10 + [[0.0]] * 30), np.arange(40)).round(3)
        array([0.002])
    """
    sums, _ = cluster_totals(differences, clusters)
    return np.array([_p_value(column[np.abs(column) > _ROUNDING], num_resamples, seed) for column in sums.T])


def _p_value(sums: NDArray[np.float64], num_resamples: int, seed: int) -> float:
    if len(sums) < 2:  # one sign can always be the other
        return 1.0
    test = stats.permutation_test(
        (sums,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, _DRAWS_PER_BLOCK // len(sums)),
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values for the number of comparisons, so that the family-wise error rate holds.

    Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Example:
        >>> holm(np.array([0.04, 0.01, 0.03]))
        array([0.06, 0.03, 0.06])
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return adjusted
