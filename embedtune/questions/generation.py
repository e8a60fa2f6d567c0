"""Turns chunks into questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from embedtune.llms.prices import MICRODOLLARS, Estimate, estimate
from embedtune.llms.protocol import LLM
from embedtune.questions.duplicates import join_duplicates
from embedtune.questions.filters import broken_rule
from embedtune.questions.parsing import parse_questions
from embedtune.questions.prompt import PromptTemplate, default_instructions
from embedtune.questions.records import Dropped, Questions
from embedtune.questions.requests.dispatch import Mode, answer_requests, request_key
from embedtune.questions.requests.ledger import Ledger
from embedtune.types import Chunk, Question

logger = logging.getLogger(__name__)

FOLDER = ".embedtune"
MALFORMED = "malformed reply"
SURPLUS = "more than asked for"

_TOKENS_PER_QUESTION = 85  # with its answer and the JSON around them


def generate_questions(
    chunks: Sequence[Chunk],
    llm: LLM,
    *,
    per_chunk: int = 4,
    folder: str | Path = FOLDER,
    mode: Mode = "live",
    budget_usd: float | None = None,
    language: str = "",
    prompt: str | None = None,
    num_workers: int = 16,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Questions:
    """Let a language model write questions that the chunks answer, and keep the good ones.

    Every reply is stored in ``folder`` before anything is made of it. The same call again sends nothing and gives the
    same questions; after a crash, Ctrl-C or an error it goes on where it stopped; a changed chunk, prompt or model
    sends only what changed.

    Args:
        chunks: What to ask about. The texts, titles and headings are sent to the model.
        llm: Who writes: an `AnthropicLLM`, `OpenAILLM`, `TransformersLLM`, or any object of the protocol `LLM`.
        per_chunk: How many questions to ask for; 3 to 5 is usual. More documents help more than more questions.
        folder: Where the ledger lies. It holds replies of all models and prompts, and what they cost.
        mode: ``"batch"`` costs half and takes up to a day. It blocks until the batch has ended; it may be interrupted
            and run again.
        budget_usd: The most that everything in ``folder`` may ever cost. What does not fit is not sent, and counted.
        language: The language to write in, for instance ``"German"``; by default that of each chunk.
        prompt: Instructions in place of the ones that come with the package, see `PromptTemplate`.
        num_workers: How many requests may be under way at once.
        seed: Draws the styles of questions.
        show_progress_bar: Whether to show progress and dollars; by default in a terminal.

    Raises:
        ValueError: If there are no chunks, two have the same id, or an argument is out of its range.
        GenerationStoppedError: If no request can work: a wrong key, an empty account, an unknown model.
        RuntimeError: If another run uses the folder.
        OSError: If the ledger cannot be written.

    Example:
        >>> import tempfile
        >>> from embedtune.types import Completion, Price
        >>> class Parrot:  # any object with these members will do
        ...     name, price, max_tokens = "parrot", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def request(self, prompt): return {"text": prompt.text}
        ...     def send(self, request): return {"said": "1. How do I restart the pump?"}
        ...     def read(self, reply): return Completion(reply["said"])
        >>> chunk = Chunk("pump.md#0", "pump.md", "Press both buttons of the pump.", 0, 31)
        >>> questions = generate_questions([chunk], Parrot(), folder=tempfile.mkdtemp())
        >>> questions[0].id, questions[0].text
        ('pump.md#0/0', 'How do I restart the pump?')
    """
    _check(chunks, llm)
    template = _template(prompt, per_chunk=per_chunk, language=language, seed=seed)
    keys = _Keys.of(chunks, llm, template)
    with Ledger(folder) as ledger:
        failures = answer_requests(
            {key: partial(_request, llm, template, chunk) for key, chunk in keys.first_chunk.items()},
            llm,
            ledger=ledger,
            mode=mode,
            num_workers=num_workers,
            budget_usd=budget_usd,
            show_progress_bar=show_progress_bar,
            label="Questions",
        )
        questions = _read(chunks, llm, ledger=ledger, keys=keys.of_chunk, failures=failures, template=template)
    if failures:
        logger.warning(
            "%d of %d chunks have no reply: see `questions.failed`. Run the same again to send them once more.",
            len(questions.failed),
            len(chunks),
        )
    return questions


def estimate_cost(
    chunks: Sequence[Chunk], llm: LLM, *, per_chunk: int = 4, language: str = "", prompt: str | None = None
) -> Estimate:
    """Estimate the tokens and dollars that `generate_questions` will take, without sending anything.

    The table of prices has a date; override it with ``price=`` of the model. Tokens are estimated from the number of
    characters; expect 30 percent more or less, and several times as many from a model that thinks before it answers.

    Args:
        chunks: What to ask about.
        llm: Who writes.
        per_chunk: How many questions to ask for.
        language: The language to write in.
        prompt: Your own instructions.

    Example:
        >>> from embedtune.llms.anthropic import AnthropicLLM
        >>> chunk = Chunk("a#0", "a", "Press both buttons. " * 100, 0, 2000)
        >>> estimate_cost([chunk], AnthropicLLM("claude-sonnet-5-5")).num_requests
        1
    """
    _check(chunks, llm)
    template = _template(prompt, per_chunk=per_chunk, language=language, seed=0)
    keys = _Keys.of(chunks, llm, template)
    prompts = (template.prompt(chunk) for chunk in keys.first_chunk.values())
    return estimate(llm, prompts, output_tokens=_TOKENS_PER_QUESTION * per_chunk + 10)


@dataclass(frozen=True, slots=True)
class _Keys:
    """The key of each chunk's request; chunks with the same text and context share one.

    Attributes:
        of_chunk: The key of each chunk id.
        first_chunk: The first chunk of each key.
    """

    of_chunk: Mapping[str, str]
    first_chunk: Mapping[str, Chunk]

    @classmethod
    def of(cls, chunks: Sequence[Chunk], llm: LLM, template: PromptTemplate) -> _Keys:
        version = template.version
        of_chunk = {chunk.id: request_key(version, _request(llm, template, chunk)) for chunk in chunks}
        first_chunk: dict[str, Chunk] = {}
        for chunk in chunks:
            first_chunk.setdefault(of_chunk[chunk.id], chunk)
        return cls(of_chunk, first_chunk)


def _request(llm: LLM, template: PromptTemplate, chunk: Chunk) -> dict[str, Any]:
    return llm.request(template.prompt(chunk))


def _template(prompt: str | None, *, per_chunk: int, language: str, seed: int) -> PromptTemplate:
    if per_chunk < 1:
        raise ValueError(f"per_chunk is {per_chunk} and must be at least 1; 3 to 5 is usual.")
    if prompt is not None and not prompt.strip():
        raise ValueError("prompt is empty. Leave it out for the one that comes with the package.")
    return PromptTemplate(prompt or default_instructions(), per_chunk=per_chunk, language=language, seed=seed)


def _read(
    chunks: Sequence[Chunk],
    llm: LLM,
    *,
    ledger: Ledger,
    keys: Mapping[str, str],
    failures: Mapping[str, str],
    template: PromptTemplate,
) -> Questions:
    """Make questions of the stored replies. No request is sent, so new parsers and filters cost nothing."""
    version = template.version
    failed: dict[str, str] = {}
    written: list[Question] = []
    reasons: dict[str, str] = {}
    for chunk in chunks:
        reply = ledger.reply(keys[chunk.id])
        problem, text = failures.get(keys[chunk.id], ""), ""
        if reply is not None:
            completion = llm.read(reply)
            problem, text = completion.problem, completion.text
        candidates = None if problem else parse_questions(text)
        if candidates is None:
            failed[chunk.id] = problem or MALFORMED
            continue
        num_good = 0
        for position, candidate in enumerate(candidates):
            question = Question(
                id=f"{chunk.id}/{position}",
                text=candidate.text,
                chunk_ids=(chunk.id,),
                style=candidate.style,
                answer=candidate.answer,
                model=llm.name,
                prompt_version=version,
            )
            written.append(question)
            too_many = SURPLUS if num_good >= template.per_chunk else ""
            if reason := broken_rule(question, chunk, language=template.language) or too_many:
                reasons[question.id] = reason
            num_good += not reason
    kept, duplicates = join_duplicates([question for question in written if question.id not in reasons])
    reasons |= duplicates
    cost = ledger.paid(keys.values()) / MICRODOLLARS
    return Questions(
        kept=tuple(kept),
        dropped=tuple(Dropped(question, reasons[question.id]) for question in written if question.id in reasons),
        failed=failed,
        chunks=tuple(chunks),
        cost_usd=None if llm.price is None else cost,
    )


def _check(chunks: Sequence[Chunk], llm: LLM) -> None:
    if not isinstance(llm, LLM):
        raise TypeError(
            f"llm is a {type(llm).__name__}. Pass AnthropicLLM(...), OpenAILLM(...), TransformersLLM(...) or an object "
            f"with the members of embedtune.types.LLM."
        )
    if not chunks:
        raise ValueError("there are no chunks to ask about. Make some with chunk_documents().")
    seen: set[str] = set()
    for position, chunk in enumerate(chunks):
        if not isinstance(chunk, Chunk):
            raise TypeError(f"chunks[{position}] is a {type(chunk).__name__}, not a Chunk. Use chunk_documents().")
        if chunk.id in seen:
            raise ValueError(f"two chunks have the id {chunk.id!r}. Ids must be unique.")
        seen.add(chunk.id)
