"""The headline of a verdict: ship it, keep what you have, or cannot tell yet. Nothing else gives advice about a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from embedtune.evaluation.comparison import Decision

Headline = Literal["ship it", "keep what you have", "cannot tell yet"]
Knowledge = Literal["forgets", "remembers", "cannot tell"]


class Advice(NamedTuple):
    """What to do, why, and what comes next.

    Attributes:
        headline: What to do.
        reason: Why, a sentence with the fields ``{before}``, ``{after}`` and ``{bm25}`` for the names of the retrievers, and
            ``{num_documents}``.
        next_step: What comes next; ``{needed}`` and ``{min_documents}`` say how much more evidence it takes.
    """

    headline: Headline
    reason: str
    next_step: str


_KEEP_BEFORE = Advice(
    "keep what you have",
    "{before} finds more than {after}.",
    "Read the broken questions in the report. Then try fewer epochs, a lower learning rate or more questions.",
)
_KEEP_BM25 = Advice(
    "keep what you have",
    "{bm25}, which needs no training, finds more than {after}.",
    "Search by {bm25}, and tune again when there are more questions.",
)
_FORGETS = Advice(
    "keep what you have",
    "{after} finds less outside these documents than before it was trained.",
    "Mix its model with the base model (merge_with_base), or train with fewer epochs or a lower learning rate.",
)
_KNOWN = Advice(
    "cannot tell yet",
    "some of these questions were trained on, so the gain is overestimated.",
    "Remove them from the training questions, train again and compare again.",
)
_TOO_FEW_DOCUMENTS = Advice(
    "cannot tell yet",
    "questions about {num_documents} documents say too little about others.",
    "Add documents with questions: it takes {min_documents} or more.",
)
_LEVEL_WITH_BEFORE = Advice("cannot tell yet", "{before} may be as good as {after}.", "{needed}")
_LEVEL_WITH_BM25 = Advice(
    "cannot tell yet",
    "{after} finds more than {before}, but {bm25}, which needs no training, may be as good.",
    "{needed}",
)
_MAY_FORGET = Advice(
    "cannot tell yet",
    "{after} finds more, but may find less outside these documents.",
    "Ask more general questions: check_forgetting(base, tuned, data=...).",
)
_SERVE = "Read the broken questions in the report, then serve it, or publish it with push_to_hub."
_SHIP = Advice("ship it", "{after} finds more than {before}.", _SERVE)
_SHIP_OVER_BM25 = Advice("ship it", "{after} finds more than {before} and than {bm25}.", _SERVE)


def advise(
    *,
    before: Decision,
    bm25: Decision | None,
    knowledge: Knowledge | None,
    num_known: int = 0,
    has_few_documents: bool = False,
) -> Advice:
    """Weigh all that is known about a retriever. What is known to be bad comes first, then what is not known.

    Args:
        before: Whether it is better than the retriever before.
        bm25: Whether it is better than BM25; None if BM25 was not measured.
        knowledge: Whether it still finds general knowledge; None if that was not measured.
        num_known: How many of the questions were trained on.
        has_few_documents: Whether the questions are about too few documents to decide.

    Example:
        >>> advise(before="better", bm25="cannot tell", knowledge="remembers").headline
        'cannot tell yet'
    """
    cases = (
        (before == "worse", _KEEP_BEFORE),
        (bm25 == "worse", _KEEP_BM25),
        (knowledge == "forgets", _FORGETS),
        (num_known > 0, _KNOWN),
        (before == "cannot tell" and has_few_documents, _TOO_FEW_DOCUMENTS),
        (before == "cannot tell", _LEVEL_WITH_BEFORE),
        (bm25 == "cannot tell", _LEVEL_WITH_BM25),
        (knowledge == "cannot tell", _MAY_FORGET),
        (bm25 is not None, _SHIP_OVER_BM25),
    )
    return next((advice for is_so, advice in cases if is_so), _SHIP)
