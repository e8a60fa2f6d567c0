"""Questions that ask the same: one of them is enough, and both chunks are right."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from embedtune.text import words

if TYPE_CHECKING:
    from embedtune.types import Question

NEAR = 0.8
"""Jaccard similarity of the words from which two questions ask the same."""
_SAME_ANSWER = 0.5

SAME = "duplicate"
NEARLY_SAME = "near-duplicate"
MERGED = "duplicate of another chunk's, joined"


def join_duplicates(questions: Sequence[Question]) -> tuple[list[Question], dict[str, str]]:
    """Keep the first of questions that ask the same; it gets the chunks of those that another chunk answers, too.

    Within a chunk, questions with equal or nearly equal words are duplicates. Across chunks, nearly equal questions are
    duplicates only if their answers agree as well: "the upper door" and "the lower door" differ in one word.

    Returns:
        The questions that are kept, and the reason for each id that is not.

    Example:
        >>> from embedtune.types import Question
        >>> first = Question("a#0/0", "How do I restart the pump?", ("a#0",), answer="Press both.")
        >>> second = Question("b#0/0", "how do I restart the pump", ("b#0",), answer="Press both.")
        >>> kept, dropped = join_duplicates([first, second])
        >>> kept[0].chunk_ids, dropped
        (('a#0', 'b#0'), {'b#0/0': "duplicate of another chunk's, joined"})
    """
    sets = [frozenset(words(question.text)) for question in questions]
    dropped: dict[str, str] = {}
    more_chunks: dict[int, list[str]] = defaultdict(list)
    for early, late in _similar_pairs(sets):
        first, second = questions[early], questions[late]
        if first.id in dropped or second.id in dropped:
            continue
        is_same = sets[early] == sets[late]
        if set(first.chunk_ids) & set(second.chunk_ids):
            dropped[second.id] = SAME if is_same else NEARLY_SAME
        elif is_same or _jaccard(set(words(first.answer)), set(words(second.answer))) >= _SAME_ANSWER:
            dropped[second.id] = MERGED
            more_chunks[early] += second.chunk_ids
    kept = [
        replace(question, chunk_ids=tuple(dict.fromkeys((*question.chunk_ids, *more_chunks[i]))))
        if i in more_chunks
        else question
        for i, question in enumerate(questions)
        if question.id not in dropped
    ]
    return kept, dropped


def _similar_pairs(sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of positions whose sets are similar and have the same numbers in them, by the later position.

    Exact: two sets with a Jaccard similarity of t share one of the rarest ``n - ceil(t * n) + 1`` words of each
    (the prefix filter; Chaudhuri, Ganti and Kaushik, "A Primitive Operator for Similarity Joins", 2006).
    """
    frequency = Counter(word for one in sets for word in one)
    index: dict[str, list[int]] = defaultdict(list)
    for late, one in enumerate(sets):
        rarest = sorted(one, key=lambda word: (frequency[word], word))
        prefix = rarest[: len(one) - math.ceil(NEAR * len(one)) + 1]
        candidates = {early for word in prefix for early in index[word]}
        for early in sorted(candidates):
            if _jaccard(sets[early], one) >= NEAR and _numbers(sets[early]) == _numbers(one):
                yield early, late
        for word in prefix:
            index[word].append(late)


def _jaccard(first: frozenset[str] | set[str], second: frozenset[str] | set[str]) -> float:
    shared = len(first & second)
    return shared / max(1, len(first) + len(second) - shared)


def _numbers(one: frozenset[str]) -> set[str]:
    return {word for word in one if any(map(str.isdigit, word))}
