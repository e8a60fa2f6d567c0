"""Approximate search by FAISS, for corpora where looking at every vector takes too long."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedtune.errors import OptionalDependencyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.search import Similarity

# Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using HNSW graphs", 2018: 32 neighbours
# and wide searches find nearly everything.
_NEIGHBOURS = 32
_CONSTRUCTION_WIDTH = 200
_SEARCH_WIDTH = 256


def build_graph(vectors: NDArray[np.float32], similarity: Similarity) -> Any:
    """Build an HNSW graph over vectors; it takes minutes for a hundred thousand, and then milliseconds for a question.

    Raises:
        OptionalDependencyError: If ``faiss-cpu`` is not installed.
        ValueError: If the similarity is neither the cosine nor the dot product.
    """
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"approximate=True compares by cosine or dot product, not by {similarity!r}. Leave it out.")
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(vectors.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _CONSTRUCTION_WIDTH
    index.hnsw.efSearch = _SEARCH_WIDTH
    index.add(np.ascontiguousarray(vectors))
    return index


def write_graph(index: Any, path: Path) -> None:
    """Write a graph to a file."""
    _faiss().write_index(index, str(path))


def read_graph(path: Path) -> Any:
    """Read what `write_graph` wrote."""
    return _faiss().read_index(str(path))


def search_graph(index: Any, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scores and positions, both of shape ``(num_queries, k)``, best first, ties by position.

    Positions are -1 where the graph led to fewer than ``k``.
    """
    scores, positions = index.search(np.ascontiguousarray(queries), k)
    order = np.lexsort((positions, -scores), axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1).astype(np.int64)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as err:
        raise OptionalDependencyError("faiss-cpu", extra="faiss", purpose="approximate search") from err
    return faiss
