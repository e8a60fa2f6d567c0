"""Assigns questions to splits of the sizes that are asked for, in an order that a hash gives."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Literal, get_args

from embedtune.bounds import finite
from embedtune.dataset.filling import fill
from embedtune.dataset.groups import home_of_chunks
from embedtune.text import same_question

if TYPE_CHECKING:
    from embedtune.types import Question

logger: logging.Logger = logging.getLogger(__name__)

SplitBy = Literal["document", "question", "given"]
SPLIT_BY: tuple[SplitBy, ...] = get_args(SplitBy)

_NEGLIGIBLE = 0.03  # of the questions: a split that misses its size by less says nothing
_CORRECTIONS = 4


def check_sizes(split_by: SplitBy, *, test_size: float | None, dev_size: float | None, test_seen_size: float) -> None:
    """Raise a ``ValueError`` unless each size applies, is a share in [0, 1), and they leave something to train on."""
    sizes = {"test_size": test_size, "dev_size": dev_size, "test_seen_size": test_seen_size}
    for name, size in sizes.items():
        if (size is not None or name == "test_seen_size") and not 0 <= finite(name, size) < 1:
            raise ValueError(f"{name}={size} is not a share of the questions. Choose a number from 0 to less than 1.")
        if size and (split_by == "given" or (split_by == "question" and name == "test_seen_size")):
            why = (
                "takes Question.split as it is"
                if split_by == "given"
                else "makes its test of questions about seen chunks"
            )
            raise ValueError(f"{name}={size} does not apply to split_by={split_by!r}, which {why}. Leave it out.")
    if (test_size or 0) + (dev_size or 0) >= 1:
        raise ValueError(f"test_size={test_size} and dev_size={dev_size} leave nothing to train on. Lower one of them.")


def split_by_document(
    questions: Sequence[Question],
    group_of: Mapping[str, str],
    content_of: Mapping[str, str],
    *,
    test_size: float,
    dev_size: float,
    test_seen_size: float,
    seed: int,
) -> list[Question]:
    """Assign questions to splits such that each document group is in one of train, dev and test.

    Groups are taken in the order of a hash until a split has its share of the questions, as nearly as whole groups allow,
    see `fill`.

    A question with relevant documents in several splits is trained on, with the chunks of the training documents only,
    and dropped if there are none: in a test, a chunk that was trained on would answer it. Equal questions count as one.
    Questions about copies of one chunk in several groups are asked about the first of them, see `home_of_chunks`.

    Args:
        questions: The questions.
        group_of: The document group of each chunk id.
        content_of: The content of each chunk id, which near-duplicates share.
        test_size: Share of the questions for ``test``.
        dev_size: Share of the questions for ``dev``.
        test_seen_size: Share of the training groups' questions to hold out as ``test_seen``: questions that are not
            trained on, about chunks that are.
        seed: Another seed draws another split.
    """
    home = home_of_chunks(_chunks(questions), group_of, content_of)
    groups_of = {
        question.id: list(dict.fromkeys(group_of[home[chunk]] for chunk in question.chunk_ids))
        for question in questions
    }
    texts = list(_by_text(questions).values())
    sizes = {"test": test_size, "dev": dev_size}
    side_of = _sides(texts, groups_of, sizes=sizes, seed=seed)
    bound = []
    for same in texts:
        side = _side(same, groups_of, side_of)
        bound += [_bind(one, side, _on_side(one, side, side_of, group_of=group_of, home=home)) for one in same]
    kept = [question for question in bound if question.chunk_ids]
    if len(kept) < len(questions):
        logger.warning(
            "%d of %d questions have relevant documents in different splits, none of them in train, and were dropped.",
            len(questions) - len(kept),
            len(questions),
        )
    largest = max(Counter(groups_of[question.id][0] for question in questions).values())
    _warn_if_missed(
        kept,
        sizes,
        f"A split holds whole document groups: there are {len(side_of)}, the largest with "
        f"{largest / len(questions):.0%} of the questions, and questions about documents of several splits are trained on",
    )
    return _in_order(_with_seen_held_out(kept, share=test_seen_size, seed=seed), questions)


def split_by_question(questions: Sequence[Question], *, test_size: float, dev_size: float, seed: int) -> list[Question]:
    """Assign questions to splits such that all chunks have a part in each split, and at least one question in train.

    Each chunk is trained on and tested with, which measures retrieval of known chunks and overestimates that of new
    documents. Chunks give questions to ``test`` and ``dev`` in proportion to those that they can spare, n - 1 of n, so that
    the shares hold for all questions. Equal questions stay together.
    """
    texts = _by_text(questions)
    of_chunk: dict[str, list[str]] = defaultdict(list)
    for text in sorted(texts, key=lambda text: (_draw(seed, "question", text), text)):
        of_chunk[texts[text][0].chunk_ids[0]].append(text)
    spare = len(texts) - len(of_chunk)
    held_out = min((test_size + dev_size) * len(texts), spare)
    side_of: dict[str, str] = {}
    passed = num_held_out = 0
    for chunk in sorted(of_chunk, key=lambda chunk: (_draw(seed, "chunk", chunk), chunk)):
        passed += len(of_chunk[chunk]) - 1
        for text in of_chunk[chunk][: round(held_out * passed / max(spare, 1)) - num_held_out]:
            num_held_out += 1
            is_test = _steps(num_held_out, test_size, dev_size) > _steps(num_held_out - 1, test_size, dev_size)
            side_of[text] = "test" if is_test else "dev"
    bound = [_bind(question, side_of.get(text, "train")) for text, same in texts.items() for question in same]
    _warn_if_missed(
        bound,
        {"test": test_size, "dev": dev_size},
        f"Every chunk keeps one question to train on: {len(texts)} questions are about {len(of_chunk)} chunks",
    )
    return _in_order(bound, questions)


def _steps(number: int, test_size: float, dev_size: float) -> int:
    """Return how many of the first ``number`` held-out questions are in ``test``."""
    return round(number * test_size / (test_size + dev_size))


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
    kept = question.chunk_ids if chunk_ids is None else tuple(chunk_ids)
    return replace(question, split=split, chunk_ids=kept, chunk_hashes=())  # the judgements take them from the corpus


def _in_order(bound: Iterable[Question], questions: Iterable[Question]) -> list[Question]:
    """Return the assigned questions in the order of the given ones."""
    by_id = {question.id: question for question in bound}
    return [by_id[question.id] for question in questions if question.id in by_id]


def _draw(seed: int, what: str, name: str) -> float:
    """Return a number in [0, 1) that depends only on the seed and the name."""
    digest = hashlib.sha256(f"{seed}\0{what}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _sides(
    texts: Sequence[Sequence[Question]],
    groups_of: Mapping[str, Sequence[str]],
    *,
    sizes: Mapping[str, float],
    seed: int,
) -> dict[str, str]:
    """Divide document groups into test, dev and train; no requested split is empty.

    At first, only questions about one group count. If those about several, which mostly end in train, make a split miss its
    size, they count for their first group, and what is aimed at is corrected by what came out.
    """
    order = sorted(
        {group for groups in groups_of.values() for group in groups},
        key=lambda group: (_draw(seed, "group", group), group),
    )
    number = sum(map(len, texts))
    wanted = {name: size * number for name, size in sizes.items() if size}
    if len(order) <= len(wanted):
        raise ValueError(
            f"The questions fall into {len(order)} document groups, too few for {len(wanted) + 1} splits. Add documents, set "
            "dev_size=0, or hold out single questions with split_by='question'. (Documents that share near-duplicate "
            "chunks are one group.)"
        )
    first = Counter(groups_of[question.id][0] for same in texts for question in same)
    of_one = Counter(_only_group(same, groups_of) for same in texts for _ in same)
    of_several = of_one.pop("", 0)
    aims = {name: aim * (1 - of_several / number) for name, aim in wanted.items()}
    tried: list[tuple[float, dict[str, str]]] = []
    for weights in (of_one, *[first] * _CORRECTIONS):
        side_of = _filled(order, weights, aims)
        got = Counter(side for same in texts for side in [_side(same, groups_of, side_of)] * len(same))
        missed = {name: aim - got[name] for name, aim in wanted.items()}
        tried.append((max(map(abs, missed.values()), default=0), side_of))
        if min(of_several, tried[-1][0]) <= _NEGLIGIBLE * number:
            break
        aims = {name: max(0, aims[name] + missed[name]) if weights is first else aim for name, aim in wanted.items()}
    return min(tried, key=itemgetter(0))[1]


def _only_group(same: Sequence[Question], groups_of: Mapping[str, Sequence[str]]) -> str:
    """Return the document group that equal questions are about, or an empty string if they are about several."""
    groups = {group for question in same for group in groups_of[question.id]}
    return groups.pop() if len(groups) == 1 else ""


def _filled(order: Sequence[str], weights: Mapping[str, int], aims: Mapping[str, float]) -> dict[str, str]:
    """Return the split of each group: those that no question counts for are trained on."""
    side_of = dict.fromkeys(order, "train")
    for number, (name, aim) in enumerate(aims.items()):
        left = [group for group in order if side_of[group] == "train" and weights.get(group)]
        spare = len(left) - len(aims) + number
        if spare > 0:
            for position in fill([weights[group] for group in left], aim, max_groups=spare):
                side_of[left[position]] = name
    return side_of


def _side(same: Sequence[Question], groups_of: Mapping[str, Sequence[str]], side_of: Mapping[str, str]) -> str:
    """Return the split of equal questions."""
    sides = {side_of[group] for question in same for group in groups_of[question.id]}
    return sides.pop() if len(sides) == 1 else "train"


def _on_side(
    question: Question, side: str, side_of: Mapping[str, str], *, group_of: Mapping[str, str], home: Mapping[str, str]
) -> list[str]:
    """Return the relevant chunks whose home is on one side; a copy elsewhere is replaced by its home."""
    here = [chunk for chunk in question.chunk_ids if side_of[group_of[home[chunk]]] == side]
    return list(dict.fromkeys(chunk if side_of.get(group_of[chunk]) == side else home[chunk] for chunk in here))


def _warn_if_missed(questions: Sequence[Question], sizes: Mapping[str, float], why: str) -> None:
    """Warn if splits have much more or less than their shares of the questions."""
    got = {name: sum(question.split == name for question in questions) / len(questions) for name in sizes}
    missed = [
        f"{name} has {got[name]:.0%} of the questions instead of {size:.0%}"
        for name, size in sizes.items()
        if abs(got[name] - size) > max(_NEGLIGIBLE, size / 4)
    ]
    if missed:
        logger.warning("%s. %s.", ", ".join(missed).capitalize(), why)


def _with_seen_held_out(questions: Sequence[Question], *, share: float, seed: int) -> list[Question]:
    """Move some training questions to ``test_seen``, but leave every chunk one question to train on."""
    texts = _by_text(question for question in questions if question.split == "train")
    left: dict[str, int] = defaultdict(int)
    for same in texts.values():
        for chunk in _chunks(same):
            left[chunk] += 1
    held_out: set[str] = set()
    wanted = share * sum(map(len, texts.values()))
    for text in sorted(texts, key=lambda text: (_draw(seed, "seen", text), text)):
        chunks = _chunks(texts[text])
        if len(held_out) + len(texts[text]) / 2 <= wanted and all(left[chunk] > 1 for chunk in chunks):
            held_out.update(question.id for question in texts[text])
            for chunk in chunks:
                left[chunk] -= 1
    if abs(len(held_out) - wanted) > max(_NEGLIGIBLE * len(questions), wanted / 4):
        logger.warning(
            "Test_seen has %d questions instead of %.0f. Every chunk keeps one question to train on.",
            len(held_out),
            wanted,
        )
    return [_bind(question, "test_seen") if question.id in held_out else question for question in questions]


def _by_text(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """Group equal questions, see `same_question`."""
    texts: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        texts[same_question(question.text)].append(question)
    return texts


def _chunks(questions: Iterable[Question]) -> set[str]:
    return {chunk_id for question in questions for chunk_id in question.chunk_ids}
