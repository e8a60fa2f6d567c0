"""From chunks to questions, by a language model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from embedtune.llms.prices import MICRODOLLARS, Estimate, estimate
from embedtune.llms.protocol import LLM
from embedtune.questions.duplicates import merge_duplicates
from embedtune.questions.filters import broken_rule
from embedtune.questions.parsing import parse_questions
from embedtune.questions.records import Dropped, Questions
from embedtune.questions.requests.dispatch import Mode, answer_requests, key_in
from embedtune.questions.requests.ledger import Ledger
from embedtune.questions.template import RequestTemplate, default_instructions
from embedtune.types import Chunk, Question

logger = logging.getLogger(__name__)

FOLDER = ".embedtune"
MALFORMED = "malformed reply"
CUT_OFF = "cut off"
SURPLUS = "more than asked for"

_TOKENS_PER_QUESTION = 85  # with its answer and the JSON around them


def generate_questions(
    chunks: Sequence[Chunk],
    llm: LLM,
    *,
    per_chunk: int = 4,
    output_dir: str | Path = FOLDER,
    mode: Mode = "live",
    budget_usd: float | None = None,
    language: str = "",
    instructions: str | None = None,
    num_workers: int = 16,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Questions:
    """Let a language model write questions that the chunks answer, and keep the good ones.

    Every reply is stored in ``output_dir`` before it is read. The same call again sends nothing and returns the same
    questions; after a crash, Ctrl-C or an error it continues where it stopped; a changed chunk, instruction or model
    sends only what changed.

    Args:
        chunks: What to ask about. Their texts, titles and headings are sent to the model.
        llm: The model: an `AnthropicLLM`, `OpenAILLM`, `TransformersLLM`, or any object of the protocol `LLM`.
        per_chunk: How many questions to ask for; 3 to 5 is usual. More documents help more than more questions.
        output_dir: The folder of the ledger. It holds the replies of all models and their cost.
        mode: ``"batch"`` costs half and takes up to a day. The call waits until the batch has ended; it may be
            interrupted and run again.
        budget_usd: The most that everything in ``output_dir`` may ever cost. Requests beyond it are not sent, and counted.
        language: The language to write in, for instance ``"German"``; by default that of each chunk.
        instructions: Your own instructions, see `RequestTemplate`; by default those of the package.
        num_workers: How many requests may run at once.
        seed: Draws the styles of questions.
        show_progress_bar: Whether to show progress and dollars; by default only in a terminal.

    Raises:
        ValueError: If there are no chunks, two have the same id, or an argument is out of its range.
        GenerationStoppedError: If no request can work: a wrong key, an empty account, an unknown model.
        RuntimeError: If another run uses the folder.
        OSError: If the ledger cannot be written.

    Example:
        >>> import tempfile
        >>> from embedtune.llms.protocol import Completion, Price
        >>> class Parrot:  # any object with these members will do
        ...     name, price, max_tokens = "parrot", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def body(self, request): return {"text": request.text}
        ...     def send(self, body): return {"said": "1. How do I restart the pump?"}
        ...     def read(self, reply): return Completion(reply["said"])
        >>> chunk = Chunk("pump.md#0", "pump.md", "Press both buttons of the pump.", 0, 31)
        >>> questions = generate_questions([chunk], Parrot(), output_dir=tempfile.mkdtemp())
        >>> questions[0].id, questions[0].text
        ('pump.md#0/0', 'How do I restart the pump?')
    """
    _check(chunks, llm)
    template = _template(instructions, per_chunk=per_chunk, language=language, seed=seed)
    with Ledger(output_dir) as ledger:
        keys = {chunk.id: key_in(ledger, llm, template.version, template.fill(chunk)) for chunk in chunks}
        first = {keys[chunk.id]: chunk for chunk in reversed(chunks)}  # equal chunks share a request
        first = {key: first[key] for key in keys.values()}
        failures = answer_requests(
            {key: partial(template.fill, chunk) for key, chunk in first.items()},
            llm,
            ledger=ledger,
            mode=mode,
            num_workers=num_workers,
            budget_usd=budget_usd,
            show_progress_bar=show_progress_bar,
            label="Questions",
        )
        questions = _read(chunks, llm, ledger=ledger, keys=keys, failures=failures, template=template)
    if questions.failed:
        _log_failed(questions, llm)
    return questions


def estimate_cost(
    chunks: Sequence[Chunk], llm: LLM, *, per_chunk: int = 4, language: str = "", instructions: str | None = None
) -> Estimate:
    """Estimate the tokens and dollars that `generate_questions` will take, without sending anything.

    Prices come from the installed version of genai-prices; ``price=`` of the model overrides them. Tokens are estimated
    from the number of characters: expect 30 percent more or less, and several times as many from a model that thinks
    before it answers.

    Args:
        chunks: What to ask about.
        llm: The model.
        per_chunk: How many questions to ask for.
        language: The language to write in.
        instructions: Your own instructions.

    Example:
        >>> from embedtune.llms.anthropic import AnthropicLLM
        >>> chunk = Chunk("a#0", "a", "Press both buttons. " * 100, 0, 2000)
        >>> estimate_cost([chunk], AnthropicLLM("claude-sonnet-5-5")).num_requests
        1
    """
    _check(chunks, llm)
    template = _template(instructions, per_chunk=per_chunk, language=language, seed=0)
    distinct = {(request.system, request.text): request for request in map(template.fill, chunks)}
    return estimate(llm, distinct.values(), output_tokens=_TOKENS_PER_QUESTION * per_chunk + 10)


def _template(instructions: str | None, *, per_chunk: int, language: str, seed: int) -> RequestTemplate:
    if per_chunk < 1:
        raise ValueError(f"per_chunk is {per_chunk} and must be at least 1; 3 to 5 is usual.")
    if instructions is not None and not instructions.strip():
        raise ValueError("instructions is empty. Leave it out for the instructions of the package.")
    return RequestTemplate(instructions or default_instructions(), per_chunk=per_chunk, language=language, seed=seed)


def _read(
    chunks: Sequence[Chunk],
    llm: LLM,
    *,
    ledger: Ledger,
    keys: Mapping[str, str],
    failures: Mapping[str, str],
    template: RequestTemplate,
) -> Questions:
    """Read the stored replies. No request is sent, so new parsers and filters cost nothing."""
    failed: dict[str, str] = {}
    written: list[Question] = []
    reasons: dict[str, str] = {}
    for chunk in chunks:
        found = _questions_of(chunk, llm, ledger.reply(keys[chunk.id]), version=template.version)
        if isinstance(found, str):
            failed[chunk.id] = failures.get(keys[chunk.id]) or found
            continue
        written += found
        broken = {question.id: broken_rule(question, chunk, language=template.language) for question in found}
        good = [question.id for question in found if not broken[question.id]]
        reasons |= {name: reason for name, reason in broken.items() if reason}
        reasons |= dict.fromkeys(good[template.per_chunk :], SURPLUS)
    kept, duplicates = merge_duplicates([question for question in written if question.id not in reasons])
    reasons |= duplicates
    cost = ledger.paid(keys.values()) / MICRODOLLARS
    return Questions(
        kept=tuple(kept),
        dropped=tuple(Dropped(question, reasons[question.id]) for question in written if question.id in reasons),
        failed=failed,
        chunks=tuple(chunks),
        cost_usd=None if llm.price is None else cost,
    )


def _questions_of(chunk: Chunk, llm: LLM, reply: Mapping[str, object] | None, *, version: str) -> list[Question] | str:
    """Return the questions in a reply, or why there are none."""
    completion = None if reply is None else llm.read(reply)
    if completion is None or completion.problem:
        return completion.problem if completion else "no reply"
    candidates = parse_questions(completion.text)
    if candidates is None:
        return MALFORMED
    return [
        Question(
            id=f"{chunk.id}/{position}",
            text=candidate.text,
            chunk_ids=(chunk.id,),
            style=candidate.style,
            answer=candidate.answer,
            model=llm.name,
            prompt_version=version,
        )
        for position, candidate in enumerate(candidates)
    ]


def _log_failed(questions: Questions, llm: LLM) -> None:
    """Say how many chunks have no usable reply, why, and what helps."""
    counts = Counter(reason[:60] for reason in questions.failed.values())
    remedy = "Run the same again to send those without a reply once more; stored replies are not paid for again."
    if CUT_OFF in counts:
        remedy += f" Those cut off at max_tokens={llm.max_tokens} are sent again, and no others, if you raise it."
    logger.warning(
        "%d of %d chunks have no usable reply (%s): see `questions.failed`. %s",
        len(questions.failed),
        len(questions.chunks),
        ", ".join(f"{number} {reason}" for reason, number in counts.most_common()),
        remedy,
    )


def _check(chunks: Sequence[Chunk], llm: LLM) -> None:
    if not isinstance(llm, LLM):
        raise TypeError(
            f"llm is a {type(llm).__name__}. Pass AnthropicLLM(...), OpenAILLM(...), TransformersLLM(...) or an object "
            f"with the members of the protocol LLM."
        )
    if not chunks:
        raise ValueError("there are no chunks to ask about. Create some with chunk_documents().")
    seen: set[str] = set()
    for position, chunk in enumerate(chunks):
        if not isinstance(chunk, Chunk):
            raise TypeError(f"chunks[{position}] is a {type(chunk).__name__}, not a Chunk. Use chunk_documents().")
        if chunk.id in seen:
            raise ValueError(f"two chunks have the id {chunk.id!r}. Ids must be unique.")
        seen.add(chunk.id)
