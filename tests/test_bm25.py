from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.tokens import hashed_tokens
from embedtune.retrieval.words import WordIndex, WordWeights
from embedtune.types import Ranker

DOCUMENTS = [
    "Press both buttons to restart the pump.",
    "Turn the key to the left, then open the door.",
    "The pump hums when the valve is open; press the red button.",
    "Kühlschrankdichtungen werden jährlich geprüft.",
    "泵的阀门打开了",
]
QUESTIONS = [
    "How do I restart the pump?",
    "How do I open the door?",
    "Wie prüfe ich die Dichtung?",
    "阀门在哪里",
    "press press press the button",
    "???",
]
TEXTS = st.lists(st.text(st.sampled_from("ab cde fgh ijk"), max_size=40), min_size=1, max_size=6)


def expected_scores(documents, questions, training=None, k1=0.9, b=0.4):
    """BM25 as its formula says, one token after the other, with Python's own dictionaries."""
    counts = [Counter(hashed_tokens(text).tolist()) for text in documents]
    lengths = [sum(count.values()) for count in counts]
    mean = max(sum(lengths) / len(documents), 1)

    def idf(number, size):
        return math.log(1 + (size - number + 0.5) / (number + 0.5))

    def weight(token):
        if training is None:
            return 1
        asked = sum(token in hashed_tokens(question).tolist() for question in training)
        return idf(asked, len(training)) / idf(0, len(training))

    rows = []
    for question in questions:
        tokens = set(hashed_tokens(question).tolist())
        inverse = {token: idf(sum(token in count for count in counts), len(documents)) for token in tokens}
        total = sum(weight(token) * inverse[token] for token in tokens)
        rows.append([
            sum(
                weight(token) * inverse[token] * count[token] / (count[token] + k1 * (1 - b + b * length / mean))
                for token in tokens
                if token in count
            ) / total if tokens else 0
            for count, length in zip(counts, lengths, strict=True)
        ])  # fmt: skip
    return np.array(rows)


@pytest.mark.parametrize("training", [None, QUESTIONS[:2], ["How do I call?"] * 5])
def test_scores_are_those_of_the_formula(training):
    scores = BM25().fit(DOCUMENTS, training).scores(QUESTIONS)
    np.testing.assert_allclose(scores, expected_scores(DOCUMENTS, QUESTIONS, training), atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_scores_of_any_texts_are_those_of_the_formula_and_between_0_and_1(documents, questions, training):
    scores = BM25().fit(documents, training).scores(questions)
    np.testing.assert_allclose(scores, expected_scores(documents, questions, training), atol=1e-5)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_common_words_of_questions_count_little_once_they_are_learned():
    documents = ["How do I? How do I? What is the way?", "Press both buttons to restart."]
    question = ["How do I restart?"]
    assert BM25().rank(question, documents, 2)[0].tolist() == [[0, 1]]
    learned = BM25().fit(documents, ["How do I lock it?", "How do I call for help?", "How do I clean the filter?"])
    assert learned.rank(question, documents, 2)[0].tolist() == [[1, 0]]


def test_inflected_and_compound_words_are_found():
    positions, _ = BM25().rank(["Dichtung prüfen"], DOCUMENTS, 1)
    assert positions.tolist() == [[3]]


def test_neighbouring_words_count_more_than_the_same_words_apart():
    documents = ["the red pump and the blue valve", "the red valve and the blue pump"]
    assert BM25().rank(["blue pump"], documents, 1)[0].tolist() == [[1]]


def test_languages_without_spaces_are_searched_by_characters_and_pairs_of_them():
    documents = ["打开阀门", "门阀打开"]
    assert BM25().rank(["阀门"], documents, 1)[0].tolist() == [[0]]


def test_a_document_that_shares_no_token_is_not_found():
    positions, scores = BM25().rank(["restart", "zebra"], DOCUMENTS, 5)
    assert positions.tolist() == [[0, -1, -1, -1, -1], [-1] * 5]
    assert scores[1].tolist() == [0] * 5


def test_ties_are_broken_by_position():
    positions, _ = BM25().rank(["pump"], ["b", "the pump", "the pump", "a", "the pump"], 3)
    assert positions.tolist() == [[1, 2, 4]]


def test_other_documents_than_the_fitted_ones_are_ranked_with_what_was_learned():
    learned = BM25().fit(["anything else"], ["How do I lock it?", "How do I call for help?"])
    documents = ["How do I? How do I?", "Press both buttons to restart."]
    assert learned.rank(["How do I restart?"], documents, 1)[0].tolist() == [[1]]


def test_an_empty_document_and_an_empty_corpus_are_no_trouble():
    assert BM25().rank(["pump"], ["", "pump"], 2)[0].tolist() == [[1, -1]]
    assert BM25().fit(["", "..."]).scores(["pump"]).tolist() == [[0, 0]]


def test_joining_and_taking_give_the_index_that_is_built_anew():
    first, second = WordIndex.build(DOCUMENTS[:2]), WordIndex.build(DOCUMENTS[2:])
    joined = first.joined(second).take([4, 0, 2])
    fresh = WordIndex.build([DOCUMENTS[i] for i in (4, 0, 2)])
    np.testing.assert_array_equal(joined.scores(QUESTIONS), fresh.scores(QUESTIONS))
    again = WordIndex.of_arrays(joined.arrays(), num_chunks=len(joined))
    np.testing.assert_array_equal(again.scores(QUESTIONS), fresh.scores(QUESTIONS))


def test_learning_in_two_parts_is_learning_at_once():
    parts = WordWeights.learn(QUESTIONS[:2]).joined(WordWeights.learn(QUESTIONS[2:]))
    whole = WordWeights.learn(QUESTIONS)
    np.testing.assert_array_equal(parts.hashes, whole.hashes)
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert parts.num_questions == whole.num_questions


def test_hashes_are_the_same_on_every_machine():
    assert hashed_tokens("red pumps").tolist() == [
        11765665226422741261, 11429218599262382037, 12392199072632680751,
        8954446048299048203, 13635641201429858692, 16746683039579793696,
    ]  # fmt: skip


def test_blocks_of_questions_make_no_difference(monkeypatch):
    positions, scores = BM25().rank(QUESTIONS, DOCUMENTS, 4)
    monkeypatch.setattr("embedtune.retrieval.fusion._SCORES_PER_BLOCK", 2 * len(DOCUMENTS))
    blocked = BM25().rank(QUESTIONS, DOCUMENTS, 4)
    np.testing.assert_array_equal(blocked.positions, positions)
    np.testing.assert_array_equal(blocked.scores, scores)


def test_it_is_a_ranker():
    assert isinstance(BM25(), Ranker)


@pytest.mark.parametrize(("k", "message"), [(0, "k=0"), (6, "k=6 is out of range for 5 documents")])
def test_a_k_out_of_range_is_refused(k, message):
    with pytest.raises(ValueError, match=message):
        BM25().rank(["pump"], DOCUMENTS, k)


@pytest.mark.parametrize(
    "options", [{"k1": -1}, {"k1": math.nan}, {"k1": math.inf}, {"b": 1.5}, {"b": math.nan}, {"k1": "1"}, {"b": True}]
)
def test_parameters_out_of_range_are_refused(options):
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(options))}=.* must be"):
        BM25(**options)


def test_scores_without_documents_are_refused():
    with pytest.raises(ValueError, match="Call fit"):
        BM25().scores(["pump"])


def test_a_ranking_without_queries_is_refused():
    with pytest.raises(ValueError, match="no queries"):
        BM25().rank([], ["a pump"], 1)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_counting_in_blocks_is_counting_at_once(monkeypatch, size):
    at_once = WordIndex.build(DOCUMENTS).arrays()
    monkeypatch.setattr("embedtune.retrieval.words._TEXTS_PER_BLOCK", size)
    in_blocks = WordIndex.build(DOCUMENTS).arrays()
    assert {name: array.dtype for name, array in in_blocks.items()} == {
        name: array.dtype for name, array in at_once.items()
    }
    assert all(np.array_equal(array, at_once[name]) for name, array in in_blocks.items())


def test_no_documents_have_no_words():
    assert len(WordIndex.build([])) == 0
    assert WordIndex.build(["", ""]).scores(["word"]).tolist() == [[0.0, 0.0]]
