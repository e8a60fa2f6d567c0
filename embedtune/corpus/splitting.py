"""Cuts a text into spans of bounded length: along its structure, or into windows of tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedtune.corpus.cuts import SENTENCE, WORD, Cuts, find_cuts
from embedtune.corpus.graphemes import grapheme_starts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from embedtune.corpus.markdown import Outline
    from embedtune.types import TokenCounter

# The cost of a chunk shorter than half of the limit, in paragraph borders: a step, and more the shorter it is.
SHORT = 4.0
TINY = 20.0

MAX_OPTIONS = 40  # about how many cuts are considered for the end of one chunk; bounds the time for any text


def structure_spans(
    text: str, structure: Outline, *, counter: TokenCounter, max_tokens: int, overlap: int
) -> list[tuple[int, int]]:
    """Cut a text where its structure allows it best.

    Dynamic programming over all candidate cuts minimises the sum, over chunks, of the cost of the cut (``Cuts.costs``)
    and of the length (``_length_costs``). Tokens are those of the whole text; each final chunk is counted again alone.

    Args:
        text: The text.
        structure: Its outline.
        counter: Finds where tokens start.
        max_tokens: The largest number of tokens of a span.
        overlap: How many tokens before the end of the previous span a span may start.

    Returns:
        ``(start, end)`` of each span, without white space at either side.

    Raises:
        ValueError: If a single character has more tokens than ``max_tokens``.
    """
    start, end = _trimmed(text, 0, len(text))
    if start == end:
        return []
    token_starts = counter.token_starts(text)
    may_fit = _first_token(token_starts, end) - _first_token(token_starts, start) <= 2 * max_tokens
    if may_fit and len(counter.token_starts(text[start:end])) <= max_tokens:
        return [(start, end)]
    plan = _plan(text, structure, counter=counter, token_starts=token_starts, max_tokens=max_tokens, overlap=overlap)
    spans = list(_cheapest_spans(plan))
    return _overlapping(plan, spans, sections=[heading.start for heading in structure.headings]) if overlap else spans


def fixed_spans(text: str, *, counter: TokenCounter, max_tokens: int, overlap: int) -> list[tuple[int, int]]:
    """Cut a text into windows of ``max_tokens`` tokens that share ``overlap`` tokens, at any token.

    A window that has more tokens alone than in the whole text is made shorter.

    Returns:
        ``(start, end)`` of each visible window, without white space at either side.

    Raises:
        ValueError: If a single character has more tokens than ``max_tokens``.
    """
    token_starts = counter.token_starts(text)
    borders = np.append(token_starts, len(text))
    ends: dict[int, int] = {}  # by start; of windows that only differ in white space, the longest is kept
    first, start, stop, end_above = 0, 0, 0, 0
    while stop < len(text):
        behind, excess = first + max_tokens, 1
        while excess > 0:
            low = int(np.searchsorted(token_starts, start, side="right"))  # the end of the shortest window
            behind = max(behind, low)
            stop = int(borders[min(behind, len(token_starts))])
            visible, end = _trimmed(text, start, stop)
            excess = len(counter.token_starts(text[visible:end])) - max_tokens
            if excess > 0 and behind == low:  # one token of the text that is several alone: cut it at characters
                if stop - start == 1:
                    raise _too_small(max_tokens, start)
                token_starts = np.insert(token_starts, low, np.arange(start + 1, stop))
                borders = np.append(token_starts, len(text))
            behind -= max(excess, 0)
        if end > max(visible, end_above):
            ends[visible] = end_above = end
        first = max(int(np.searchsorted(token_starts, start, side="right")), behind - overlap)
        start = int(borders[min(first, len(token_starts))])
    return list(ends.items())


@dataclass(frozen=True, slots=True)
class _Plan:
    """The costs from which the cheapest cuts of a text follow.

    Attributes:
        text: The text.
        counter: Finds where tokens start.
        max_tokens: The largest number of tokens of a span.
        overlap: Tokens kept free for the overlap; only a word that would otherwise be cut uses them.
        token_starts: Where the tokens of the whole text start.
        cuts: All candidate cuts.
        positions: The positions of the cuts that are considered.
        num_before: The number of tokens before each of them.
        onward: The cost of a cut there and of the cheapest cuts after it.
        lengths: The cost of the length of a chunk of 0, 1, ... tokens.
    """

    text: str
    counter: TokenCounter
    max_tokens: int
    overlap: int
    token_starts: NDArray[np.int64]
    cuts: Cuts
    positions: NDArray[np.int64]
    num_before: NDArray[np.int64]
    onward: NDArray[np.float64]
    lengths: NDArray[np.float64]

    def num_tokens(self, start: int, stop: int) -> int:
        """Count the tokens of a span on its own."""
        return len(self.counter.token_starts(self.text[start:stop].strip()))


def _plan(
    text: str,
    structure: Outline,
    *,
    counter: TokenCounter,
    token_starts: NDArray[np.int64],
    max_tokens: int,
    overlap: int,
) -> _Plan:
    cuts = find_cuts(text, structure, token_starts=token_starts, max_tokens=max_tokens)
    num_before = np.searchsorted(token_starts, cuts.ends)
    limit = max_tokens - overlap
    weighed = _worth_weighing(cuts.costs, num_before, width=max(1, limit // MAX_OPTIONS))
    positions, num_before, onward = cuts.positions[weighed], num_before[weighed], cuts.costs[weighed]
    lengths = _length_costs(limit)
    first_tokens = _first_token(token_starts, positions)
    behind = np.searchsorted(num_before, first_tokens + limit, side="right").tolist()
    for i in range(len(onward) - 2, -1, -1):
        options = slice(i + 1, max(behind[i], i + 2))  # at least one span, even if it is too long: it is cut later
        num_tokens = num_before[options] - first_tokens[i]
        onward[i] += (onward[options] + lengths.take(num_tokens, mode="clip")).min()
    return _Plan(text, counter, max_tokens, overlap, token_starts, cuts, positions, num_before, onward, lengths)


def _worth_weighing(costs: NDArray[np.float64], num_before: NDArray[np.int64], *, width: int) -> NDArray[np.int64]:
    """Return the indices of the cheapest cut of every ``width`` tokens, and of the first and the last of all."""
    bucket = num_before // width
    order = np.lexsort((costs, bucket))
    cheapest = order[np.diff(bucket[order], prepend=-1) > 0]
    return np.unique(np.concatenate([cheapest, [0, len(costs) - 1]]))


def _length_costs(max_tokens: int) -> NDArray[np.float64]:
    """Return the cost of the length of a chunk of 0, 1, ... ``max_tokens`` tokens."""
    shortage = np.maximum(0, 1 - 2 * np.arange(max_tokens + 1) / max_tokens)
    costs = np.where(shortage > 0, SHORT + TINY * shortage**2, 0.0)
    return np.round(costs * 8) / 8  # exact sums, as with the costs of cuts


def _first_token(token_starts: NDArray[np.int64], positions: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return the index of the first token that ends after each position."""
    covering = np.maximum(np.searchsorted(token_starts, positions, side="right") - 1, 0)
    if not len(token_starts):
        return covering
    return np.searchsorted(token_starts, token_starts[covering])  # several may start at one character


def _cheapest_spans(plan: _Plan) -> Iterator[tuple[int, int]]:
    start = int(plan.positions[0])
    while start < len(plan.text):
        stop = _next_cut(plan, start)
        yield _trimmed(plan.text, start, stop)
        start = stop


def _next_cut(plan: _Plan, start: int) -> int:
    """Return the end of the cheapest chunk from here that fits when it is counted alone."""
    first_token = int(_first_token(plan.token_starts, start))
    low = int(np.searchsorted(plan.positions, start, side="right"))
    limit = plan.max_tokens - plan.overlap
    high = int(np.searchsorted(plan.num_before, first_token + limit, side="right"))
    num_tokens = plan.num_before[low:high] - first_token
    costs = plan.onward[low:high] + plan.lengths.take(num_tokens, mode="clip")
    estimate = limit
    while (may_fit := num_tokens <= estimate).any():
        best = int(np.argmin(np.where(may_fit, costs, np.inf)))
        stop = int(plan.positions[low + best])
        excess = plan.num_tokens(start, stop) - limit
        if excess <= 0:
            return stop
        estimate = int(num_tokens[best]) - excess
    return _forced_cut(plan, start)


def _forced_cut(plan: _Plan, start: int) -> int:
    """Return the end of the longest piece that fits if no considered cut does: at a word, a grapheme or a character."""
    positions = plan.cuts.positions
    behind = int(_first_token(plan.token_starts, start)) + plan.max_tokens + 1
    reach = int(plan.token_starts[behind]) if behind < len(plan.token_starts) else len(plan.text)
    low, high = np.searchsorted(positions, [start, reach], side="right")
    word_end = int(plan.cuts.ends[low])
    tiers: list[tuple[Sequence[int], int]] = [
        (positions[low:high].tolist(), plan.max_tokens - plan.overlap),
        ([int(positions[low])], plan.max_tokens),
        (list(grapheme_starts(plan.text, start, min(word_end, reach + 1)))[1:], plan.max_tokens),
        (range(start + 1, max(start + 1, min(word_end, reach)) + 1), plan.max_tokens),
    ]
    for borders, limit in tiers:
        if fitting := bisect_left(borders, limit + 1, key=lambda stop: plan.num_tokens(start, stop)):
            return borders[fitting - 1]
    raise _too_small(plan.max_tokens, start)


def _overlapping(plan: _Plan, spans: list[tuple[int, int]], *, sections: Sequence[int]) -> list[tuple[int, int]]:
    """Let each span but the first start earlier: at a sentence, else at a word, within its section.

    A start inside code or a table is used only if the cut itself is there.
    """
    overlapping = spans[:1]
    for start, end in spans[1:]:
        token = max(0, int(_first_token(plan.token_starts, start)) - plan.overlap)
        section = sections[bisect_right(sections, start) - 1] if sections and sections[0] <= start else 0
        earliest = max(int(plan.token_starts[token]), section, overlapping[-1][0] + 1)
        low, high = np.searchsorted(plan.cuts.positions, [earliest, start])
        borders, costs = plan.cuts.positions[low:high], plan.cuts.costs[low:high]
        is_next_best = (costs > SENTENCE) & (costs <= max(WORD, plan.cuts.costs[high]))
        options = [*borders[costs <= SENTENCE].tolist(), *borders[is_next_best].tolist(), start]
        overlapping.append((next(option for option in options if plan.num_tokens(option, end) <= plan.max_tokens), end))
    return overlapping


def _trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """Strip white space from a span; without visible text the result is empty, at its end."""
    span = text[start:stop]
    return stop - len(span.lstrip()), max(start + len(span.rstrip()), stop - len(span.lstrip()))


def _too_small(max_tokens: int, offset: int) -> ValueError:
    return ValueError(
        f"max_tokens={max_tokens} is less than the tokens of the single character at offset {offset}. Raise it."
    )
