"""Signs of leaks: test questions that were trained on, and implausibly large gains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from embedtune.dataset import RetrievalDataset
from embedtune.near_duplicates import near_matches
from embedtune.text import same_question, words

if TYPE_CHECKING:
    from embedtune.evaluation.result import Evaluation

SUSPICIOUS_GAIN = 0.25
"""Fine-tuning on the questions of a domain usually adds 0.02 to 0.20 to accuracy and nDCG."""

# Jaccard similarity of the word triples of two questions.
_NEARLY_EQUAL = 0.8


def leak_warnings(before: Evaluation, after: Evaluation, known: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence for each sign that the questions were trained on.

    Args:
        before: The result without training.
        after: The result with training.
        known: The ids of the questions that were trained on, see `known_questions`.
    """
    warnings = []
    for metric in dict.fromkeys([f"accuracy@{after.k[0]}", after.primary_metric]):
        gain = after.metrics[metric] - before.metrics[metric]
        if gain > SUSPICIOUS_GAIN:
            warnings.append(
                f"{metric} rose by {gain:.2f}, more than training usually achieves. Check that neither these questions nor "
                "copies of their chunks were trained on."
            )
    if known:
        warnings.append(
            f"{len(known)} of the {after.num_queries} questions, or near duplicates of them, were trained on, so the gain is "
            f"overestimated. Remove them ({', '.join(map(repr, known[:3]))}, ...)."
        )
    return tuple(warnings)


def known_questions(result: Evaluation, training: RetrievalDataset | Iterable[str]) -> list[str]:
    """Return the ids of the questions that are near duplicates of a training question.

    Args:
        result: A result for the questions.
        training: A dataset, whose split ``"train"`` was trained on, or the training questions.

    Raises:
        TypeError: If ``training`` is a string.
    """
    asked = dict(zip(result.per_query["query-id"][:], map(same_question, result.per_query["query"][:]), strict=True))
    trained = list(dict.fromkeys(map(same_question, _questions(training))))
    texts = list(asked.values())
    matches = near_matches(texts, trained, threshold=_NEARLY_EQUAL)
    # The same words with other signs or in another order ask something else: C++ and C#.
    near = {i for i, j in matches if sorted(words(texts[i])) != sorted(words(trained[j]))}
    exact = set(trained)
    return [query for i, (query, text) in enumerate(asked.items()) if i in near or text in exact]


def _questions(training: RetrievalDataset | Iterable[str]) -> Iterable[str]:
    if isinstance(training, RetrievalDataset):
        return [training.query_texts[query] for query in training.relevant("train")]
    if isinstance(training, str):
        raise TypeError("training must be a RetrievalDataset or a list of questions, got a string.")
    return training
