"""Retrieval metrics of rankings, one value per question, for any number of relevant chunks.

All take ``hits``, whether each retrieved chunk is relevant, best first, of shape ``(num_queries, depth)``, and if needed
``num_relevant``, the number of relevant chunks of each question (at least one), of shape ``(num_queries,)``. All return
float64 of shape ``(num_queries,)``. A ranking shorter than ``k`` is treated as if misses followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def accuracy_at_k(hits: NDArray[np.bool_], *, k: int) -> NDArray[np.float64]:
    """Return 1 if a relevant chunk is among the first ``k``, else 0: hit rate, or top-k accuracy.

    Example:
        >>> accuracy_at_k(np.array([[False, True], [False, False]]), k=2)
        array([1., 0.])
    """
    found: NDArray[np.float64] = np.any(hits[:, :k], axis=1).astype(np.float64)
    return found


def recall_at_k(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64], *, k: int) -> NDArray[np.float64]:
    """Return the share of a question's relevant chunks that are among the first ``k``.

    With one relevant chunk per question it equals `accuracy_at_k`.

    Example:
        >>> recall_at_k(np.array([[True, False, True]]), np.array([4]), k=3)
        array([0.5])
    """
    share: NDArray[np.float64] = hits[:, :k].sum(axis=1) / num_relevant
    return share


def mrr_at_k(hits: NDArray[np.bool_], *, k: int) -> NDArray[np.float64]:
    """Return the reciprocal rank of the first relevant chunk, 0 if none is among the first ``k``.

    Its mean is the mean reciprocal rank (Voorhees, "The TREC-8 Question Answering Track Report", 1999).

    Example:
        >>> mrr_at_k(np.array([[False, True, True], [False, False, False]]), k=3)
        array([0.5, 0. ])
    """
    top = hits[:, :k]
    reciprocal: NDArray[np.float64] = (top / _ranks(top)).max(axis=1)
    return reciprocal


def ndcg_at_k(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64], *, k: int) -> NDArray[np.float64]:
    """Return the discounted cumulative gain divided by that of the best possible ranking.

    ``DCG = sum(hit_r / log2(r + 1))`` over the ranks ``r <= k``; the best ranking starts with all relevant chunks, or ``k`` of
    them (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002, with binary gains).

    Example:
        >>> ndcg_at_k(np.array([[False, True], [True, False]]), np.array([1, 1]), k=2).round(3)
        array([0.631, 1.   ])
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    top = hits[:, :k]
    # Both sums run from the left, so that a perfect ranking scores exactly 1.
    best = discounts.cumsum()[np.minimum(num_relevant, k) - 1]
    gain: NDArray[np.float64] = (top * discounts[: top.shape[1]]).cumsum(axis=1)[:, -1] / best
    return gain


def map_at_k(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64], *, k: int) -> NDArray[np.float64]:
    """Return the average precision: precision at the rank of each relevant chunk, over those that fit in ``k``.

    ``AP = sum(hit_r * precision@r) / min(k, num_relevant)`` over the ranks ``r <= k``, as sentence-transformers has it;
    its mean is the mean average precision (Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 8.4).

    Example:
        >>> map_at_k(np.array([[True, False, True]]), np.array([2]), k=3).round(3)
        array([0.833])
    """
    top = hits[:, :k]
    precision = top.cumsum(axis=1) / _ranks(top)
    average: NDArray[np.float64] = (top * precision).sum(axis=1) / np.minimum(num_relevant, k)
    return average


def metrics_at_k(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64], *, k: int) -> dict[str, NDArray[np.float64]]:
    """Return every metric by its name.

    Raises:
        ValueError: If a ranking has more hits than its question has relevant chunks, so that metrics would exceed 1.

    Example:
        >>> list(metrics_at_k(np.array([[True]]), np.array([1]), k=1))
        ['accuracy@1', 'recall@1', 'mrr@1', 'ndcg@1', 'map@1']
    """
    excess = np.flatnonzero(hits.sum(axis=1) > num_relevant)
    if len(excess):
        row = excess[0]
        raise ValueError(
            f"Ranking {row} has {hits[row].sum()} hits, but its question has {num_relevant[row]} relevant chunks. Each chunk "
            "may be ranked only once."
        )
    return {
        f"accuracy@{k}": accuracy_at_k(hits, k=k),
        f"recall@{k}": recall_at_k(hits, num_relevant, k=k),
        f"mrr@{k}": mrr_at_k(hits, k=k),
        f"ndcg@{k}": ndcg_at_k(hits, num_relevant, k=k),
        f"map@{k}": map_at_k(hits, num_relevant, k=k),
    }


def _ranks(top: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.arange(1, top.shape[1] + 1)
