"""What BM25 counts: words, parts of words and pairs of neighbouring words, each as a 64-bit hash."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from embedtune.text import words

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PART_LENGTH = 5
_NONE: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)


def hashed_tokens(text: str, *, pairs: bool = True) -> NDArray[np.uint64]:
    """Return the hashes of a text's tokens, in no particular order and with repetitions, of shape ``(num_tokens,)``.

    The tokens are its words, every five neighbouring letters of a longer word (its ends marked), which finds inflected and
    compound words in any language, and every two neighbouring words. A hash is the same in every process and on every
    machine; two tokens of a corpus share one with a probability below one in a million. Without ``pairs``, those of two words are
    left out.

    Example:
        >>> tokens = hashed_tokens("Press both buttons!")
        >>> len(tokens), len(np.intersect1d(tokens, hashed_tokens("the BUTTON")))
        (15, 3)
    """
    parts = [_tokens_of_word(word) for word in words(text)]
    if not parts:
        return _NONE
    if not pairs:
        return np.concatenate(parts)
    neighbours = np.array([part[0] for part in parts], dtype=np.uint64)
    return np.concatenate([*parts, _mixed(neighbours[:-1], neighbours[1:])])


@lru_cache(maxsize=2**17)
def _tokens_of_word(word: str) -> NDArray[np.uint64]:
    """Return the hash of a word, and then those of its parts."""
    marked = f"<{word}>"
    starts = range(len(marked) - _PART_LENGTH + 1) if len(marked) > _PART_LENGTH else ()
    parts = [marked[start : start + _PART_LENGTH] for start in starts]
    return np.array([_hash(word), *(_hash(f"part {part}") for part in parts)], dtype=np.uint64)


def _hash(token: str) -> int:
    return int.from_bytes(blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _mixed(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of each ordered pair of hashes, by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
