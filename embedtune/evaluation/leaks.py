"""Signs that a gain is no gain: test questions that were trained on, and differences too large to be true."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from embedtune.dataset import RetrievalDataset
from embedtune.dataset.groups import normalised
from embedtune.near_duplicates import near_duplicate_pairs

if TYPE_CHECKING:
    from embedtune.evaluation.result import Evaluation

SUSPICIOUS_GAIN = 0.25
"""Fine-tuning on a domain's questions usually adds 0.02 to 0.20 to accuracy and nDCG."""

# Jaccard similarity of the word triples of two questions.
_NEARLY_EQUAL = 0.8


def leak_warnings(
    before: Evaluation, after: Evaluation, training: RetrievalDataset | Iterable[str] | None
) -> tuple[str, ...]:
    """Return a sentence for each sign that the result has seen the questions before.

    Args:
        before: The result without training.
        after: The result with training.
        training: What was trained on: a dataset, whose split ``"train"`` is taken, or the questions alone.
    """
    warnings = []
    for metric in dict.fromkeys([f"accuracy@{after.k[0]}", after.primary_metric]):
        gain = after.metrics[metric] - before.metrics[metric]
        if gain > SUSPICIOUS_GAIN:
            warnings.append(
                f"{metric} rose by {gain:.2f}, which is more than training usually achieves: check that neither these "
                "questions nor copies of their chunks were trained on."
            )
    if training is not None and (known := known_questions(after, training)):
        warnings.append(
            f"{len(known)} of the {after.num_queries} questions were trained on, word for word or nearly: the gain on them "
            f"is remembered, not learned. Leave them out ({', '.join(map(repr, known[:3]))}, ...)."
        )
    return tuple(warnings)


def known_questions(result: Evaluation, training: RetrievalDataset | Iterable[str]) -> list[str]:
    """Return the ids of the questions that are nearly equal to one that was trained on.

    Args:
        result: A result for the questions.
        training: What was trained on: a dataset, whose split ``"train"`` is taken, or the questions alone.

    Raises:
        TypeError: If ``training`` is a single text.
    """
    asked = dict(zip(result.per_query["query-id"][:], map(normalised, result.per_query["query"][:]), strict=True))
    trained = list(dict.fromkeys(map(normalised, _questions(training))))
    texts = list(asked.values())
    # The pairs are ascending, so a pair of a question that was asked and one that was trained on has them in this order.
    pairs = near_duplicate_pairs([*texts, *trained], threshold=_NEARLY_EQUAL)
    near = {i for i, j in pairs if i < len(texts) <= j}
    exact = set(trained)
    return [query for i, (query, text) in enumerate(asked.items()) if i in near or text in exact]


def _questions(training: RetrievalDataset | Iterable[str]) -> Iterable[str]:
    if isinstance(training, RetrievalDataset):
        return [training.query_texts[query] for query in training.relevant("train")]
    if isinstance(training, str):
        raise TypeError("training must be a RetrievalDataset or a list of questions, got one text.")
    return training
