"""The data of one round of improvement: no question is both trained on and evaluated."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset

from embedtune.dataset import RetrievalDataset
from embedtune.dataset.folds import contents_of_chunks, groups_of_chunks
from embedtune.dataset.labels import places_in
from embedtune.dataset.tables import judgement
from embedtune.near_duplicates import NEAR_DUPLICATE_JACCARD, first_members, near_duplicate_groups, shingles
from embedtune.serving.feedback import LoggedQuestion, distinct_questions, record_of
from embedtune.text import same_question
from embedtune.types import Question

LOCKED, HELD_OUT = "test", "log_held_out"

_LOCKED_SIZE = 0.2  # of the training questions, where there is no test

_Answers = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class RoundData:
    """The data of a round, and how the questions of the log were used.

    Attributes:
        data: Splits ``train`` (new pairs and replayed ones), ``dev``, ``test`` (locked) and ``log_held_out``.
        new: The ids of the questions in ``train`` that come from the log.
        counts: The number of questions by use.
    """

    data: RetrievalDataset
    new: Collection[str]
    counts: Mapping[str, int]


def hash_of_test(data: RetrievalDataset) -> str:
    """Return the SHA-256 of the locked test: its questions, sorted by id, and the texts of their relevant chunks."""
    texts, corpus = data.query_texts, data.corpus_texts
    relevant = sorted(data.relevant(LOCKED).items())
    rows = [[query, texts[query], sorted(corpus[chunk] for chunk in chunks)] for query, chunks in relevant]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def with_locked_test(data: RetrievalDataset) -> RetrievalDataset:
    """Return the dataset with a split to lock: where it has none, a fifth of its training questions, by a hash of their texts.

    Near duplicates are on the same side, or the new retriever would learn from other words for the locked questions.
    The first retriever has learned from those. This favours it over a new one, which does not, so the check gets stricter.

    Raises:
        ValueError: If there are no training questions.
    """
    if "train" not in data.qrels:
        raise ValueError(f"improve() repeats questions of the split 'train', and this dataset has only {data.splits}.")
    if LOCKED in data.qrels:
        return data
    rows = data.qrels["train"]
    leader = _leaders_of_training_questions(data)
    is_locked = [_draw(leader[query]) < _LOCKED_SIZE for query in rows["query-id"][:]]
    if len(set(is_locked)) < 2:
        raise ValueError(
            f"improve() repeats some questions and locks others, and this dataset has {len(set(leader.values()))} question(s) to "
            "do so, near duplicates counted once. Add questions, or a split 'test'."
        )
    sides = {"train": np.flatnonzero(np.logical_not(is_locked)), LOCKED: np.flatnonzero(is_locked)}
    return replace(
        data, qrels={**data.qrels, **{name: rows.select(of) for name, of in sides.items()}}, split_by="question"
    )


def _leaders_of_training_questions(data: RetrievalDataset) -> dict[str, str]:
    """Return for each training question, by id, the text that decides its side: the first of its near duplicates'."""
    texts, rows = data.query_texts, data.qrels["train"]
    chunks: dict[str, list[str]] = defaultdict(list)
    for query, chunk in zip(rows["query-id"][:], rows["corpus-id"][:], strict=True):
        chunks[same_question(texts[query])].append(chunk)
    leader = _leaders([Question(text, text, tuple(of)) for text, of in chunks.items()])
    return {query: leader[same_question(texts[query])] for query in rows["query-id"][:]}


def build_round_data(
    data: RetrievalDataset,
    logged: Sequence[LoggedQuestion],
    *,
    trained_before: Collection[str],
    held_out_size: float,
    dev_size: float,
    replay: float,
    seed: int,
) -> RoundData:
    """Combine the questions of the log with earlier training questions.

    The side of a question of the log follows from a hash of its text, so it is the same in every round; near duplicates are
    on the same side. Questions that an earlier round trained on are never held out. Questions of the locked test, and
    questions about its documents (if the dataset was split by document), are not used.

    Args:
        data: The dataset, with a ``test`` split, and a ``train`` split to replay.
        logged: The log.
        trained_before: The questions that any earlier round trained on, as returned by `same_question`.
        held_out_size: Share of the log's questions to evaluate with.
        dev_size: Share of the log's questions to choose the checkpoint and the merge with.
        replay: How many earlier training questions to repeat for each new one.
        seed: Seed of the draw of replayed questions.
    """
    tested = {same_question(data.query_texts[query]) for query in data.relevant(LOCKED)}
    distinct = distinct_questions(logged)
    confirmed = {record_of(one).id for one in distinct if one.is_confirmed}
    questions, counts = _usable(data, distinct, tested)
    side_of = _sides(questions, trained_before, held_out_size=held_out_size, dev_size=dev_size)
    sides: dict[str, list[Question]] = {"train": [], "dev": [], HELD_OUT: []}
    for question in questions:
        side = side_of[question.id]
        if side == HELD_OUT or question.id in confirmed:
            sides[side].append(question)
    new = {same_question(question.text) for question in questions}
    taken = new | tested
    replayed = _drawn(_others(data, "train", taken), round(replay * len(sides["train"])), seed)
    answers: dict[str, _Answers] = {
        "train": {**replayed, **_answers(sides["train"])},
        "dev": {**_others(data, "dev", taken), **_answers(sides["dev"])},
        LOCKED: {query: tuple(chunks) for query, chunks in data.relevant(LOCKED).items()},
        HELD_OUT: _answers(sides[HELD_OUT]),
    }
    counts |= {
        "trained on": len(sides["train"]),
        "used to choose the checkpoint": len(sides["dev"]),
        "held out": len(sides[HELD_OUT]),
        "not confirmed, not held out": len(questions) - sum(map(len, sides.values())),
        "replayed": len(replayed),
    }
    texts = data.query_texts | {question.id: question.text for question in questions}
    return RoundData(_dataset(data, answers, texts), {question.id for question in sides["train"]}, counts)


def _usable(
    data: RetrievalDataset, logged: Sequence[LoggedQuestion], tested: Collection[str]
) -> tuple[list[Question], dict[str, int]]:
    """Return the questions of the log that may be used, in the order of their ids, and the counts of the others."""
    forbidden = _chunks_of_tested_documents(data)
    places = places_in(data)
    usable = []
    counts = dict.fromkeys(
        (
            "asked in the locked test",
            "about a document of the locked test",
            "about texts that are gone",
            "labelled by ids alone",
        ),
        0,
    )
    for one in sorted(map(record_of, logged), key=lambda one: one.id):
        question = places.follow(one)
        if same_question(one.text) in tested:
            counts["asked in the locked test"] += 1
        elif not all(one.labels.values()):
            counts["labelled by ids alone"] += 1
        elif question is None:
            counts["about texts that are gone"] += 1
        elif forbidden & set(question.chunk_ids):
            counts["about a document of the locked test"] += 1
        else:
            usable.append(question)
    near = _near_the_test(usable, data)
    counts["asked in the locked test"] += len(near)
    return [question for question in usable if question.id not in near], counts


def _near_the_test(questions: Sequence[Question], data: RetrievalDataset) -> set[str]:
    """Return the ids of the questions that are near duplicates of one in the locked test: similar words and a common chunk.

    Similar words are not enough: "How do I open the L15?" and "How do I open the L20?" are different questions.
    """
    tested: dict[str, list[frozenset[str]]] = defaultdict(list)
    for query, chunks in data.relevant(LOCKED).items():
        for chunk in chunks:
            tested[chunk].append(shingles(data.query_texts[query]))
    return {
        question.id
        for question in questions
        for mine in [shingles(question.text)]
        for other in dict.fromkeys(one for chunk in question.chunk_ids for one in tested.get(chunk, ()))
        if len(mine & other) >= NEAR_DUPLICATE_JACCARD * len(mine | other)
    }


def _leaders(questions: Sequence[Question]) -> dict[str, str]:
    """Return for each question the smallest id among its near duplicates, which have similar words and a common chunk."""
    of_chunk: dict[str, list[int]] = defaultdict(list)
    for position, question in enumerate(questions):
        for chunk in dict.fromkeys(question.chunk_ids):
            of_chunk[chunk].append(position)
    pairs = [
        (together[first], position)
        for together in of_chunk.values()
        for first, position in zip(
            near_duplicate_groups([questions[one].text for one in together]), together, strict=True
        )
    ]
    firsts = first_members(len(questions), np.array(pairs, dtype=np.int64))
    smallest: dict[int, str] = {}
    for question, first in zip(questions, firsts, strict=True):
        smallest[first] = min(question.id, smallest.get(first, question.id))
    return {question.id: smallest[first] for question, first in zip(questions, firsts, strict=True)}


def _chunks_of_tested_documents(data: RetrievalDataset) -> set[str]:
    """Return the chunks of the documents of the test and of their near duplicates, and the copies of the tested chunks."""
    if data.split_by != "document" or "document_group" not in data.corpus.column_names:
        return set()
    groups, contents = groups_of_chunks(data), contents_of_chunks(data)
    tested = {of[chunk] for chunks in data.relevant(LOCKED).values() for chunk in chunks for of in (groups, contents)}
    return {chunk for chunk in groups if groups[chunk] in tested or contents[chunk] in tested}


def _sides(
    questions: Sequence[Question], trained_before: Collection[str], *, held_out_size: float, dev_size: float
) -> dict[str, str]:
    """Return the side of each question, by id."""
    leader = _leaders(questions)
    seen = {leader[question.id] for question in questions if same_question(question.text) in trained_before}
    sides = {}
    for name in set(leader.values()):
        draw = _draw(name)
        held_out, dev = draw < held_out_size, draw < held_out_size + dev_size
        sides[name] = "train" if name in seen else HELD_OUT if held_out else "dev" if dev else "train"
    return {question.id: sides[leader[question.id]] for question in questions}


def _draw(name: str) -> float:
    """Return a number from 0 up to 1 that is always the same for a text."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


def _answers(questions: Iterable[Question]) -> _Answers:
    return {question.id: question.chunk_ids for question in questions}


def _others(data: RetrievalDataset, split: str, taken: Collection[str]) -> _Answers:
    """Return the questions of a split that are not taken, with their relevant chunks."""
    relevant = data.relevant(split) if split in data.qrels else {}
    texts = data.query_texts
    return {query: tuple(chunks) for query, chunks in relevant.items() if same_question(texts[query]) not in taken}


def _drawn(answers: _Answers, number: int, seed: int) -> _Answers:
    names = sorted(answers)
    rows = np.random.default_rng(seed).permutation(len(names))[:number]
    return {names[row]: answers[names[row]] for row in sorted(rows)}


def _dataset(data: RetrievalDataset, answers: Mapping[str, _Answers], texts: Mapping[str, str]) -> RetrievalDataset:
    asked = list(dict.fromkeys(query for split in answers.values() for query in split))
    return RetrievalDataset(
        corpus=data.corpus,
        queries=Dataset.from_dict({"_id": asked, "text": [texts[query] for query in asked]}),
        qrels={
            split: Dataset.from_list(
                [judgement(query, chunk, data.corpus_texts[chunk]) for query, chunks in of.items() for chunk in chunks]
            )
            for split, of in answers.items()
            if of
        },
        split_by="given",
        context=data.context,
    )
