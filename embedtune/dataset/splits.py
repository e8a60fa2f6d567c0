"""Assigns questions to splits by hash, so that adding documents does not move the others."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

from embedtune.text import same_question

if TYPE_CHECKING:
    from embedtune.types import Question

logger = logging.getLogger(__name__)

SplitBy = Literal["document", "question", "given"]
SPLIT_BY: tuple[SplitBy, ...] = get_args(SplitBy)


def check_sizes(*, test_size: float, dev_size: float, test_seen_size: float) -> None:
    """Raise a ``ValueError`` unless each size is a share in [0, 1) and they leave something to train on."""
    sizes = {"test_size": test_size, "dev_size": dev_size, "test_seen_size": test_seen_size}
    for name, size in sizes.items():
        if not 0 <= size < 1:
            raise ValueError(f"{name}={size} is not a share of the questions. Choose a number from 0 to less than 1.")
    if test_size + dev_size >= 1:
        raise ValueError(f"test_size={test_size} and dev_size={dev_size} leave nothing to train on. Lower one of them.")


def split_by_document(
    questions: Sequence[Question],
    group_of: Mapping[str, str],
    *,
    test_size: float,
    dev_size: float,
    test_seen_size: float,
    seed: int,
) -> list[Question]:
    """Assign questions to splits such that each document group is in one of train, dev and test.

    A hash of its name decides the split of a group, so the shares are met on average, and a group keeps its split when
    others are added. If no group falls into a split, the closest one is moved there.

    A question with relevant documents in several splits is trained on, with the chunks of the training documents only,
    and dropped if there are none: in a test, a chunk that was trained on would answer it. Equal questions count as one.

    Args:
        questions: The questions.
        group_of: The document group of each chunk id.
        test_size: Share of the groups for ``test``.
        dev_size: Share of the groups for ``dev``.
        test_seen_size: Share of the training groups' questions to hold out as ``test_seen``: questions that are not
            trained on, about chunks that are.
        seed: Another seed draws another split.
    """
    asked_of = {group_of[chunk_id] for question in questions for chunk_id in question.chunk_ids}
    groups = sorted(asked_of, key=lambda group: (_draw(seed, "group", group), group))
    side_of = _sides(groups, test_size=test_size, dev_size=dev_size, seed=seed)
    bound = []
    for same in _by_text(questions).values():
        sides = {side_of[group_of[chunk_id]] for question in same for chunk_id in question.chunk_ids}
        side = sides.pop() if len(sides) == 1 else "train"
        bound += [
            _bind(question, side, [c for c in question.chunk_ids if side_of[group_of[c]] == side]) for question in same
        ]
    kept = [question for question in bound if question.chunk_ids]
    if len(kept) < len(questions):
        logger.warning(
            "%d of %d questions have relevant documents in different splits, none of them in train, and were dropped.",
            len(questions) - len(kept),
            len(questions),
        )
    return _in_order(_with_seen_held_out(kept, share=test_seen_size, seed=seed), questions)


def split_by_question(questions: Sequence[Question], *, test_size: float, dev_size: float, seed: int) -> list[Question]:
    """Assign questions to splits such that every chunk with enough questions has some in each split.

    Each chunk is trained on and tested with, which measures retrieval of known chunks and overestimates that of new
    documents. Of a chunk's n questions, at least one (and about ``test_size * n``) goes to ``test``, likewise to ``dev``,
    and at least one stays in ``train``. Equal questions stay together.
    """
    texts = _by_text(questions)
    num_questions: dict[str, int] = defaultdict(int)
    for same in texts.values():
        num_questions[same[0].chunk_ids[0]] += 1
    room = {
        "test": {chunk: _quota(n, test_size, leave=1) for chunk, n in num_questions.items()},
        "dev": {
            chunk: _quota(n, dev_size, leave=1 + _quota(n, test_size, leave=1)) for chunk, n in num_questions.items()
        },
    }
    bound = []
    for text in sorted(texts, key=lambda text: (_draw(seed, "question", text), text)):
        chunk = texts[text][0].chunk_ids[0]
        side = next((name for name in ("test", "dev") if room[name][chunk] > 0), "train")
        if side != "train":
            room[side][chunk] -= 1
        bound += [_bind(question, side) for question in texts[text]]
    return _in_order(bound, questions)


def split_as_given(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with their own splits, and warn if two splits share a question."""
    if unbound := [question.id for question in questions if not question.split]:
        raise ValueError(
            f"split_by='given' needs a split for every question, and {len(unbound)} have none (the first: {unbound[0]!r}). "
            "Set Question.split, or choose split_by='document'."
        )
    shared = [text for text, same in _by_text(questions).items() if len({question.split for question in same}) > 1]
    if shared:
        logger.warning(
            "%d questions are in more than one of the given splits. Unless this is intended, it is a leak.", len(shared)
        )
    return list(questions)


def _bind(question: Question, split: str, chunk_ids: Sequence[str] | None = None) -> Question:
    return replace(question, split=split, chunk_ids=question.chunk_ids if chunk_ids is None else tuple(chunk_ids))


def _in_order(bound: Iterable[Question], questions: Iterable[Question]) -> list[Question]:
    """Return the assigned questions in the order of the given ones."""
    by_id = {question.id: question for question in bound}
    return [by_id[question.id] for question in questions if question.id in by_id]


def _draw(seed: int, what: str, name: str) -> float:
    """Return a number in [0, 1) that depends only on the seed and the name."""
    digest = hashlib.sha256(f"{seed}\0{what}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _sides(groups: Sequence[str], *, test_size: float, dev_size: float, seed: int) -> dict[str, str]:
    """Divide groups, sorted by their draw, into test, dev and train; no requested split is empty."""
    wanted = 1 + (test_size > 0) + (dev_size > 0)
    if len(groups) < wanted:
        raise ValueError(
            f"The questions fall into {len(groups)} document groups, too few for {wanted} splits. Add documents, set "
            "dev_size=0, or hold out single questions with split_by='question'. (Documents that share near-duplicate "
            "chunks are one group.)"
        )
    draws = [_draw(seed, "group", group) for group in groups]
    num_test = sum(draw < test_size for draw in draws)
    num_held_out = sum(draw < test_size + dev_size for draw in draws)
    if test_size:
        num_test = min(max(num_test, 1), len(groups) - wanted + 1)
    if dev_size:
        num_held_out = max(num_held_out, num_test + 1)
    num_held_out = min(max(num_held_out, num_test), len(groups) - 1)
    sides = ["test"] * num_test + ["dev"] * (num_held_out - num_test) + ["train"] * (len(groups) - num_held_out)
    return dict(zip(groups, sides, strict=True))


def _with_seen_held_out(questions: Sequence[Question], *, share: float, seed: int) -> list[Question]:
    """Move some training questions to ``test_seen``, but leave every chunk one question to train on."""
    texts = _by_text(question for question in questions if question.split == "train")
    left: dict[str, int] = defaultdict(int)
    for same in texts.values():
        for chunk in _chunks(same):
            left[chunk] += 1
    held_out: set[str] = set()
    for text in sorted(texts, key=lambda text: (_draw(seed, "seen", text), text)):
        chunks = _chunks(texts[text])
        if _draw(seed, "seen", text) < share and all(left[chunk] > 1 for chunk in chunks):
            held_out.update(question.id for question in texts[text])
            for chunk in chunks:
                left[chunk] -= 1
    return [_bind(question, "test_seen") if question.id in held_out else question for question in questions]


def _by_text(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """Group equal questions, see `same_question`."""
    texts: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        texts[same_question(question.text)].append(question)
    return texts


def _chunks(questions: Iterable[Question]) -> set[str]:
    return {chunk_id for question in questions for chunk_id in question.chunk_ids}


def _quota(num_questions: int, share: float, *, leave: int) -> int:
    """Return how many of a chunk's questions to hold out: about the share, at least one, but never the last ``leave``."""
    if share == 0:
        return 0
    return max(0, min(max(1, round(share * num_questions)), num_questions - leave))
