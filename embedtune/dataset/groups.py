"""Near-duplicate chunks, and the groups of documents that must stay in one split."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedtune.text import words

if TYPE_CHECKING:
    from embedtune.types import Chunk

NEAR_DUPLICATE_JACCARD = 0.5
"""Texts that share half of their runs of three words are near-duplicates."""


def shingles(text: str, size: int = 3) -> frozenset[str]:
    """Return every run of ``size`` words of a text; a shorter text is one shingle.

    In scripts without spaces a character is a word, see `words`.
    """
    found = words(text)
    return frozenset(" ".join(found[i : i + size]) for i in range(max(1, len(found) - size + 1)))


def near_duplicate_pairs(texts: Sequence[str], *, threshold: float = NEAR_DUPLICATE_JACCARD) -> list[tuple[int, int]]:
    """Return the pairs of positions whose shingles have a Jaccard similarity of at least ``threshold``.

    MinHash with locality-sensitive hashing proposes the pairs (Broder 1997; Leskovec, Rajaraman and Ullman,
    "Mining of Massive Datasets", chapter 3), and the exact similarity decides. No pair is wrong; close to the threshold
    some are missed (at 0.5 about one in twenty).

    Example:
        >>> near_duplicate_pairs(["press the red button twice", "Press the red button twice!", "open the lid"])
        [(0, 1)]
    """
    from datasketch import MinHash, MinHashLSH

    sets = [shingles(text) for text in texts]
    # crc32 is much faster than the default sha1; the exact similarity is checked anyway.
    sketches = MinHash.bulk(
        [[s.encode("utf-8", "replace") for s in one] for one in sets], num_perm=64, hashfunc=zlib.crc32
    )
    # Weighting false negatives nine to one proposes more pairs than needed and misses few.
    index = MinHashLSH(threshold=threshold, num_perm=64, weights=(0.1, 0.9))
    pairs = []
    for position, sketch in enumerate(sketches):
        pairs += [
            (other, position)
            for other in index.query(sketch)
            if len(sets[other] & sets[position]) >= threshold * len(sets[other] | sets[position])
        ]
        index.insert(position, sketch)
    return sorted(pairs)


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
