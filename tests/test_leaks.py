from __future__ import annotations

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.leaks import known_questions
from embedtune.near_duplicates import near_matches, shingles
from embedtune.retrieval.bm25 import BM25

PAIRS = [
    ("Press both buttons of the pump for five seconds to restart it.", ["How do I restart the pump in the cellar?"]),
    ("Turn the key of the door to the left, and pull.", ["Which way does the key of the upper door turn?"]),
    ("The crane is checked on the first day of each month.", ["On which day do we check the crane?"]),
    ("Filters are made of wool and glass.", ["What are the filters of the engine made of?"]),
]


def test_nearly_equal_questions_are_known_and_others_are_not():
    data = RetrievalDataset.from_pairs(PAIRS, test_size=0.5, dev_size=0)
    result = TopKEvaluator(data, k=(1,)).evaluate(BM25())
    asked = dict(zip(result.per_query["query-id"][:], result.per_query["query"][:], strict=True))
    for query, text in asked.items():
        assert known_questions(result, [text.upper() + " "]) == [query]
        assert known_questions(result, [text.rstrip("?") + "!"]) == [query]
        assert known_questions(result, [f"Please tell me what this has to do with {text.split()[-1]}"]) == []
    assert known_questions(result, []) == []


def test_a_dataset_stands_for_its_training_questions_and_its_splits_share_none():
    data = RetrievalDataset.from_pairs(PAIRS, test_size=0.5, dev_size=0)
    assert known_questions(TopKEvaluator(data, k=(1,)).evaluate(BM25()), data) == []
    trained = TopKEvaluator(data, "train", k=(1,)).evaluate(BM25())
    assert known_questions(trained, data) == trained.per_query["query-id"][:]


def test_the_same_words_with_another_sign_or_in_another_order_are_another_question():
    asked = ["How do I call the driver of the pump from C++?", "Who carries the box from the old town to the harbour?"]
    data = RetrievalDataset.from_pairs(
        [("Include the header.", asked), ("Import the package.", ["Which one?"])],
        split_by="question",
        test_size=0,
        dev_size=0,
    )
    result = TopKEvaluator(data, "train", k=(1,)).evaluate(BM25())
    others = ["How do I call the driver of the pump from C#?", "Who carries the box from the harbour to the old town?"]
    assert known_questions(result, others) == []
    assert len(known_questions(result, [text.upper() for text in asked])) == 2


def test_questions_of_one_template_take_time_that_grows_with_their_number():
    """All of them share the template, and none of them is near another one."""

    def seconds(number):
        asked = [f"what is the price of part {i}" for i in range(number)]
        trained = [f"what is the price of part {i}" for i in range(number, 2 * number)]
        start = time.process_time()
        assert list(near_matches(asked, trained, threshold=0.8)) == []
        return time.process_time() - start

    assert seconds(8000) < 12 * seconds(1000)


def test_a_known_question_is_found_among_many_of_one_template():
    trained = [f"which screw of the large blue pump in hall {i} must be turned first" for i in range(2000)]
    assert {j for _, j in near_matches([trained[1234] + " today"], trained, threshold=0.8)} >= {1234}


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=8).map(" ".join), min_size=2, max_size=12))
def test_matches_are_exactly_those_of_enough_shared_word_triples(texts):
    for threshold in (0.5, 0.8, 1.0):
        expected = set()
        for i, j in itertools.product(range(len(texts)), repeat=2):
            a, b = shingles(texts[i]), shingles(texts[j])
            if len(a & b) >= threshold * len(a | b):
                expected.add((i, j))
        assert set(near_matches(texts, texts, threshold=threshold)) == expected
