"""Texts that say nearly the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm.auto import tqdm

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
    """Return the pairs of positions whose shingles have a Jaccard similarity of at least ``threshold``; see `near_matches`.

    Example:
        >>> near_duplicate_pairs(["press the red button twice", "Press the red button twice!", "open the lid"])
        [(0, 1)]
    """
    return sorted(
        {(min(pair), max(pair)) for pair in near_matches(texts, texts, threshold=threshold) if len({*pair}) == 2}
    )


def near_matches(
    texts: Sequence[str], others: Sequence[str], *, threshold: float = NEAR_DUPLICATE_JACCARD
) -> Iterator[tuple[int, int]]:
    """Yield pairs of positions in ``texts`` and ``others`` whose shingles have a Jaccard similarity of at least ``threshold``.

    Two such texts share one of the rarest shingles of each (Bayardo, Ma and Srikant, "Scaling Up All Pairs Similarity Search",
    2007). A text is compared with at most 50 others, those that share its rarest shingles first, so that time and memory grow
    with the number of texts also where all of them have one template. No pair is wrong, and none is missed but for that limit.

    Example:
        >>> list(near_matches(["open the lid now"], ["close the lid", "Open the lid now!"]))
        [(0, 1)]
    """
    counts = Counter(shingle for text in (*texts, *others) for shingle in shingles(text))
    rarest_first = [sorted(shingles(text), key=lambda shingle: (counts[shingle], shingle)) for text in others]
    holders: dict[str, list[int]] = defaultdict(list)
    for position, found in enumerate(rarest_first):
        for shingle in _telling(found, threshold):
            if len(holders[shingle]) < _MANY_CHUNKS:
                holders[shingle].append(position)
    sets = [frozenset(found) for found in rarest_first]
    for position, text in enumerate(texts):
        own = shingles(text)
        telling = _telling(sorted(own, key=lambda shingle: (counts[shingle], shingle)), threshold)
        candidates = dict.fromkeys(other for shingle in telling for other in holders.get(shingle, ()))
        for other in islice(candidates, _MANY_CHUNKS):
            if len(own & sets[other]) >= threshold * len(own | sets[other]):
                yield position, other


def _telling(rarest_first: Sequence[str], threshold: float) -> Sequence[str]:
    """Return the shingles of which a text shares one with each text that is as similar as ``threshold``."""
    return rarest_first[: len(rarest_first) - ceil(threshold * len(rarest_first)) + 1]


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
    for text in tqdm(texts, desc="Looking for near duplicates", unit="text", delay=2, leave=False, disable=None):
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
    starts = range(0, len(own.sizes), _ROWS_PER_BLOCK)
    for start in tqdm(starts, desc="Comparing texts", unit="block", delay=2, leave=False, disable=None):
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
