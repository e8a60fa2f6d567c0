"""Retrieval metrics of rankings, one value per question, for any number of right chunks.

All take ``hits``, the 0-1 relevance of each retrieved chunk, best first, of shape ``(num_queries, depth)``, and where the
formula needs it ``num_relevant``, how many right chunks each question has (at least one), of shape ``(num_queries,)``.
All return float64 of shape ``(num_queries,)``. A ranking shorter than ``k`` counts as if misses followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def accuracy_at_k(hits: NDArray[np.bool_], *, k: int) -> NDArray[np.float64]:
    """Return 1 where a right chunk is among the first ``k``, else 0: hit rate, or top-k accuracy.

    Example:
        >>> accuracy_at_k(np.array([[False, True], [False, False]]), k=2)
        array([1., 0.])
    """
    found: NDArray[np.float64] = np.any(hits[:, :k], axis=1).astype(np.float64)
    return found


def recall_at_k(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64], *, k: int) -> NDArray[np.float64]:
    """Return the share of a question's right chunks that is among the first ``k``.

    With one right chunk per question it equals `accuracy_at_k`.

    Example:
        >>> recall_at_k(np.array([[True, False, True]]), np.array([4]), k=3)
        array([0.5])
    """
    share: NDArray[np.float64] = hits[:, :k].sum(axis=1) / num_relevant
    return share


def mrr_at_k(hits: NDArray[np.bool_], *, k: int) -> NDArray[np.float64]:
    """Return the reciprocal rank of the first right chunk, 0 where none is among the first ``k``.

    Its mean is the mean reciprocal rank (Voorhees, "The TREC-8 Question Answering Track Report", 1999).

    Example:
        >>> mrr_at_k(np.array([[False, True, True], [False, False, False]]), k=3)
        array([0.5, 0. ])
    """
    top = hits[:, :k]
    reciprocal: NDArray[np.float64] = (top / _ranks(top)).max(axis=1)
    return reciprocal


def ndcg_at_k(hits: NDArray[np.bool_], num_relevant: NDArray[np.int64], *, k: int) -> NDArray[np.float64]:
    """Return the discounted cumulative gain over that of the best possible ranking.

    ``DCG = sum(hit_r / log2(r + 1))`` over the ranks ``r <= k``; the best ranking has all right chunks, or ``k`` of them,
    in front (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002, with binary gains).

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
    """Return the average precision: precision at the rank of each right chunk, over the right chunks that fit in ``k``.

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

    Example:
        >>> list(metrics_at_k(np.array([[True]]), np.array([1]), k=1))
        ['accuracy@1', 'recall@1', 'mrr@1', 'ndcg@1', 'map@1']
    """
    return {
        f"accuracy@{k}": accuracy_at_k(hits, k=k),
        f"recall@{k}": recall_at_k(hits, num_relevant, k=k),
        f"mrr@{k}": mrr_at_k(hits, k=k),
        f"ndcg@{k}": ndcg_at_k(hits, num_relevant, k=k),
        f"map@{k}": map_at_k(hits, num_relevant, k=k),
    }


def _ranks(top: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.arange(1, top.shape[1] + 1)
