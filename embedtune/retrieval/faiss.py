"""Approximate search by FAISS, for corpora where comparing with every vector takes too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Graph:
    """An HNSW graph over vectors. It takes minutes to build for a hundred thousand, and milliseconds to search.

    Attributes:
        faiss: FAISS's index.
        positions: The chunk of each node of the graph, -1 for one that was removed.
    """

    faiss: Any
    positions: NDArray[np.int64]

    @classmethod
    def build(cls, vectors: NDArray[np.float32], similarity: Similarity) -> Graph:
        """Build a graph.

        Raises:
            OptionalDependencyError: If ``faiss-cpu`` is not installed.
            ValueError: If the similarity is neither the cosine nor the dot product.
        """
        if similarity not in ("cosine", "dot"):
            raise ValueError(
                f"approximate=True compares by cosine or dot product, not by {similarity!r}. Leave it out."
            )
        faiss = _faiss()
        index = faiss.IndexHNSWFlat(vectors.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _CONSTRUCTION_WIDTH
        index.hnsw.efSearch = _SEARCH_WIDTH
        index.add(np.ascontiguousarray(vectors))
        return cls(index, np.arange(len(vectors)))

    def changed(self, moved: NDArray[np.int64], new: Sequence[int], vectors: NDArray[np.float32]) -> Graph:
        """Return a graph of other chunks; the nodes that exist are not built again.

        Args:
            moved: The new position of each old position, -1 for a chunk that is removed.
            new: The positions of the chunks that are added.
            vectors: Their vectors.
        """
        graph = _faiss().clone_index(self.faiss)  # other threads may be searching this one
        if len(new):
            graph.add(np.ascontiguousarray(vectors))
        kept = np.append(moved, -1)[self.positions]  # -1, for a removed chunk, takes the last
        return Graph(graph, np.concatenate([kept, np.asarray(new, dtype=np.int64)]))

    def search(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Return positions of shape ``(num_queries, k)``, best first; -1 where the graph led to fewer."""
        num_removed = int((self.positions < 0).sum())
        _, nodes = self.faiss.search(np.ascontiguousarray(queries), min(k + num_removed, len(self.positions)))
        found = np.where(nodes >= 0, self.positions[nodes], -1)
        first = np.argsort(found < 0, axis=1, kind="stable")[:, :k]  # what was removed goes to the end
        return np.take_along_axis(found, first, axis=1)

    def write(self, path: Path) -> None:
        """Write the graph to a file."""
        _faiss().write_index(self.faiss, str(path))

    @classmethod
    def read(cls, path: Path, positions: NDArray[np.int64]) -> Graph:
        """Read what `write` wrote."""
        return cls(_faiss().read_index(str(path)), positions)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as err:
        raise OptionalDependencyError("faiss-cpu", extra="faiss", purpose="approximate search") from err
    return faiss
