"""Generated questions: what was kept, what was dropped and why, and the cost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

from embedtune.tables import html_table
from embedtune.text import printable
from embedtune.types import Chunk, Question


@dataclass(frozen=True, slots=True)
class Dropped:
    """A question that a filter dropped.

    Attributes:
        question: The question.
        reason: The filter.
    """

    question: Question
    reason: str


@dataclass(frozen=True, repr=False)
class Questions(Sequence[Question]):
    """The questions that were kept, as a sequence, and an account of everything else.

    Attributes:
        kept: The questions.
        dropped: The questions that a filter dropped, with the reason.
        failed: Why a chunk has no usable reply, by its id.
        chunks: All chunks that questions were asked about.
        cost_usd: The total cost of the replies, including those of earlier runs; None if the price is unknown.
        lost_usd: The most that requests of the folder whose replies were lost, or have not arrived yet, can cost besides.

    Example:
        >>> chunk = Chunk("a#0", "a", "Press both buttons.", 0, 19)
        >>> questions = Questions((Question("a#0/0", "How do I restart?", ("a#0",)),), (), {}, (chunk,), 0.0021)
        >>> len(questions), questions[0].text
        (1, 'How do I restart?')
        >>> print(questions)
        chunks                      1
          with questions            1
          without                   0
          failed                    0
        questions                   1
          kept                      1
          dropped                   0
        cost                  $0.0021
    """

    kept: tuple[Question, ...]
    dropped: tuple[Dropped, ...]
    failed: Mapping[str, str]
    chunks: tuple[Chunk, ...]
    cost_usd: float | None = field(default=None)
    lost_usd: float = 0.0

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Question, ...]: ...
    def __getitem__(self, index: int | slice) -> Question | tuple[Question, ...]:
        return self.kept[index]

    def __len__(self) -> int:
        return len(self.kept)

    def summary(self) -> list[tuple[str, str]]:
        """Return the printed table as rows of a label and a number."""
        merged = {chunk_id for question in self.kept for chunk_id in question.chunk_ids[1:]}
        asked = {chunk_id for question in self.kept for chunk_id in question.chunk_ids[:1]}
        rows = [
            ("chunks", len(self.chunks)),
            ("  with questions", len(asked)),
            *([("  with those of other chunks", len(merged - asked))] if merged - asked else []),
            ("  without", len(self.chunks) - len(asked | merged | self.failed.keys())),
            ("  failed", len(self.failed)),
            *_by_reason(self.failed.values()),
            ("questions", len(self.kept) + len(self.dropped)),
            ("  kept", len(self.kept)),
            *_by_style(self.kept),
            ("  dropped", len(self.dropped)),
            *_by_reason(one.reason for one in self.dropped),
        ]
        cost = "unknown" if self.cost_usd is None else f"${self.cost_usd:.4f}"
        lost = [("  lost, at most", f"${self.lost_usd:.4f}")] if self.lost_usd else []
        return [*((label, f"{number:,}") for label, number in rows), ("cost", cost), *lost]

    def review(self, num_questions: int = 8, *, seed: int = 0) -> Review:
        """Draw a few questions with their chunks, for a person to read."""
        drawn = random.Random(seed).sample(self.kept, min(num_questions, len(self.kept)))
        texts = {chunk.id: chunk for chunk in self.chunks}
        return Review(tuple((question, texts[question.chunk_ids[0]]) for question in drawn))

    def without(self, reasons: Mapping[str, str]) -> Questions:
        """Return a copy with some questions dropped.

        Args:
            reasons: The reason for each question to drop, by its id.
        """
        return replace(
            self,
            kept=tuple(question for question in self.kept if question.id not in reasons),
            dropped=(*self.dropped, *(Dropped(q, reasons[q.id]) for q in self.kept if q.id in reasons)),
        )

    def __str__(self) -> str:
        rows = self.summary()
        width = max(20, *(len(label) for label, _ in rows))
        return "\n".join(f"{label:<{width}} {value:>8}" for label, value in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(["", "number"], [(label.replace("  ", "\u2003"), value) for label, value in self.summary()])


@dataclass(frozen=True, repr=False)
class Review:
    """Some questions and the chunks that they were written for.

    Attributes:
        pairs: The questions and chunks.
    """

    pairs: tuple[tuple[Question, Chunk], ...]

    def __str__(self) -> str:
        return printable(
            "\n\n".join(
                f"[{chunk.id}] {' > '.join((chunk.title, *chunk.headings)).strip(' >')}\n{chunk.text}\n"
                f"  Q ({question.style or 'no style'}): {question.text}\n  A: {question.answer or '-'}"
                for question, chunk in self.pairs
            )
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(question.text, question.style, question.answer, chunk.text) for question, chunk in self.pairs]
        return html_table(["question", "style", "answer", "chunk"], rows, texts=True)


def _by_reason(reasons: Iterable[str]) -> list[tuple[str, int]]:
    counted = Counter(reason[:60] for reason in reasons)
    return [(f"    {reason}", number) for reason, number in sorted(counted.items(), key=lambda r: (-r[1], r[0]))]


def _by_style(questions: Sequence[Question]) -> list[tuple[str, int]]:
    """Count the styles, if there are any."""
    counted = Counter(question.style for question in questions)
    rows = sorted(counted.items(), key=lambda r: (-r[1], r[0])) if any(counted) else []
    return [(f"    {style or 'without a style'}", number) for style, number in rows]
