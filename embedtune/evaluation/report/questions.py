"""The data of the miss browser: each question, its relevant chunks, and what every run ranked above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from embedtune.text import words

if TYPE_CHECKING:
    from embedtune.evaluation.report.results import Run

Texts: TypeAlias = Mapping[str, str]

# Enough to see why a ranking is wrong, in a file of moderate size.
_MAX_ABOVE = 5
_MAX_CHARACTERS = 3_000

# The total size of all texts that a phone still opens quickly.
_MAX_BYTES = 6_000_000
# For the ids, ranks and scores of a question.
_BYTES_PER_QUESTION = 400


class Scored(NamedTuple):
    """A chunk's score, and what words contribute to it: None where the retriever does not say."""

    score: float
    words: float | None


@dataclass(frozen=True)
class Case:
    """A question as every run answered it.

    Attributes:
        id: The question's id.
        text: The question.
        relevant: The ids of the relevant chunks.
        ranks: For each run the rank of the first of them, or None if it was not found.
        above: For each run the chunks above that rank, at most five.
        scores: Their scores.
        found: For each run the score of the first relevant chunk, or None beyond the chunks that are known.
        suspect: A chunk that may be relevant although it is not labelled so, or None.
        shared_words: The share of the question's distinct words that occur in the relevant chunk, or None without texts.
    """

    id: str
    text: str
    relevant: list[str]
    ranks: list[int | None]
    above: list[list[str]]
    scores: list[list[Scored]]
    found: list[Scored | None]
    suspect: str | None
    shared_words: float | None

    @property
    def chunks(self) -> list[str]:
        """Every chunk that is shown with the question."""
        return list(dict.fromkeys([*self.relevant, *(chunk for found in self.above for chunk in found)]))

    def urgency(self, ks: Sequence[int]) -> int:
        """Return its place in the order of interest: broken, suspicious, fixed, missed, and then the rest."""
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
    """The words of each chunk, split only once."""

    texts: Texts
    _known: dict[str, frozenset[str]] = field(default_factory=dict)

    def shared(self, question: str, chunk: str) -> float:
        """Return the share of the question's distinct words that occur in the chunk, 0 for a question without words."""
        if chunk not in self._known:
            self._known[chunk] = frozenset(words(self.texts[chunk]))
        asked = set(words(question))
        return len(asked & self._known[chunk]) / max(len(asked), 1)


def cases_of(runs: Sequence[Run], texts: Texts | None) -> list[Case]:
    """Collect what the runs found for each question."""
    first = runs[0].evaluation.per_query
    ranks = list(zip(*(run.evaluation.per_query["rank"][:] for run in runs), strict=True))
    retrieved = list(zip(*(run.evaluation.per_query["retrieved"][:] for run in runs), strict=True))
    scores = list(zip(*(_scores(run) for run in runs), strict=True))
    known = None if texts is None else _Words(texts)
    cases = []
    for i, (query, text, relevant) in enumerate(
        zip(first["query-id"][:], first["query"][:], first["relevant"][:], strict=True)
    ):
        ends = [min((rank or _MAX_ABOVE + 1) - 1, _MAX_ABOVE) for rank in ranks[i]]
        cases.append(
            Case(
                id=query,
                text=text,
                relevant=relevant,
                ranks=list(ranks[i]),
                above=[found[:end] for found, end in zip(retrieved[i], ends, strict=True)],
                scores=[own[:end] for own, end in zip(scores[i], ends, strict=True)],
                found=[
                    own[rank - 1] if rank is not None and rank <= len(own) else None
                    for own, rank in zip(scores[i], ranks[i], strict=True)
                ],
                suspect=_suspect(text, relevant, [next(iter(found), "") for found in retrieved[i]], known),
                shared_words=None if known is None else max(known.shared(text, chunk) for chunk in relevant),
            )
        )
    return cases


def _scores(run: Run) -> list[list[Scored]]:
    """Return the scores of the chunks that were retrieved for each question."""
    table = run.evaluation.per_query
    scores = table["scores"][:]
    words = table["word_scores"][:] if "word_scores" in table.column_names else [[None] * len(row) for row in scores]
    return [
        [Scored(round(score, 4), None if part is None else round(part, 4)) for score, part in zip(*rows, strict=True)]
        for rows in zip(scores, words, strict=True)
    ]


def _suspect(question: str, relevant: Sequence[str], tops: Sequence[str], known: _Words | None) -> str | None:
    """Return the chunk that every run ranks first and that shares as many words with the question as the relevant one.

    Retrievers as different as BM25 and a dense model rarely agree on the same wrong chunk, so it may be relevant too.
    """
    top = tops[0]
    if not top or top in relevant or any(other != top for other in tops):
        return None
    if known is not None and known.shared(question, top) < max(known.shared(question, chunk) for chunk in relevant):
        return None
    return top


@dataclass(frozen=True)
class Selection:
    """The cases that fit in the file, ordered by id."""

    cases: list[Case]
    num_all: int
    texts: Texts | None

    @property
    def has_parts(self) -> bool:
        """Whether a retriever adds vectors and words."""
        return any(one.words is not None for case in self.cases for one in case.found if one is not None)

    @cached_property
    def chunks(self) -> list[str]:
        """Every chunk that is shown with one of them."""
        return list(dict.fromkeys(chunk for case in self.cases for chunk in case.chunks))

    def to_json(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Return the data for the script of the page; chunks are referred to by position."""
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
                    "relevant": [position[chunk] for chunk in case.relevant],
                    "ranks": case.ranks,
                    "above": [[position[chunk] for chunk in found] for found in case.above],
                    "scores": case.scores,
                    "found": case.found,
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
    """Choose the cases that fit into a file of moderate size, the most interesting ones first."""
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
