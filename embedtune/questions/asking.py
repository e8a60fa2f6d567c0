"""Ask about chunks, read the replies, and keep the good questions."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.questions.duplicates import is_copy, merge_duplicates
from embedtune.questions.filters import broken_rule
from embedtune.questions.parsing import parse_questions
from embedtune.questions.records import Dropped, Questions
from embedtune.questions.requests.replies import CUT_OFF, MALFORMED, MAX_REPLIES, Replies, answered
from embedtune.questions.template import STYLES
from embedtune.text import text_hash
from embedtune.types import Chunk, Question

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM, Completion
    from embedtune.questions.requests.dispatch import Mode
    from embedtune.questions.template import RequestTemplate

logger: logging.Logger = logging.getLogger(__name__)

SURPLUS = "more than asked for"
COPIED = "copied from the examples"
TOKENS_PER_QUESTION = 85  # with its answer and the JSON around them

Subject = tuple[Chunk, ...]
"""What one request is about: a chunk, or several together."""


def ask_about(
    subjects: Sequence[Subject],
    llm: LLM,
    template: RequestTemplate,
    *,
    style: str = "",
    examples: Iterable[str] = (),
    output_dir: str | Path,
    mode: Mode,
    num_workers: int,
    budget_usd: float | None,
    show_progress_bar: bool | None,
) -> Questions:
    """Ask for questions about each subject, and keep the good ones.

    Args:
        subjects: What to ask about.
        llm: The model.
        template: How to ask.
        style: The style of all questions; by default what the model says.
        examples: Questions that none may repeat, beside those that the template shows.
        output_dir: The folder of the ledger.
        mode: ``"live"`` or ``"batch"``.
        num_workers: How many requests may run at once.
        budget_usd: The most that everything in ``output_dir`` may ever cost.
        show_progress_bar: Whether to show progress.
    """
    by_name = {_name(subject): subject for subject in subjects}
    order = _evenly_spread(by_name, seed=template.seed)
    with answered(
        {name: partial(template.fill, *by_name[name]) for name in order},
        llm,
        version=template.version,
        label="Questions",
        output_tokens=TOKENS_PER_QUESTION * template.per_chunk + 10,
        is_whole=lambda _, completion: parse_questions(completion.text) is not None,
        output_dir=output_dir,
        mode=mode,
        num_workers=num_workers,
        budget_usd=budget_usd,
        show_progress_bar=show_progress_bar,
    ) as replies:
        questions = _read(by_name, llm, template, replies=replies, style=style, examples=examples)
    if questions.failed:
        _log_failed(questions, llm, num_asked=len(subjects))
    return questions


def _name(subject: Subject) -> str:
    return "+".join(chunk.id for chunk in subject)


def _evenly_spread(by_name: dict[str, Subject], *, seed: int) -> list[str]:
    """Order subjects so that documents take turns: whatever a budget allows is spread over all of them."""
    draw = random.Random(seed)
    names = draw.sample(list(by_name), k=len(by_name))
    turns: Counter[str] = Counter()
    turn_of = {}
    for name in names:
        document = by_name[name][0].document_id
        turn_of[name] = turns[document]
        turns[document] += 1
    return sorted(names, key=turn_of.__getitem__)


def _read(
    by_name: dict[str, Subject],
    llm: LLM,
    template: RequestTemplate,
    *,
    replies: Replies,
    style: str,
    examples: Iterable[str],
) -> Questions:
    """Read the stored replies. No request is sent, so new parsers and filters cost nothing."""
    failed: dict[str, str] = {}
    written: list[Question] = []
    reasons: dict[str, str] = {}
    repeats = is_copy(examples, shown=template.examples)
    for name, subject in by_name.items():
        found = _questions_in(replies.get(name), name, subject, llm, version=template.version)
        if isinstance(found, str):
            failed[subject[0].id] = found
            continue
        found = [replace(question, style=style) for question in found] if style else found
        written += found
        chunk = subject[0] if len(subject) == 1 else _joined(subject)
        broken = {
            question.id: broken_rule(question, chunk, language=template.language)
            or (COPIED if repeats(question.text) else "")
            for question in found
        }
        reasons |= {one: reason for one, reason in broken.items() if reason}
        good = [question for question in found if not broken[question.id]]
        reasons |= dict.fromkeys(_surplus(good, template), SURPLUS)
    kept, duplicates = merge_duplicates([question for question in written if question.id not in reasons])
    reasons |= duplicates
    return Questions(
        kept=tuple(kept),
        dropped=tuple(Dropped(question, reasons[question.id]) for question in written if question.id in reasons),
        failed=failed,
        chunks=tuple({chunk.id: chunk for subject in by_name.values() for chunk in subject}.values()),
        cost_usd=replies.cost_usd,
        lost_usd=replies.lost_usd,
    )


def _surplus(good: Sequence[Question], template: RequestTemplate) -> list[str]:
    """Return the ids of questions beyond those asked for: of a style with a quota, and in all."""
    quotas = Counter(template.styles)
    seen: Counter[str] = Counter()
    left = template.per_chunk
    surplus = []
    for question in good:
        seen[question.style] += 1
        is_over = bool(quotas) and question.style in STYLES and seen[question.style] > quotas[question.style]
        if is_over or not left:
            surplus.append(question.id)
        else:
            left -= 1
    return surplus


def _joined(subject: Subject) -> Chunk:
    """Return several chunks as one, for the filters to look at."""
    return replace(
        subject[0],
        text="\n".join(chunk.text for chunk in subject),
        title=" ".join(chunk.title for chunk in subject),
        headings=tuple(heading for chunk in subject for heading in chunk.headings),
    )


def _questions_in(
    reply: Completion | str, name: str, subject: Subject, llm: LLM, *, version: str
) -> list[Question] | str:
    """Return the questions in a reply, or why there are none."""
    candidates = None if isinstance(reply, str) else parse_questions(reply.text)
    if candidates is None:
        return reply if isinstance(reply, str) else MALFORMED
    return [
        Question(
            id=f"{name}/{position}",
            text=candidate.text,
            chunk_ids=tuple(chunk.id for chunk in subject),
            chunk_hashes=tuple(text_hash(chunk.text) for chunk in subject),
            style=candidate.style,
            answer=candidate.answer,
            model=llm.name,
            prompt_version=version,
        )
        for position, candidate in enumerate(candidates)
    ]


def _log_failed(questions: Questions, llm: LLM, *, num_asked: int) -> None:
    """Say how many requests have no usable reply, why, and what helps."""
    counts = Counter(reason[:60] for reason in questions.failed.values())
    remedy = (
        f"Run the same again to send those without a reply, and those with a malformed one ({MAX_REPLIES} times in all), "
        f"once more; usable replies are not paid for again."
    )
    if any(reason.startswith("not sent: over the budget") for reason in counts):
        remedy += " Those over the budget are sent if you raise budget_usd, the ceiling for all runs in this folder."
    if CUT_OFF in counts:
        remedy += f" Those cut off at max_tokens={llm.max_tokens} are sent again, and no others, if you raise it."
    logger.warning(
        "%d of %d chunks have no usable reply (%s): see `questions.failed`. %s",
        len(questions.failed),
        num_asked,
        ", ".join(f"{number} {reason}" for reason, number in counts.most_common()),
        remedy,
    )
