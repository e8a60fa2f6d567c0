"""Splits and groups: no leak, and nothing moves when documents are added."""

from __future__ import annotations

import itertools
import logging
import unicodedata
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.dataset import build_dataset
from embedtune.dataset.views import chunks_for_training
from embedtune.near_duplicates import MANY_PLACES, near_duplicate_pairs, shingles
from embedtune.text import same_question
from embedtune.types import Chunk, Question

WORDS = [
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "juniper",
    "kelp",
    "larch",
    "moss",
    "nettle",
    "oak",
    "pine",
    "quarry",
    "reed",
]


GROUPS = ("document_id", "document_group", "duplicate_group")


def sides_of(data):
    """Map every question id to its side; ``test_seen`` questions are about training documents by design."""
    return {q: "train" if split == "test_seen" else split for split in data.splits for q in data.relevant(split)}


@st.composite
def corpora(draw):
    """Documents of one to three chunks over few words, so that near-duplicates and repeated questions are common."""
    chunks, questions = [], []
    for d in range(draw(st.integers(4, 14))):
        start = 0
        for i in range(draw(st.integers(1, 3))):
            words = draw(st.lists(st.sampled_from(WORDS), min_size=4, max_size=12))
            text = " ".join(words)
            chunks.append(Chunk(f"d{d:02}#{i}", f"d{d:02}", text, start, start + len(text)))
            start += len(text) + 1
            asked = draw(st.lists(st.sampled_from(WORDS), min_size=0, max_size=4))
            questions += [
                Question(f"d{d:02}#{i}/{n}", f"Where is {w}?", (f"d{d:02}#{i}",)) for n, w in enumerate(asked)
            ]
    return chunks, questions


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(0, 5))
def test_no_question_text_document_or_near_duplicate_stands_on_two_sides(corpus, seed):
    chunks, questions = corpus
    try:
        data = build_dataset(chunks, questions, test_size=0.3, dev_size=0.2, test_seen_size=0.2, seed=seed)
    except ValueError as error:
        assert "document groups, too few" in str(error) or "no questions" in str(error)  # noqa: PT017
        return
    side, sides = sides_of(data), defaultdict(set)
    columns = {name: dict(zip(data.corpus["_id"][:], data.corpus[name][:], strict=True)) for name in GROUPS}
    for split in data.splits:
        for question, chunk_ids in data.relevant(split).items():
            sides["text", same_question(data.query_texts[question])].add(side[question])
            for chunk_id, (name, group_of) in itertools.product(chunk_ids, columns.items()):
                sides[name, group_of[chunk_id]].add(side[question])
    assert all(len(found) == 1 for found in sides.values())
    holders = defaultdict(set)
    for chunk in chunks:
        holders[columns["duplicate_group"][chunk.id]].add(chunk.document_id)
    for i, j in near_duplicate_pairs([chunk.text for chunk in chunks]):
        first, second = (columns["duplicate_group"][chunks[one].id] for one in (i, j))
        assert first == second or chunks[i].document_id == chunks[j].document_id or len(chunks) > MANY_PLACES
        if first == second and len(holders[first]) <= 3:
            one, other = ({*sides["document_id", chunks[place].document_id]} for place in (i, j))
            assert len(one | other) <= 1


@settings(max_examples=40, deadline=None)
@given(corpora(), st.integers(0, 5))
def test_a_held_out_question_about_a_seen_chunk_leaves_others_to_train_on(corpus, seed):
    chunks, questions = corpus
    try:
        data = build_dataset(chunks, questions, test_size=0, dev_size=0, test_seen_size=0.5, seed=seed)
    except ValueError:
        return
    if "test_seen" not in data.qrels:
        return
    trained = {chunk for chunk_ids in data.relevant("train").values() for chunk in chunk_ids}
    texts = {same_question(data.query_texts[q]) for q in data.relevant("train")}
    for question, chunk_ids in data.relevant("test_seen").items():
        assert set(chunk_ids) <= trained
        assert same_question(data.query_texts[question]) not in texts


def documents(names, per_document=5):
    texts = {n: f"{n} holds its own words: {n}1 {n}2 {n}3 {n}4" for n in names}
    chunks = [Chunk(f"{n}#0", n, text, 0, len(text)) for n, text in texts.items()]
    questions = [
        Question(f"{n}#0/{i}", f"Question {i} about {n}?", (f"{n}#0",)) for n in names for i in range(per_document)
    ]
    return chunks, questions


@pytest.mark.parametrize("seed", range(3))
def test_adding_documents_moves_few_others(seed):
    names = [f"doc{i:03}" for i in range(66)]
    sizes = {"test_size": 0.2, "dev_size": 0.1, "test_seen_size": 0.2, "seed": seed}
    before, after = (
        {question[:6]: side for question, side in sides_of(build_dataset(*documents(some), **sizes)).items()}
        for some in (names[:60], names)
    )
    assert sum(after[name] != side for name, side in before.items()) <= 6


def test_the_shares_are_met_on_average():
    data = build_dataset(*documents([f"doc{i}" for i in range(600)]), test_size=0.3, dev_size=0.1, seed=0)
    counts = {split: len(data.relevant(split)) / 3000 for split in data.splits}
    assert counts["test"] == pytest.approx(0.3, abs=0.06)
    assert counts["dev"] == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("seed", range(20))
def test_no_wanted_split_stays_empty_with_few_documents(seed):
    data = build_dataset(*documents(["a", "b", "c"]), test_size=0.1, dev_size=0.1, seed=seed)
    assert data.splits == ["train", "dev", "test"]


def test_too_few_document_groups_are_refused_with_the_ways_out():
    with pytest.raises(ValueError, match=r"2 document groups, too few for 3 splits.*dev_size=0.*split_by='question'"):
        build_dataset(*documents(["a", "b"]))


def test_another_seed_draws_another_split():
    chunks, questions = documents([f"doc{i}" for i in range(40)])
    tests = {tuple(build_dataset(chunks, questions, seed=seed).relevant("test")) for seed in range(4)}
    assert len(tests) == 4


def test_near_duplicate_documents_stay_together_whatever_the_seed():
    text = "The quick brown fox jumps over the lazy dog while the cat looks on from the warm roof"
    chunks, questions = documents([f"doc{i}" for i in range(8)])
    for name in ("twin1", "twin2"):
        chunks.append(Chunk(f"{name}#0", name, f"{text} {name}", 0, len(text) + 6))
        questions.append(Question(f"{name}#0/0", f"What of {name}?", (f"{name}#0",)))
    for seed in range(10):
        side = sides_of(build_dataset(chunks, questions, test_size=0.4, dev_size=0.2, seed=seed))
        assert side["twin1#0/0"] == side["twin2#0/0"]


def test_a_question_that_documents_of_two_sides_answer_is_trained_on_with_the_training_chunks_alone(caplog):
    chunks, questions = documents([f"doc{i}" for i in range(12)])
    everywhere = Question("all", "What holds words?", tuple(chunk.id for chunk in chunks))
    data = build_dataset(chunks, [*questions, everywhere], test_size=0.4, dev_size=0.2, seed=0)
    side = sides_of(data)
    assert data.relevant("train")["all"] == [f"doc{i}#0" for i in range(12) if side[f"doc{i}#0/0"] == "train"]
    assert {side[question.id] for question in questions} == {"train", "dev", "test"}, (
        "one question joined all documents"
    )
    assert caplog.text == ""


def test_a_question_that_only_held_out_documents_of_two_sides_answer_is_left_out_and_that_is_said(caplog):
    chunks, questions = documents([f"doc{i}" for i in range(12)])
    side = sides_of(build_dataset(chunks, questions, test_size=0.4, dev_size=0.2, seed=0))
    test, dev = (next(q.chunk_ids[0] for q in questions if side[q.id] == split) for split in ("test", "dev"))
    data = build_dataset(
        chunks, [*questions, Question("both", "Which?", (test, dev))], test_size=0.4, dev_size=0.2, seed=0
    )
    assert "both" not in sides_of(data)
    assert "both" not in data.query_texts
    assert (
        "1 of 61 questions have relevant documents in different splits, none of them in train, and were dropped"
        in caplog.text
    )


def test_a_test_question_that_was_also_asked_of_a_training_document_is_left_out():
    chunks, questions = documents([f"doc{i}" for i in range(12)])
    side = sides_of(build_dataset(chunks, questions, test_size=0.4, dev_size=0, seed=0))
    test, train = (next(q.chunk_ids[0] for q in questions if side[q.id] == split) for split in ("test", "train"))
    twice = [Question("a", "How so?", (test,)), Question("b", "HOW so?", (train,))]
    side = sides_of(build_dataset(chunks, [*questions, *twice], test_size=0.4, dev_size=0, seed=0))
    assert side["b"] == "train"
    assert "a" not in side


def test_splitting_by_question_gives_every_chunk_questions_on_each_side():
    chunks, questions = documents(["a", "b", "c", "d"], per_document=5)
    data = build_dataset(chunks, questions, split_by="question", test_size=0.2, dev_size=0.2)
    for split in ("train", "dev", "test"):
        asked = {chunk for chunk_ids in data.relevant(split).values() for chunk in chunk_ids}
        assert asked == {chunk.id for chunk in chunks}
    assert len(data.relevant("test")) == 4
    assert data.split_by == "question"


def test_splitting_by_question_keeps_equal_texts_together_and_one_question_to_train_on():
    chunks, questions = documents(["a", "b"], per_document=1)
    questions += [Question("x", "Same?", ("a#0",)), Question("y", "SAME?", ("a#0",))]
    data = build_dataset(chunks, questions, split_by="question", test_size=0.5, dev_size=0)
    side = sides_of(data)
    assert side["x"] == side["y"]
    assert side["b#0/0"] == "train"


def uneven(sizes):
    """Documents with one chunk each, and so many questions."""
    chunks, _ = documents([f"doc{i:03}" for i in range(len(sizes))])
    questions = [
        Question(f"{chunk.id}/{i}", f"Question {i} about {chunk.document_id}?", (chunk.id,))
        for chunk, size in zip(chunks, sizes, strict=True)
        for i in range(size)
    ]
    return chunks, questions


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=5, max_size=40), st.sampled_from([0.1, 0.2, 0.3, 0.5]), st.integers(0, 9))
def test_no_document_more_or_less_brings_a_split_nearer_to_its_size(sizes, share, seed):
    chunks, questions = uneven(sizes)
    data = build_dataset(chunks, questions, test_size=share, dev_size=0.1, seed=seed)
    left = all_sizes = {chunk.id: size for chunk, size in zip(chunks, sizes, strict=True)}
    for split, wanted, num_needed in (("test", share, 2), ("dev", 0.1, 1)):  # dev and train need a group each
        held = {chunk for chunk_ids in data.relevant(split).values() for chunk in chunk_ids}
        left = {chunk: size for chunk, size in left.items() if chunk not in held}
        number = len(data.relevant(split))
        others = [number + size for size in left.values() if len(left) > num_needed]
        others += [number - size for chunk, size in all_sizes.items() if chunk in held and len(held) > 1]
        missed = [abs(one - wanted * sum(sizes)) for one in (number, *others)]
        assert missed[0] <= min(missed) + 1e-6


def test_fourteen_documents_of_uneven_sizes_give_the_share_that_is_asked_for(caplog):
    for seed in range(20):
        data = build_dataset(*uneven([3, 40, 7, 22, 15, 9, 31, 5, 18, 12, 26, 4, 11, 8]), test_size=0.3, seed=seed)
        assert len(data.relevant("test")) == 63  # of 211
        assert len(data.relevant("dev")) == pytest.approx(21, abs=1)
    assert caplog.text == ""


def test_a_split_that_misses_its_size_by_much_says_so_and_why(caplog):
    build_dataset(*uneven([60, 20, 20]), test_size=0.4, dev_size=0)
    assert caplog.text == ""
    build_dataset(*uneven([60, 20, 20]), test_size=0.05, dev_size=0)
    assert "Test has 20% of the questions instead of 5%" in caplog.text
    assert "there are 3, the largest with 60% of the questions" in caplog.text


def test_questions_about_several_documents_do_not_make_the_test_small():
    chunks, questions = documents([f"doc{i:02}" for i in range(40)])
    several = [
        Question(f"s{i}", f"Which two, {i}?", (chunks[i % 40].id, chunks[(7 * i + 1) % 40].id)) for i in range(100)
    ]
    data = build_dataset(chunks, [*questions, *several], test_size=0.3, dev_size=0.1)
    assert len(data.relevant("test")) / 300 == pytest.approx(0.3, abs=0.04)
    assert len(data.relevant("dev")) / 300 == pytest.approx(0.1, abs=0.04)


def with_notice(num_documents=20):
    """Documents that end with one legal notice, and questions about it, asked of each of them."""
    chunks, questions = documents([f"doc{i:02}" for i in range(num_documents)])
    notice = "all rights reserved and no part of this manual may be copied without our written consent"
    notices = [Chunk(f"doc{i:02}#1", f"doc{i:02}", notice, 1000, 1000 + len(notice)) for i in range(num_documents)]
    asked = [Question(f"{one.id}/0", f"may I copy {one.document_id}?", (one.id,)) for one in notices]
    return [*chunks, *notices], [*questions, *asked]


@pytest.mark.parametrize("seed", range(4))
def test_questions_about_a_notice_in_all_documents_are_on_one_side_and_no_document_is_on_two(seed):
    chunks, questions = with_notice()
    data = build_dataset(chunks, questions, test_size=0.3, dev_size=0.1, seed=seed)
    side = sides_of(data)
    assert set(data.corpus["document_group"]) == {chunk.document_id for chunk in chunks}
    assert len({side[question.id] for question in questions if question.text.startswith("may I")}) == 1
    sides = defaultdict(set)
    for split in data.splits:
        for chunk_ids in data.relevant(split).values():
            for chunk_id in chunk_ids:
                sides[chunk_id[:5]].add(split)
    assert all(len(found) == 1 for found in sides.values())
    assert len(side) == len(questions)


def test_copies_of_a_tested_chunk_are_not_trained_on():
    chunks, questions = with_notice()
    for seed in range(30):
        data = build_dataset(chunks, questions, test_size=0.5, dev_size=0, seed=seed)
        if sides_of(data)["doc00#1/0"] == "test":
            break
    allowed = chunks_for_training(data, "train")
    assert not [chunk for chunk in allowed if chunk.endswith("#1")]
    trained = {chunk for chunk_ids in data.relevant("train").values() for chunk in chunk_ids}
    assert trained == set(allowed)


@pytest.mark.parametrize("per_document", [2, 3, 5, 8])
@pytest.mark.parametrize(("test_size", "dev_size"), [(0.2, 0.1), (0.1, 0.3), (0.3, 0)])
def test_splitting_by_question_keeps_the_shares_over_all_questions(per_document, test_size, dev_size):
    chunks, questions = documents([f"doc{i:02}" for i in range(30)], per_document=per_document)
    data = build_dataset(chunks, questions, split_by="question", test_size=test_size, dev_size=dev_size)
    number = len(questions)
    assert len(data.relevant("test")) == pytest.approx(test_size * number, abs=1)
    assert len(data.relevant("dev") if dev_size else ()) == pytest.approx(dev_size * number, abs=1)
    trained = {chunk for chunk_ids in data.relevant("train").values() for chunk in chunk_ids}
    assert trained == {chunk.id for chunk in chunks}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=20), st.sampled_from([0.1, 0.2, 0.4]), st.integers(0, 5))
def test_splitting_by_question_holds_out_no_more_than_chunks_can_spare(sizes, share, seed):
    chunks, questions = uneven(sizes)
    data = build_dataset(chunks, questions, split_by="question", test_size=share, dev_size=0.1, seed=seed)
    assert {chunk for found in data.relevant("train").values() for chunk in found} == {chunk.id for chunk in chunks}
    held_out = len(questions) - len(data.relevant("train"))
    assert held_out == pytest.approx(min((share + 0.1) * len(questions), len(questions) - len(chunks)), abs=1)


def test_a_split_by_question_that_misses_its_sizes_says_so(caplog):
    build_dataset(*documents([f"doc{i}" for i in range(9)], per_document=1), split_by="question")
    assert "Test has 0% of the questions instead of 20%, dev has 0% of the questions instead of 10%" in caplog.text
    assert "9 questions are about 9 chunks" in caplog.text


@pytest.mark.parametrize(
    ("split_by", "options"),
    [
        ("question", {"test_seen_size": 0.2}),
        ("given", {"test_size": 0.2}),
        ("given", {"dev_size": 0.1}),
        ("given", {"test_seen_size": 0.1}),
    ],
)
def test_sizes_that_do_not_apply_are_refused(split_by, options):
    chunks, questions = documents(["a", "b"])
    if split_by == "given":
        questions = [replace(question, split="train") for question in questions]
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{name}={value} does not apply to split_by='{split_by}'.*Leave it out"):
        build_dataset(chunks, questions, split_by=split_by, **options)
    build_dataset(chunks, questions, split_by=split_by, **dict.fromkeys(options, 0.0))


def test_given_splits_are_kept_and_a_shared_text_is_warned_of(caplog):
    chunks, _ = documents(["a", "b"])
    questions = [Question("x", "Same?", ("a#0",), split="train"), Question("y", "same?", ("b#0",), split="holdout")]
    with caplog.at_level(logging.WARNING):
        data = build_dataset(chunks, questions, split_by="given")
    assert data.splits == ["train", "holdout"]
    assert "1 questions are in more than one of the given splits" in caplog.text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS[:6]), min_size=1, max_size=9).map(" ".join), min_size=2, max_size=12))
def test_near_duplicates_are_exactly_those_of_enough_shared_word_triples(texts):
    found = near_duplicate_pairs(texts)
    for i in range(len(texts)):
        for j in range(i + 1, len(texts)):
            a, b = shingles(texts[i]), shingles(texts[j])
            similarity = len(a & b) / len(a | b)
            if (i, j) in found:
                assert similarity >= 0.5
            elif similarity > 0.9:  # the sketches may overlook a pair close to the threshold, never a plain one
                raise AssertionError((texts[i], texts[j]))


UNSPACED = {
    "Chinese": ("请同时按下两个红色按钮五秒钟以重新启动第三号水泵，然后等待绿灯亮起再松开手指。", "第三号", "第四号"),
    "Japanese": (
        "ポンプの二つのボタンを十秒間同時に押し、緑のランプが点灯したら、バルブをゆっくり開けてください。",
        "十秒",
        "八秒",
    ),
    "Thai": ("กดปุ่มทั้งสองของเครื่องสูบน้ำเป็นเวลาสิบวินาทีรอจนไฟสีเขียวติดแล้วเปิดวาล์วช้าๆ", "สิบ", "แปด"),
}


@pytest.mark.parametrize("language", UNSPACED)
def test_near_duplicates_are_found_in_text_without_spaces(language):
    text, word, other = UNSPACED[language]
    unrelated = [one for name, (one, _, _) in UNSPACED.items() if name != language]
    assert near_duplicate_pairs([text, text.replace(word, other), *unrelated]) == [(0, 1)]


def test_a_copy_in_another_normal_form_or_with_soft_hyphens_is_a_near_duplicate():
    text = "Die Fördermenge der Größe fünf darf während der Prüfung nicht über die höchste Menge gesteigert werden."
    copies = [text, unicodedata.normalize("NFD", text), text.replace("menge", "\u00admenge")]
    assert near_duplicate_pairs(copies) == [(0, 1), (0, 2), (1, 2)]
