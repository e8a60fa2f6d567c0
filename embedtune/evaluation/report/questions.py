"""The miss browser's material: each question, its right chunks, and what every run put above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from embedtune.text import words

if TYPE_CHECKING:
    from embedtune.evaluation.report.results import Run

Texts: TypeAlias = Mapping[str, str]

# What makes a wrong ranking plain; more of it would only make the file larger.
_MAX_ABOVE = 5
_MAX_CHARACTERS = 3_000

# The texts of all questions and chunks together: what a phone still opens at once.
_MAX_BYTES = 6_000_000
# Ids, ranks and scores of a question.
_BYTES_PER_QUESTION = 300


@dataclass(frozen=True)
class Case:
    """A question as every run answered it.

    Attributes:
        id: The question's id.
        text: The question.
        right: The chunks that answer it, by id.
        ranks: At which rank each run has the first of them, or None where it was not found.
        above: For each run the chunks above that rank, at most five.
        scores: Their scores.
        suspect: A chunk that may be what the label should name, or None.
        shared_words: Which share of the question's distinct words stands in the right chunk, or None without texts.
    """

    id: str
    text: str
    right: list[str]
    ranks: list[int | None]
    above: list[list[str]]
    scores: list[list[float]]
    suspect: str | None
    shared_words: float | None

    @property
    def chunks(self) -> list[str]:
        """Every chunk that is shown with the question."""
        return list(dict.fromkeys([*self.right, *(chunk for found in self.above for chunk in found)]))

    def urgency(self, ks: Sequence[int]) -> int:
        """Return how much a reader wants to see it: broken, suspicious, fixed, missed, and then the rest."""
        before, after = (rank or np.inf for rank in self.ranks[:2])
        if any(before <= k < after for k in ks):
            return 0
        if self.suspect is not None:
            return 1
        if any(after <= k < before for k in ks):
            return 2
        return 3 if after > ks[-1] else 4


@dataclass
class _Words:
    """The words of chunks, split once."""

    texts: Texts
    _known: dict[str, frozenset[str]] = field(default_factory=dict)

    def shared(self, question: str, chunk: str) -> float:
        """Return which share of the question's distinct words stands in the chunk, 0 where it has none."""
        if chunk not in self._known:
            self._known[chunk] = frozenset(words(self.texts[chunk]))
        asked = set(words(question))
        return len(asked & self._known[chunk]) / max(len(asked), 1)


def cases_of(runs: Sequence[Run], texts: Texts | None) -> list[Case]:
    """Put together what the runs found, question by question."""
    first = runs[0].evaluation.per_query
    ranks = list(zip(*(run.evaluation.per_query["rank"][:] for run in runs), strict=True))
    retrieved = list(zip(*(run.evaluation.per_query["retrieved"][:] for run in runs), strict=True))
    scores = list(zip(*(run.evaluation.per_query["scores"][:] for run in runs), strict=True))
    known = None if texts is None else _Words(texts)
    cases = []
    for i, (query, text, right) in enumerate(
        zip(first["query-id"][:], first["query"][:], first["relevant"][:], strict=True)
    ):
        ends = [min((rank or _MAX_ABOVE + 1) - 1, _MAX_ABOVE) for rank in ranks[i]]
        cases.append(
            Case(
                id=query,
                text=text,
                right=right,
                ranks=list(ranks[i]),
                above=[found[:end] for found, end in zip(retrieved[i], ends, strict=True)],
                scores=[[round(s, 4) for s in own[:end]] for own, end in zip(scores[i], ends, strict=True)],
                suspect=_suspect(text, right, [next(iter(found), "") for found in retrieved[i]], known),
                shared_words=None if known is None else max(known.shared(text, chunk) for chunk in right),
            )
        )
    return cases


def _suspect(question: str, right: Sequence[str], tops: Sequence[str], known: _Words | None) -> str | None:
    """Return the wrong chunk that every run puts first and that shares as many words with the question, if there is one.

    Retrievers as different as BM25 and a dense model seldom agree on the same wrong chunk, so it may be right too.
    """
    top = tops[0]
    if not top or top in right or any(other != top for other in tops):
        return None
    if known is not None and known.shared(question, top) < max(known.shared(question, chunk) for chunk in right):
        return None
    return top


@dataclass(frozen=True)
class Selection:
    """The cases that a file has room for, in the order of their ids."""

    cases: list[Case]
    num_all: int
    texts: Texts | None

    @cached_property
    def chunks(self) -> list[str]:
        """Every chunk that any of them shows."""
        return list(dict.fromkeys(chunk for case in self.cases for chunk in case.chunks))

    def to_json(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Return what the page's script reads; chunks are named by their position."""
        position = {chunk: i for i, chunk in enumerate(self.chunks)}
        return {
            "runs": [run.name for run in runs],
            "ks": list(runs[0].evaluation.k),
            "depth": runs[0].evaluation.depth,
            "maxCharacters": _MAX_CHARACTERS,
            "chunks": [{"id": chunk, **self._text(chunk)} for chunk in self.chunks],
            "questions": [
                {
                    "id": case.id,
                    "text": case.text,
                    "right": [position[chunk] for chunk in case.right],
                    "ranks": case.ranks,
                    "above": [[position[chunk] for chunk in found] for found in case.above],
                    "scores": case.scores,
                    "suspect": None if case.suspect is None else position[case.suspect],
                    "shared": None if case.shared_words is None else round(case.shared_words, 3),
                }
                for case in self.cases
            ],
        }

    def _text(self, chunk: str) -> dict[str, Any]:
        if self.texts is None:
            return {}
        text = self.texts[chunk]
        return {"text": text[:_MAX_CHARACTERS], "cut": len(text) > _MAX_CHARACTERS}


def select(cases: Sequence[Case], texts: Texts | None, ks: Sequence[int]) -> Selection:
    """Choose the cases that fit into a file of sane size, the most telling ones first."""
    room, seen, chosen = _MAX_BYTES, set[str](), list[Case]()
    for case in sorted(cases, key=lambda case: (case.urgency(ks), case.id)):
        new = [chunk for chunk in case.chunks if chunk not in seen]
        shown = [case.text, *new, *(texts[chunk][:_MAX_CHARACTERS] for chunk in new if texts is not None)]
        room -= _BYTES_PER_QUESTION + sum(len(text.encode()) for text in shown)
        if room < 0:
            break
        seen.update(new)
        chosen.append(case)
    return Selection(sorted(chosen, key=lambda case: case.id), len(cases), texts)
