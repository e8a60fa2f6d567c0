"""Near-duplicate chunks, and the groups of documents that must stay in one split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedtune.near_duplicates import near_duplicate_pairs

if TYPE_CHECKING:
    from embedtune.types import Chunk


def spans_overlap(first: Chunk, second: Chunk) -> bool:
    """Return whether two chunks share characters of one document."""
    return first.document_id == second.document_id and first.start < second.end and second.start < first.end


def duplicate_groups(chunks: Sequence[Chunk]) -> list[str]:
    """Return for each chunk the id of its first near-duplicate, or its own id.

    Overlapping neighbours do not count: they share text by construction, and a whole document would become one group.
    """
    pairs = [
        (i, j)
        for i, j in near_duplicate_pairs([chunk.text for chunk in chunks])
        if not spans_overlap(chunks[i], chunks[j])
    ]
    firsts = _first_members(len(chunks), pairs)
    return [chunks[first].id for first in firsts]


def document_groups(chunks: Sequence[Chunk], duplicates: Sequence[str]) -> dict[str, str]:
    """Map each document to its group, named after the group's smallest document id.

    Documents that share near-duplicate chunks are one group: training on one of them reveals the other.

    Args:
        chunks: The chunks of all documents.
        duplicates: What `duplicate_groups` returned for them.
    """
    documents = sorted({chunk.document_id for chunk in chunks})
    position = {document: i for i, document in enumerate(documents)}
    home = {chunk.id: position[chunk.document_id] for chunk in chunks}
    pairs = [(home[chunk.id], home[first]) for chunk, first in zip(chunks, duplicates, strict=True)]
    firsts = _first_members(len(documents), pairs)
    return {document: documents[first] for document, first in zip(documents, firsts, strict=True)}


def _first_members(size: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return for each of ``size`` nodes the smallest node it is connected to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    _, first_of_label = np.unique(labels, return_index=True)
    firsts: list[int] = first_of_label[labels].tolist()
    return firsts
