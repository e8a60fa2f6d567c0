"""Questions that ask the same: one of them is kept, and the chunks of all of them are relevant to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from embedtune.near_duplicates import NEAR_DUPLICATE_JACCARD, shingles
from embedtune.text import same_question, words

if TYPE_CHECKING:
    from embedtune.types import Question

_SAME_ANSWER = 0.5  # Jaccard similarity of the words of two answers that agree

SAME = "duplicate"
NEARLY_SAME = "near-duplicate"
MERGED = "duplicate of another chunk's, merged"


def merge_duplicates(questions: Sequence[Question]) -> tuple[list[Question], dict[str, str]]:
    """Keep the first of equal questions, with the chunks of all of them, and drop near-duplicates of the same chunk.

    Near-duplicates have similar words, the same numbers and signs, and answers that agree; the same words in another order
    ask something else. Across chunks only equal
    questions are merged: "the warranty of the pump" and "the warranty of the lamp" may well have the same answer.

    Returns:
        The questions that are kept, and the reason for each id that is not.

    Example:
        >>> from embedtune.types import Question
        >>> first = Question("a#0/0", "How do I restart the pump?", ("a#0",), answer="Press both.")
        >>> second = Question("b#0/0", "how do I restart the pump", ("b#0",), answer="Press both.")
        >>> kept, dropped = merge_duplicates([first, second])
        >>> kept[0].chunk_ids, dropped
        (('a#0', 'b#0'), {'b#0/0': "duplicate of another chunk's, merged"})
    """
    kept: dict[str, Question] = {}
    labels: dict[str, dict[str, str]] = {}
    dropped: dict[str, str] = {}
    id_of: dict[str, str] = {}
    of_chunk: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        key = same_question(question.text)
        if key and key in id_of:
            known = labels[id_of[key]]
            dropped[question.id] = SAME if known.keys() & question.chunk_ids else MERGED
            for chunk, chunk_hash in question.labels.items():
                known.setdefault(chunk, chunk_hash)
        elif any(_nearly_same(question, other) for other in of_chunk[question.chunk_ids[0]]):
            dropped[question.id] = NEARLY_SAME
        else:
            kept[question.id] = question
            labels[question.id] = question.labels
            id_of[key] = question.id
            of_chunk[question.chunk_ids[0]].append(question)
    return [question.with_labels(labels[name]) for name, question in kept.items()], dropped


def is_copy(examples: Iterable[str], *, shown: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a question repeats an example, or nearly repeats one of those that were shown.

    Example:
        >>> repeats = is_copy(["Who fixes the pump?"], shown=["how do i restart the old pump"])
        >>> repeats("who fixes the pump"), repeats("How do I restart the old pump then?"), repeats("Where is the pump?")
        (True, True, False)
    """
    keys = {same_question(text) for text in examples}
    seen = tuple(shown)
    return lambda text: same_question(text) in keys or any(_nearly_same_text(text, one) for one in seen)


def _nearly_same(first: Question, second: Question) -> bool:
    if not _nearly_same_text(first.text, second.text):
        return False
    answers = set(words(first.answer)), set(words(second.answer))
    return not any(answers) or _jaccard(*answers) >= _SAME_ANSWER


def _nearly_same_text(first: str, second: str) -> bool:
    return (
        _jaccard(_shingles(first), _shingles(second)) >= NEAR_DUPLICATE_JACCARD
        and _numbers_and_signs(first) == _numbers_and_signs(second)
        and sorted(words(first)) != sorted(words(second))
    )


@lru_cache(maxsize=256)  # a question is compared with each of its chunk
def _shingles(text: str) -> frozenset[str]:
    return shingles(text)


def _jaccard(first: frozenset[str] | set[str], second: frozenset[str] | set[str]) -> float:
    return len(first & second) / max(1, len(first | second))


def _numbers_and_signs(text: str) -> list[str]:
    return sorted(word for word in same_question(text).split() if not word.isalpha())
