"""A second opinion: a language model judges the questions of a chunk, all at once."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.llms.protocol import LLM, Completion, Request
from embedtune.llms.structured import escaped, object_in, schema_of, whole_number
from embedtune.questions.requests.replies import FOLDER, MALFORMED, MAX_REPLIES, answered

if TYPE_CHECKING:
    from embedtune.questions.records import Questions
    from embedtune.questions.requests.dispatch import Mode
    from embedtune.types import Chunk, Question

logger: logging.Logger = logging.getLogger(__name__)

_TOKENS_PER_QUESTION = 40

CRITERIA = ("answerable", "understandable", "realistic")

SCHEMA: Mapping[str, Any] = schema_of(
    {
        "verdicts": {
            "type": "array",
            "items": schema_of({"number": {"type": "integer"}, **{name: {"type": "boolean"} for name in CRITERIA}}),
        }
    }
)


def filter_by_judge(
    questions: Questions,
    llm: LLM,
    *,
    output_dir: str | Path = FOLDER,
    mode: Mode = "live",
    budget_usd: float | None = None,
    num_workers: int = 16,
    show_progress_bar: bool | None = None,
) -> Questions:
    """Let a language model judge each question, and drop those that fail.

    It sends one request per chunk, costs about as much as writing the questions, and stores its replies in the same
    ledger. Questions without a verdict are kept, and counted in a warning with the reasons. The next run asks once more
    where a reply judges only some of its questions, up to three times in all.

    Args:
        questions: What `generate_questions` returned.
        llm: The judge; better not the model that wrote the questions.
        output_dir: The folder of the ledger.
        mode: ``"live"`` or ``"batch"``.
        budget_usd: The most that everything in ``output_dir`` may ever cost.
        num_workers: How many requests may run at once.
        show_progress_bar: Whether to show progress; by default only in a terminal.

    Raises:
        GenerationStoppedError: If no request can work.

    Example:
        >>> import tempfile
        >>> from embedtune.questions.records import Questions
        >>> from embedtune.llms.protocol import Completion, Price
        >>> from embedtune.types import Chunk, Question
        >>> class Strict:
        ...     name, price, max_tokens = "strict", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def body(self, request): return {"text": request.text}
        ...     def send(self, body): return {"said": '{"verdicts": [{"number": 1, "answerable": false}]}'}
        ...     def read(self, reply): return Completion(reply["said"])
        >>> chunk = Chunk("a#0", "a", "Press both buttons.", 0, 19)
        >>> questions = Questions((Question("a#0/0", "Who was Plato?", ("a#0",)),), (), {}, (chunk,), 0.0)
        >>> filter_by_judge(questions, Strict(), output_dir=tempfile.mkdtemp()).dropped[0].reason
        'judged not answerable'
    """
    instructions = files("embedtune.questions").joinpath("judge.txt").read_text("utf-8")
    chunks = {chunk.id: chunk for chunk in questions.chunks}
    asked: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        asked[question.chunk_ids[0]].append(question)
    dropped: dict[str, str] = {}
    unjudged: Counter[str] = Counter()
    with answered(
        {i: partial(_request, instructions, chunks[i], group) for i, group in asked.items()},
        llm,
        version="judge",
        label="Judging",
        output_tokens=_TOKENS_PER_QUESTION * max(map(len, asked.values()), default=0),
        is_whole=lambda i, reply: len(_verdicts(reply, asked[i])) == len(asked[i]),
        output_dir=output_dir,
        mode=mode,
        num_workers=num_workers,
        budget_usd=budget_usd,
        show_progress_bar=show_progress_bar,
    ) as replies:
        for i, group in asked.items():
            reply = replies.get(i)
            verdicts: dict[str, str] = {}
            for one in replies.all_of(i):  # what one reply leaves out another one may have
                verdicts |= _verdicts(one, group)
            dropped |= {question: failed for question, failed in verdicts.items() if failed}
            if missing := len(group) - len(verdicts):
                unjudged[reply[:60] if isinstance(reply, str) else MALFORMED] += missing
    if unjudged:
        logger.warning(
            "The judge gave no usable verdict for %d of %d questions (%s). They are kept. Run the same again to ask for "
            "their verdicts once more, %d times in all.",
            unjudged.total(),
            len(questions),
            ", ".join(f"{number} {reason}" for reason, number in unjudged.most_common()),
            MAX_REPLIES,
        )
    return questions.without(dropped)


def _request(instructions: str, chunk: Chunk, questions: Sequence[Question]) -> Request:
    numbered = "\n".join(f"{number}. {escaped(q.text)}" for number, q in enumerate(questions, start=1))
    text = f"<passage>\n{escaped(chunk.text)}\n</passage>\n<questions>\n{numbered}\n</questions>"
    return Request(instructions, text, SCHEMA)


def _verdicts(completion: Completion, questions: Sequence[Question]) -> dict[str, str]:
    """Return the reason for each question that fails, and an empty string for each that passes, by its id.

    A question without a verdict is left out.
    """
    rows = (object_in(completion) or {}).get("verdicts")
    reasons: dict[str, str] = {}
    for row in (row for row in (rows if isinstance(rows, list) else ()) if isinstance(row, dict)):
        number = whole_number(row.get("number"))
        said = {name: _said(row.get(name)) for name in CRITERIA}
        failed = [name for name in CRITERIA if said[name] is False]
        if number and 1 <= number <= len(questions) and (failed or None not in said.values()):
            reasons[questions[number - 1].id] = f"judged not {failed[0]}" if failed else ""
    return reasons


def _said(value: Any) -> bool | None:
    """Read yes or no as models write it; None for anything else."""
    return value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value).strip().lower())
