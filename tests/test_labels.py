from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
import torch
from test_retriever import TEXTS

from embedtune.improvement.labels import LabelCheck, _best_rank, check_labels
from embedtune.retrieval.encoders import ModelEncoder

torch.set_num_threads(1)

QUESTIONS = [f"who may {text}" for text in TEXTS.values()]


@pytest.fixture
def encoder(tiny_model):
    return ModelEncoder(tiny_model)


def test_right_labels_look_right(encoder):
    found = check_labels(encoder, TEXTS, QUESTIONS, [[chunk] for chunk in TEXTS])
    assert found == LabelCheck((), len(TEXTS))
    assert not found.exceeds(0.01)


def test_random_labels_look_random(encoder):
    rng = random.Random(0)
    found = check_labels(encoder, TEXTS, QUESTIONS * 5, [[rng.choice(list(TEXTS))] for _ in QUESTIONS * 5])
    assert found.share_wrong > 0.6
    assert found.exceeds(0.5)


def test_one_right_chunk_among_several_is_enough(encoder):
    rng = random.Random(0)
    labels = [[rng.choice(list(TEXTS)), chunk] for chunk in TEXTS]
    assert check_labels(encoder, TEXTS, QUESTIONS, labels).doubtful == ()


@pytest.mark.parametrize(("num_doubtful", "exceeds"), [(0, False), (13, False), (16, False), (25, True)])
def test_a_share_is_exceeded_where_that_is_more_than_chance(num_doubtful, exceeds):
    assert LabelCheck(tuple(range(num_doubtful)), 100).exceeds(0.5) == exceeds


def test_few_labels_can_show_little():
    assert not LabelCheck((0,), 3).exceeds(0.5)


def test_the_memory_for_ranks_does_not_grow_with_the_questions():
    texts = {f"{i:05}": f"chunk number {i}" for i in range(20_000)}

    class Numbers:
        def encode_documents(self, texts):
            return np.random.default_rng(0).normal(size=(len(texts), 4)).astype(np.float32)

        encode_queries = encode_documents

    def peak(number):
        tracemalloc.start()
        check_labels(Numbers(), texts, [f"which number is {i}" for i in range(number)], [["00000"]] * number)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    assert peak(104) - peak(4) < 4e6  # 100 rankings of 20,000 chunks are 16 MB a copy


@pytest.mark.parametrize(
    ("scores", "places", "rank"), [([3, 1, 2], [1, 2], 2), ([2, 2, 2], [1], 2), ([1, 5, 5], [1, 2], 1)]
)
def test_ranks_count_better_chunks_and_equal_ones_ahead(scores, places, rank):
    assert _best_rank(np.array(scores, dtype=np.float32), places) == rank
