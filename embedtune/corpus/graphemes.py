"""Finds grapheme clusters, what a reader sees as one character: an accented letter, a flag, joined emoji."""

from __future__ import annotations

from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOW = 512  # characters; in a long row of flags, the time of the search would grow with the square

_GRAPHEME = regex.compile(r"\X")
_CONTINUATION = regex.compile(r"[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}]")


def grapheme_starts(text: str, start: int, stop: int) -> Iterator[int]:
    r"""Yield where each grapheme cluster of a span starts.

    Example:
        >>> list(grapheme_starts("ae\u0301o", 0, 4))
        [0, 1, 3]
    """
    size = WINDOW
    while start < stop:
        end = min(start + size, stop)
        found = [start + match.start() for match in _GRAPHEME.finditer(text[start:end])]
        if end == stop:
            yield from found
            return
        # The last one may continue after the window, so the next window starts with it, and is larger if it filled this one.
        yield from found[:-1]
        start, size = found[-1], 2 * size if len(found) == 1 else WINDOW


def grapheme_continuations(text: str) -> list[int]:
    r"""Return the positions of characters, such as accents, that continue a grapheme.

    Example:
        >>> grapheme_continuations("ae\u0301o")
        [2]
    """
    return [] if text.isascii() else [match.start() for match in _CONTINUATION.finditer(text)]
