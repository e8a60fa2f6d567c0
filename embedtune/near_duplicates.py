"""Texts that say nearly the same."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from embedtune.text import words

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
