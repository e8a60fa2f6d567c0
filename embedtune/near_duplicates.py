"""Texts that say nearly the same."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedtune.text import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR_DUPLICATE_JACCARD = 0.5
"""Texts that share half of their runs of three words are near-duplicates."""

MANY_PLACES = 10
"""What stands in more places than this is the wording of a template: it does not tell its texts apart."""

# Overlapping chunks share a place. More chunks than this never do.
_MANY_CHUNKS = 5 * MANY_PLACES

_SIZE = 3  # words of a shingle
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)  # odd, arbitrary
_ROWS_PER_BLOCK = 512


def shingles(text: str, size: int = _SIZE) -> frozenset[str]:
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


class Spans(NamedTuple):
    """Where texts come from, each of shape ``(num_texts,)``: the number of the document, and the offsets in it."""

    document: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    def overlap(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pairs of texts share characters of one document."""
        found: NDArray[np.bool_] = (
            (self.document[first] == self.document[second])
            & (self.start[first] < self.end[second])
            & (self.start[second] < self.end[first])
        )
        return found


def near_duplicate_passages(texts: Sequence[str], spans: Spans) -> NDArray[np.int64]:
    """Return pairs of positions that connect near-duplicates, of shape ``(num_pairs, 2)``; overlapping passages are no pair.

    Two passages are near-duplicates if they share half of their shingles, and half of the shingles that are theirs: those
    in at most `MANY_PLACES` places of the corpus. Pages of one template share most of their words and differ in what
    they say. Passages without a shingle of their own are near-duplicates if all shingles are equal. No pair is missed.

    Time and memory grow with the number of words: a shingle in few places makes few pairs.

    Example:
        >>> texts = ["press the red button twice", "Press the red button twice!", "open the lid"]
        >>> spans = Spans(np.arange(3), np.zeros(3, dtype=np.int64), np.full(3, 26))
        >>> near_duplicate_passages(texts, spans).tolist()
        [[0, 1]]
    """
    order = np.lexsort((spans.start, spans.document))
    sets = _hashed_shingles([texts[position] for position in order])
    spans = Spans(*(values[order] for values in spans))
    own = _own_shingles(sets, spans)
    pairs = np.concatenate([_sharing_half(sets, own, spans), _equal(sets, own, spans)])
    return np.sort(order[pairs], axis=1)


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """Return for each text the first that a chain of near-duplicates leads to. No pair is missed.

    The memory grows with the number of texts. The time grows with its square, so this is for thousands.

    Example:
        >>> near_duplicate_groups(["press the red button twice", "open the lid", "Press the red button twice!"])
        [0, 1, 0]
    """
    sets = _hashed_shingles(texts)
    sizes = np.array([len(one) for one in sets], dtype=np.int64)
    columns = np.concatenate([np.empty(0, dtype=np.uint64), *sets])
    firsts = list(range(len(texts)))
    for first, second in _near(_Own(sizes, np.repeat(np.arange(len(texts)), sizes), columns)):
        firsts = first_members(
            len(texts), np.concatenate([np.array([*enumerate(firsts)]), np.stack([first, second], 1)])
        )
    return firsts


def first_members(size: int, pairs: NDArray[np.int64]) -> list[int]:
    """Return for each of ``size`` nodes the smallest node it is connected to, by pairs of shape ``(num_pairs, 2)``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = pairs.reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    _, first_of_label = np.unique(labels, return_index=True)
    firsts: list[int] = first_of_label[labels].tolist()
    return firsts


class _Own(NamedTuple):
    """The shingles of each text that stand in few places: how many, and those in several texts, as row and column."""

    sizes: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64] | NDArray[np.uint64]


def _hashed_shingles(texts: Sequence[str]) -> list[NDArray[np.uint64]]:
    """Return the shingles of each text as sorted numbers: a hash of 64 bits, so two shingles are hardly ever one number."""
    number: dict[str, int] = {}
    sets = []
    for text in texts:
        found = [number.setdefault(word, len(number) + 1) for word in words(text)]
        row = np.array(found + [0] * (_SIZE - len(found)), dtype=np.uint64)
        runs = [row[i : len(row) - _SIZE + 1 + i] * factor for i, factor in enumerate(_FACTORS)]
        sets.append(np.unique(sum(runs[1:], runs[0])))
    return sets


def _own_shingles(sets: Sequence[NDArray[np.uint64]], spans: Spans) -> _Own:
    """Find the shingles in few places. The texts are sorted by document and start: neighbours that overlap are one place."""
    rows = np.repeat(np.arange(len(sets), dtype=np.int32), [len(one) for one in sets])
    values = np.concatenate(sets)
    order = np.argsort(values, kind="stable")
    rows, values = rows[order], values[order]
    is_new = np.append(True, values[1:] != values[:-1])
    del order, values
    before, after = rows[:-1], rows[1:]
    continues = (spans.document[before] == spans.document[after]) & (spans.start[after] < spans.end[before])
    is_place = is_new | np.append(True, ~continues)
    columns = np.cumsum(is_new) - 1
    num_texts = np.bincount(columns)
    is_own = (np.bincount(columns[is_place]) <= MANY_PLACES) & (num_texts <= _MANY_CHUNKS)
    sizes = np.bincount(rows[is_own[columns]], minlength=len(sets))
    shared = (is_own & (num_texts > 1))[columns]
    return _Own(sizes, rows[shared], columns[shared])


def _sharing_half(sets: Sequence[NDArray[np.uint64]], own: _Own, spans: Spans) -> NDArray[np.int64]:
    """Return the pairs that share half of their own shingles, and half of all."""
    pairs = []
    for first, second in _near(own):
        apart = ~spans.overlap(first, second)
        pairs += [(i, j) for i, j in zip(first[apart], second[apart], strict=True) if _jaccard(sets[i], sets[j])]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _near(own: _Own) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield blocks of the pairs that share half of these shingles, the smaller position first."""
    from scipy.sparse import csr_array

    _, columns = np.unique(own.columns, return_inverse=True)
    ones = np.ones(len(columns), dtype=np.int32)
    has = csr_array((ones, (own.rows, columns)), shape=(len(own.sizes), columns.max(initial=0) + 1))
    held_by = has.T.tocsr()
    for start in range(0, len(own.sizes), _ROWS_PER_BLOCK):
        shared = (has[start : start + _ROWS_PER_BLOCK] @ held_by).tocoo()
        first, second = (one.astype(np.int64) for one in shared.coords)
        first += start
        union = own.sizes[first] + own.sizes[second] - shared.data
        near = (first < second) & (shared.data >= NEAR_DUPLICATE_JACCARD * union)
        yield first[near], second[near]


def _jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> bool:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared >= NEAR_DUPLICATE_JACCARD * (len(first) + len(second) - shared)


def _equal(sets: Sequence[NDArray[np.uint64]], own: _Own, spans: Spans) -> NDArray[np.int64]:
    """Return pairs that connect the texts without a shingle of their own whose shingles are equal."""
    first: dict[bytes, int] = {}
    found = np.flatnonzero(own.sizes == 0).tolist()
    pairs = np.array([(first.setdefault(sets[i].tobytes(), i), i) for i in found], dtype=np.int64).reshape(-1, 2)
    apart = (pairs[:, 0] < pairs[:, 1]) & ~spans.overlap(pairs[:, 0], pairs[:, 1])
    return pairs[apart]
