"""Which chunk should have been found? Candidates from a wider search, judged by a language model or a person."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.bounds import whole
from embedtune.llms.retries import ask
from embedtune.llms.structured import object_in, schema_of
from embedtune.questions.requests.replies import FOLDER, answered
from embedtune.serving.passages import instructions, passages_in, request_with_passages
from embedtune.text import printable

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM, Completion, Request
    from embedtune.questions.requests.dispatch import Mode
    from embedtune.retrieval.hits import Hit
    from embedtune.retrieval.retriever import Retriever
    from embedtune.serving.feedback import FeedbackLog

logger: logging.Logger = logging.getLogger(__name__)

_TOKENS = 20  # of a reply

SCHEMA = schema_of({"passages": {"type": "array", "items": {"type": "integer"}}})


@dataclass(frozen=True, slots=True, repr=False)
class Suggestion:
    """Chunks that may answer a question. Printing it shows them.

    Attributes:
        question: The question.
        candidates: What a wide search found, most likely first.
        chunk_ids: Those that the judge chose, the best one first; None without a judge or a usable reply.
        judge: The language model's name, or an empty string.
        problem: Why the judge's reply is not usable, or an empty string.
    """

    question: str
    candidates: tuple[Hit, ...]
    chunk_ids: tuple[str, ...] | None = None
    judge: str = ""
    problem: str = ""

    @property
    def chosen(self) -> list[Hit] | None:
        """The hits of `chunk_ids`."""
        by_id = {hit.id: hit for hit in self.candidates}
        return None if self.chunk_ids is None else [by_id[chunk] for chunk in self.chunk_ids]

    def __repr__(self) -> str:
        chosen = set(self.chunk_ids or ())
        lines = [
            f"{'*' if hit.id in chosen else ' '} [{hit.id}] {' '.join(hit.text.split())[:160]}"
            for hit in self.candidates
        ]
        return "\n".join(map(printable, [self.question, *lines]))

    def _repr_html_(self) -> str:
        chosen = set(self.chunk_ids or ())
        rows = "".join(
            f"<tr><td>{'chosen' if hit.id in chosen else ''}</td><td>{escape(hit.id)}</td>"
            f"<td style='text-align:left;white-space:pre-wrap'>{escape(hit.text)}</td></tr>"
            for hit in self.candidates
        )
        return f"<p><strong>{escape(self.question)}</strong></p><table>{rows}</table>"


def suggest_chunk(question: str, retriever: Retriever, *, llm: LLM | None = None, k: int = 20) -> Suggestion:
    """Look for the chunk that should have been found.

    The candidates are what the retriever finds further down than it serves.

    Args:
        question: The question.
        retriever: The retriever to search.
        llm: Judges the candidates; without it they are for a person to read.
        k: The number of candidates.

    Raises:
        TemporaryError: If the model cannot be reached.
        RequestError: If it refuses the request.
        GenerationStoppedError: If no request can succeed.

    Example:
        >>> import embedtune as et
        >>> chunks = [et.Chunk("a#0", "a", "Press both buttons.", 0, 19), et.Chunk("b#0", "b", "Turn the key.", 0, 13)]
        >>> retriever = et.Retriever.from_chunks(et.load_model("minilm", device="cpu"), chunks)
        >>> et.suggest_chunk("Which way does the key turn?", retriever)
        Which way does the key turn?
          [b#0] Turn the key.
          [a#0] Press both buttons.
    """
    found = retriever.search(question, k=whole("k", k))
    return (
        Suggestion(question, tuple(found))
        if llm is None
        else _judged(question, found, ask(llm, _request(question, found)), llm)
    )


def label_misses(
    feedback: FeedbackLog,
    retriever: Retriever,
    *,
    llm: LLM,
    k: int = 20,
    output_dir: str | Path | None = None,
    mode: Mode = "live",
    budget_usd: float | None = None,
    num_workers: int = 16,
    show_progress_bar: bool | None = None,
) -> int:
    """Let a language model name the relevant chunks of every miss that has none, and return how many it found one for.

    Its judgement is recorded under its name, also if no chunk answers the question. Equal questions are judged once. Each
    reply is stored in a ledger, as those of `generate_questions`, before it is read, so that none is paid for twice.

    Args:
        feedback: The log.
        retriever: The retriever to search.
        llm: The judge.
        k: The number of candidates.
        output_dir: The folder of the ledger, by default ``.embedtune`` beside the log. It quotes no question, but its replies
            name chunks.
        mode: ``"live"`` or ``"batch"``.
        budget_usd: The most that everything in ``output_dir`` may ever cost.
        num_workers: How many requests may run at once.
        show_progress_bar: Whether to show the progress; by default in a terminal only.

    Raises:
        GenerationStoppedError: If no request can succeed.
    """
    whole("k", k)
    open_misses = [miss for miss in feedback.misses() if miss.named is None]
    if not open_misses:
        return 0
    texts = list(dict.fromkeys(miss.text for miss in open_misses))
    found = dict(zip(texts, retriever.search_batch(texts, k=k), strict=True))
    with answered(
        {text: partial(_request, text, found[text]) for text in texts},
        llm,
        version="judge of misses",
        label="Judging",
        output_tokens=_TOKENS,
        is_whole=lambda text, reply: _judged(text, found[text], reply, llm).chunk_ids is not None,
        output_dir=feedback.path.parent / FOLDER if output_dir is None else output_dir,
        mode=mode,
        num_workers=num_workers,
        budget_usd=budget_usd,
        show_progress_bar=show_progress_bar,
    ) as replies:
        chosen = {text: _judged(text, found[text], replies.get(text), llm) for text in texts}
    for miss in open_misses:
        named = chosen[miss.text].chosen
        if named is not None:
            feedback.name_chunks(miss.number, named, by=llm.name)
    if problems := Counter(one.problem for one in chosen.values() if one.chunk_ids is None):
        reasons = ", ".join(f"{number} {problem}" for problem, number in problems.most_common())
        logger.warning(
            "The judge gave no usable reply for %d of %d questions: %s. Run the same again to ask for them once more.",
            problems.total(),
            len(chosen),
            reasons,
        )
    return sum(1 for miss in open_misses if chosen[miss.text].chunk_ids)


def _request(question: str, found: Sequence[Hit]) -> Request:
    return request_with_passages(instructions("judge"), question, found, schema=SCHEMA)


def _judged(question: str, found: Sequence[Hit], reply: Completion | str, llm: LLM) -> Suggestion:
    """Read which passages a reply names, or why it is not usable."""
    if isinstance(reply, str) or reply.problem:
        return Suggestion(question, tuple(found), None, llm.name, reply if isinstance(reply, str) else reply.problem)
    named = passages_in(object_in(reply) or {}, found)
    if named is None or named[1]:
        problem = f"names passage {named[1][0]}, which was not shown" if named else "malformed"
        return Suggestion(question, tuple(found), None, llm.name, problem)
    return Suggestion(question, tuple(found), named[0], llm.name)
