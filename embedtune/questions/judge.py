"""A second opinion: a language model judges the questions of a chunk, all at once."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.llms.protocol import LLM, Prompt
from embedtune.questions.generation import FOLDER
from embedtune.questions.parsing import json_in
from embedtune.questions.prompt import escaped
from embedtune.questions.requests.dispatch import Mode, answer_requests, request_key
from embedtune.questions.requests.ledger import Ledger

if TYPE_CHECKING:
    from embedtune.questions.records import Questions
    from embedtune.types import Chunk, Question

logger = logging.getLogger(__name__)

CRITERIA = ("answerable", "understandable", "realistic")

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "verdicts": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"number": {"type": "integer"}, **{name: {"type": "boolean"} for name in CRITERIA}},
                "required": ["number", *CRITERIA],
                "additionalProperties": False,
            },
        }
    },
    "required": ["verdicts"],
    "additionalProperties": False,
}


def filter_by_judge(
    questions: Questions,
    llm: LLM,
    *,
    folder: str | Path = FOLDER,
    mode: Mode = "live",
    budget_usd: float | None = None,
    num_workers: int = 16,
    show_progress_bar: bool | None = None,
) -> Questions:
    """Let a language model judge each question, and drop those that it finds wanting.

    One request for each chunk. It costs about as much as writing the questions did, and is stored in the same way. A
    question that the judge says nothing about is kept.

    Args:
        questions: What `generate_questions` returned.
        llm: The judge; better not the model that wrote the questions.
        folder: Where the ledger lies.
        mode: ``"live"`` or ``"batch"``.
        budget_usd: The most that everything in ``folder`` may ever cost.
        num_workers: How many requests may be under way at once.
        show_progress_bar: Whether to show progress; by default in a terminal.

    Raises:
        GenerationStoppedError: If no request can work.

    Example:
        >>> import tempfile
        >>> from embedtune.questions.records import Questions
        >>> from embedtune.types import Completion, Price
        >>> class Strict:
        ...     name, price, max_tokens = "strict", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def request(self, prompt): return {"text": prompt.text}
        ...     def send(self, request):
        ...         return {"verdicts": [{"number": 1, "answerable": False, "understandable": True, "realistic": True}]}
        ...     def read(self, reply): return Completion(str(reply).replace("'", '"').replace("F", "f").replace("T", "t"))
        >>> chunk = Chunk("a#0", "a", "Press both buttons.", 0, 19)
        >>> questions = Questions((Question("a#0/0", "Who was Plato?", ("a#0",)),), (), {}, (chunk,), 0.0)
        >>> filter_by_judge(questions, Strict(), folder=tempfile.mkdtemp()).dropped[0].reason
        'judged not answerable'
    """
    instructions = files("embedtune.questions").joinpath("judge.txt").read_text("utf-8")
    chunks = {chunk.id: chunk for chunk in questions.chunks}
    asked: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        asked[question.chunk_ids[0]].append(question)
    requests = {i: partial(_request, llm, instructions, chunks[i], group) for i, group in asked.items()}
    keys = {i: request_key("judge", build()) for i, build in requests.items()}
    with Ledger(folder) as ledger:
        answer_requests(
            {keys[i]: build for i, build in requests.items()},
            llm,
            ledger=ledger,
            mode=mode,
            num_workers=num_workers,
            budget_usd=budget_usd,
            show_progress_bar=show_progress_bar,
            label="Judging",
        )
        verdicts = {i: _verdicts(llm, ledger.reply(key), asked[i]) for i, key in keys.items()}
    if silent := [i for i, found in verdicts.items() if found is None]:
        logger.warning("The judge gave no usable verdict for %d of %d chunks; they are kept.", len(silent), len(asked))
    return questions.without({name: reason for found in verdicts.values() if found for name, reason in found.items()})


def _request(llm: LLM, instructions: str, chunk: Chunk, questions: Sequence[Question]) -> dict[str, Any]:
    numbered = "\n".join(f"{number}. {escaped(q.text)}" for number, q in enumerate(questions, start=1))
    text = f"<passage>\n{escaped(chunk.text)}\n</passage>\n<questions>\n{numbered}\n</questions>"
    return llm.request(Prompt(instructions, text, SCHEMA))


def _verdicts(llm: LLM, reply: Mapping[str, Any] | None, questions: Sequence[Question]) -> dict[str, str] | None:
    """Return the reason for each question that fails, by its id; None without a usable reply."""
    completion = llm.read(reply) if reply is not None else None
    found = json_in(completion.text) if completion and not completion.problem else None
    rows = found.get("verdicts") if isinstance(found, dict) else None
    if not isinstance(rows, list):
        return None
    reasons: dict[str, str] = {}
    for row in rows:
        number = row.get("number") if isinstance(row, dict) else None
        if isinstance(number, int) and 1 <= number <= len(questions):
            failed = [name for name in CRITERIA if row.get(name) is False]
            if failed:
                reasons[questions[number - 1].id] = f"judged not {failed[0]}"
    return reasons
