"""The paired permutation test, a check of the bootstrap that assumes less, and the correction for many comparisons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedtune.evaluation.intervals import cluster_totals

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Sums that are equal but for rounding count as equal.
_ROUNDING = 1e-9
_SIGNS_PER_BLOCK = 500_000


def permutation_p_values(
    differences: NDArray[np.float64], clusters: NDArray[np.int64], *, num_permutations: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Return how probable differences at least as large would be if the two retrievers were alike.

    Were they alike, each cluster's differences could as well have had the other sign. So the signs of whole clusters are
    flipped at random, and the share of flips that give as large a mean is the two-sided p-value (Fisher, "The Design of
    Experiments", 1935; with one added to count what was seen: Phipson and Smyth, 2010). Where ``m`` clusters differ, it
    cannot fall below about ``2 ** (1 - m)``: fewer than six never suffice for 5%.

    Args:
        differences: One row a question and one column a comparison, of shape ``(num_queries, num_comparisons)``.
        clusters: Which cluster each question belongs to, numbered from 0, of shape ``(num_queries,)``.
        num_permutations: How many flips to draw.
        seed: Draws them.

    Returns:
        P-values of shape ``(num_comparisons,)``.

    Example:
        >>> permutation_p_values(np.array([[1.0]] * 10 + [[0.0]] * 30), np.arange(40)) < 0.01
        array([ True])
    """
    sums, _ = cluster_totals(differences, clusters)
    sums = sums[np.abs(sums).max(axis=1) > _ROUNDING]
    seen = np.abs(sums.sum(axis=0)) - _ROUNDING
    rng = np.random.default_rng(seed)
    as_large = np.zeros(sums.shape[1])
    block = max(1, _SIGNS_PER_BLOCK // max(len(sums), 1))
    for start in range(0, num_permutations, block):
        shape = (min(block, num_permutations - start), len(sums))
        signs = rng.integers(2, size=shape, dtype=np.int8).astype(np.float64) * 2 - 1
        as_large += (np.abs(signs @ sums) >= seen).sum(axis=0)
    return (as_large + 1) / (num_permutations + 1)


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust p-values for their number, so that among all comparisons one false finding is as rare as said.

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
