"""Finds where a text may be cut, and the cost of each cut."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from embedtune.corpus.graphemes import grapheme_continuations, grapheme_starts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.corpus.markdown import Line, Outline

# The cost of a cut, in paragraph borders. All are multiples of 1/8, so that sums are exact and ties are true ties.
# A heading is better than free: its section should start a chunk whenever both chunks come out long enough.
HEADING, PER_LEVEL = -1.5, 0.125
PARAGRAPH = 1.0
LINE = 2.0  # a list item, a row, a line of code, a line that ends with a sentence
SENTENCE = 3.0
WRAPPED_LINE = 5.0
WORD = 8.0
GRAPHEME = 20.0
# Added where a cut would separate what belongs together.
BEHIND_COLON = 1.0  # "Run this:" belongs to what follows
IN_TABLE = 6.0
IN_FENCE = 64.0  # more than two chunks of a word each: code that fits is kept whole
BEHIND_HEADING = 256.0

_WHITE_SPACE = np.array([point for point in range(0x3001) if chr(point).isspace()])  # what str.strip() removes
_STOPS = ".!?…"
_WIDE_STOPS = "\u3002\uff01\uff1f\uff61\u0964\u0965\u06d4"  # of Chinese, Japanese, Hindi and Urdu
_CLOSERS = r"\"'\u201d\u2019»)\]*_`"
_WIDE_CLOSERS = "\u300d\u300f\u201d\u2019\uff09\u3011"
# No unbounded repetition before something that may fail, so that time is linear. A full stop after a single letter or
# digit ("e.g.", "1."), or before a lower-case letter, does not end a sentence.
_SENTENCE = re.compile(rf"[{_STOPS}](?:(?<=\w\w.)|(?<=[{_STOPS}].)|[{_CLOSERS}]{{1,2}})\s+(?=[^\sa-z])")
_WIDE_SENTENCE = re.compile(rf"[{_WIDE_STOPS}]+[{_WIDE_CLOSERS}]*\s*")
_ENDS_SENTENCE = re.compile(rf"[{_STOPS}:;{_WIDE_STOPS}][{_CLOSERS}{_WIDE_CLOSERS}]{{0,2}}$")


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where chunks may start, from the first visible character to the end of the text; each of shape ``(num_cuts,)``.

    Attributes:
        positions: Where the text after a cut starts, ascending.
        ends: Where the text before a cut ends, white space left out.
        costs: The cost of the cut.
    """

    positions: NDArray[np.int64]
    ends: NDArray[np.int64]
    costs: NDArray[np.float64]


def find_cuts(text: str, structure: Outline, *, token_starts: NDArray[np.int64], max_tokens: int) -> Cuts:
    """Find all borders of words and larger units, and those of graphemes in words that are too long for a chunk.

    Args:
        text: A text with at least one visible character.
        structure: Its outline.
        token_starts: Where its tokens start.
        max_tokens: A word of more tokens may be cut.

    Example:
        >>> from embedtune.corpus.markdown import outline
        >>> text = "One two. Three"
        >>> cuts = find_cuts(text, outline(text), token_starts=np.array([0, 4, 7, 9]), max_tokens=10)
        >>> cuts.positions.tolist(), cuts.costs.tolist()
        ([0, 4, 9, 14], [0.0, 8.0, 3.0, 0.0])
    """
    words, word_ends = _words(text)
    costs = np.full(len(text) + 1, np.inf, dtype=np.float32)  # of a cut before each character
    costs[words] = WORD
    costs[_sentences(text)] = SENTENCE
    costs[-1] = 0.0
    graphemes = _graphemes_of_long_words(text, costs, word_ends, token_starts=token_starts, max_tokens=max_tokens)
    costs[graphemes] = np.minimum(costs[graphemes], GRAPHEME)
    _price_structure(structure, costs)
    costs[grapheme_continuations(text)] = np.inf
    costs[words[0]] = 0.0
    positions = np.flatnonzero(np.isfinite(costs))
    ends = np.minimum(positions[1:], word_ends[np.searchsorted(words, positions[1:]) - 1])
    return Cuts(positions, np.append(positions[0], ends), costs[positions].astype(np.float64))


def _words(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the words of a text start, and where they end."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    is_visible = np.isin(points, _WHITE_SPACE, invert=True)
    edges = np.flatnonzero(np.diff(is_visible, prepend=False, append=False))
    return edges[::2], edges[1::2]


def _sentences(text: str) -> NDArray[np.int64]:
    """Return where sentences start after other sentences."""
    patterns = [_SENTENCE] if text.isascii() else [_SENTENCE, _WIDE_SENTENCE]
    starts = [match.end() for pattern in patterns for match in pattern.finditer(text)]
    return np.array([start for start in starts if start < len(text)], dtype=np.int64)


def _graphemes_of_long_words(
    text: str,
    costs: NDArray[np.float32],
    word_ends: NDArray[np.int64],
    *,
    token_starts: NDArray[np.int64],
    max_tokens: int,
) -> NDArray[np.int64]:
    """Return where graphemes and tokens start in words, or sentences without spaces, that are too long for a chunk."""
    starts = np.flatnonzero(np.isfinite(costs))[:-1]
    stops = np.minimum(np.append(starts[1:], len(text)), word_ends[np.searchsorted(word_ends, starts, side="right")])
    is_long = np.searchsorted(token_starts, stops) - np.searchsorted(token_starts, starts) > max_tokens
    spans = zip(starts[is_long].tolist(), stops[is_long].tolist(), strict=True)
    graphemes = np.array([start for span in spans for start in grapheme_starts(text, *span)], dtype=np.int64)
    return graphemes[np.isin(graphemes, token_starts)]


def _price_structure(structure: Outline, costs: NDArray[np.float32]) -> None:
    """Set the costs at starts of lines and headings, and raise those inside code and tables and after headings."""
    lines, headings = structure.lines, structure.headings
    for above, line in pairwise(lines):
        costs[line.start] = _line_cost(above, line)
    for heading in headings:
        costs[heading.start] = HEADING + PER_LEVEL * (heading.level - 1)
    for start, end in structure.fences:
        costs[start + 1 : end + 1] += IN_FENCE
    for start, end in structure.tables:
        costs[start + 1 : end + 1] += IN_TABLE
    starts = [line.start for line in lines] + [len(costs) - 1]
    for heading in headings:
        below = starts[bisect_left(starts, heading.end)]
        costs[heading.start + 1 : below + 1] += BEHIND_HEADING


def _line_cost(above: Line, line: Line) -> float:
    """Return the cost of a cut between two lines."""
    if line.after_blank:
        cost = PARAGRAPH
    elif line.is_code or line.is_item or _ENDS_SENTENCE.search(above.text[-3:]):
        cost = LINE
    else:
        cost = WRAPPED_LINE
    return cost + BEHIND_COLON if above.text.endswith((":", "\uff1a")) else cost  # the second is the full-width colon
