from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.evaluation.permutation import holm, permutation_p_values


def test_p_value_is_that_of_scipys_permutation_test():
    differences = np.random.default_rng(0).choice([-1.0, -0.5, 0.0, 1.0, 1.0], size=(30, 3))
    for found, column in zip(permutation_p_values(differences, np.arange(30)), differences.T, strict=True):
        expected = scipy.stats.permutation_test(
            (column,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
        )
        assert found == pytest.approx(expected.pvalue, abs=0.015)


def test_clusters_are_flipped_whole():
    differences = np.ones((60, 1))
    together, apart = (
        permutation_p_values(differences, clusters)[0] for clusters in (np.arange(60) // 20, np.arange(60))
    )
    assert together == pytest.approx(2 / 2**3, abs=0.02)
    assert apart == pytest.approx(1 / 10_001)


def test_where_nothing_differs_everything_is_as_large():
    assert permutation_p_values(np.zeros((9, 2)), np.arange(9)).tolist() == [1, 1]


def test_without_a_difference_few_p_values_are_small():
    differences = np.random.default_rng(0).standard_normal((40, 400))
    p_values = permutation_p_values(differences, np.arange(40), num_permutations=2000)
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_flips_depend_on_the_seed_and_not_on_the_blocks(monkeypatch):
    differences, clusters = np.random.default_rng(0).standard_normal((50, 2)) + 0.2, np.arange(50) // 2
    first = permutation_p_values(differences, clusters, seed=3)
    np.testing.assert_array_equal(first, permutation_p_values(differences, clusters, seed=3))
    assert not np.array_equal(first, permutation_p_values(differences, clusters, seed=4))
    monkeypatch.setattr("embedtune.evaluation.permutation._SIGNS_PER_BLOCK", 1000)
    np.testing.assert_allclose(permutation_p_values(differences, clusters, seed=3), first, atol=0.02)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_step_down_rule_rejects(values):
    p_values = np.array(values)
    for alpha in (0.01, 0.05, 0.2):
        expected = np.zeros(len(values), dtype=bool)
        for i, position in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[position] * (len(values) - i) > alpha:
                break
            expected[position] = True
        np.testing.assert_array_equal(holm(p_values) <= alpha, expected)
