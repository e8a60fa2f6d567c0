from __future__ import annotations

import random

import pytest
import torch
from test_retriever import TEXTS

from embedtune.improvement.labels import LabelCheck, check_labels
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
