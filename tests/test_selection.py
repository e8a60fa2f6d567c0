from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedtune.retrieval.selection import RunningBest, top_k_of_scores


def stable_sort(scores, k):
    """The oracle: sort everything."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


few_values = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 60)), elements=st.integers(0, 3))


@settings(deadline=None, derandomize=True)
@given(few_values, st.data())
def test_top_k_of_scores_is_a_stable_sort(scores, data):
    k = data.draw(st.integers(1, scores.shape[1]))
    found = top_k_of_scores(scores, k)
    for got, expected in zip(found, stable_sort(scores, k), strict=True):
        np.testing.assert_array_equal(got, expected)


@settings(deadline=None, derandomize=True)
@given(few_values, st.data())
def test_the_blocks_that_scores_arrive_in_make_no_difference(scores, data):
    width = data.draw(st.integers(1, scores.shape[1]))
    k = data.draw(st.integers(1, scores.shape[1]))
    running = RunningBest(len(scores), k, "cpu")
    for start in range(0, scores.shape[1], width):
        running.add(torch.tensor(scores[:, start : start + width]), start)
    for got, expected in zip(running.result(), stable_sort(scores, k), strict=True):
        np.testing.assert_array_equal(got.numpy(), expected)


def test_wide_blocks_of_scores_that_rise_fall_or_are_all_equal_are_sorted_as_well():
    noise = np.random.default_rng(0).standard_normal((3, 4000)).astype(np.float32)
    rising = np.arange(4000, dtype=np.float32) + np.zeros((3, 1), dtype=np.float32)
    for scores in (noise, rising, -rising, np.zeros_like(noise), np.minimum(noise, 0)):
        running = RunningBest(3, 7, "cpu")
        for start in range(0, 4000, 1000):
            running.add(torch.tensor(scores[:, start : start + 1000]), start)
        for got, expected in zip(running.result(), stable_sort(scores, 7), strict=True):
            np.testing.assert_array_equal(got.numpy(), expected)


def test_places_that_nothing_took_are_marked():
    running = RunningBest(2, 3, "cpu")
    running.add(torch.tensor([[1.0], [2.0]]), 5)
    best = running.result()
    assert best.positions.tolist() == [[5, -1, -1], [5, -1, -1]]
    assert best.scores[:, 1:].isneginf().all()
