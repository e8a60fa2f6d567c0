"""The coverage of the intervals, and both tests against scipy and against resamples drawn one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.evaluation.statistics import (
    _resampled_means,
    cluster_totals,
    degrees_of_freedom,
    holm,
    mean_intervals,
    paired_interval,
    permutation_p_values,
    standard_error,
)

METRICS = ("accuracy@1", "accuracy@3", "mrr@10", "ndcg@10")


def simulated(num_queries, num_per_chunk, *, level, gain, rng):
    """Draw each metric of two retrievers that answer the same questions; chunks and questions differ in difficulty.

    Returns values before and after, of shape ``(num_queries, num_metrics)``, and the questions' chunks.
    """
    clusters = np.arange(num_queries) // num_per_chunk
    chunk, chunk_gain = rng.normal(0, 0.7, clusters[-1] + 1), rng.normal(0, 0.5, clusters[-1] + 1)
    common = level + chunk[clusters] + rng.standard_normal(num_queries)
    both = []
    for ease in (common, common + gain + chunk_gain[clusters]):
        rank = np.maximum(1, np.ceil(np.exp(1.2 - 1.2 * (ease + rng.normal(0, 0.5, num_queries)))))
        top = rank <= 10
        both.append(np.stack([rank <= 1, rank <= 3, top / rank, top / np.log2(rank + 1)], axis=1))
    return both[0], both[1], clusters


# Where nearly all questions are hits, the interval of a hit rate holds the truth more often than it says, never less.
CASES = [(50, 1, 0.3, 0.97), (50, 4, 0.3, 0.97), (50, 4, 1.5, 0.99), (200, 4, 0.3, 0.97)]


@pytest.mark.parametrize(("num_queries", "num_per_chunk", "level", "most"), CASES)
def test_intervals_hold_the_truth_as_often_as_they_say(num_queries, num_per_chunk, level, most):
    rng = np.random.default_rng(0)
    large = simulated(800_000, num_per_chunk, level=level, gain=0.3, rng=rng)
    true_mean, true_difference = large[1].mean(axis=0), (large[1] - large[0]).mean(axis=0)
    num_trials = 1200
    held = np.zeros((2, len(METRICS)))
    for seed in range(num_trials):
        before, after, clusters = simulated(num_queries, num_per_chunk, level=level, gain=0.3, rng=rng)
        low, high = paired_interval(after - before, clusters, num_resamples=200, seed=seed)
        held[0] += (low <= true_difference) & (true_difference <= high)
        low, high = mean_intervals(after, clusters)
        held[1] += (low <= true_mean) & (true_mean <= high)
    # The standard error of these shares is 0.006.
    for kind, shares in zip(("difference", "mean"), held / num_trials, strict=True):
        for metric, share in zip(METRICS, shares, strict=True):
            assert 0.93 <= share <= most, (kind, metric)


def test_the_percentile_bootstrap_would_promise_too_much_of_few_chunks():
    rng = np.random.default_rng(0)
    large = simulated(400_000, 4, level=0.3, gain=0.3, rng=rng)
    truth = (large[1] - large[0]).mean(axis=0)
    held = np.zeros(len(METRICS))
    for seed in range(400):
        before, after, clusters = simulated(50, 4, level=0.3, gain=0.3, rng=rng)
        means = _resampled_means(*cluster_totals(after - before, clusters), 200, seed)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
        held += (low <= truth) & (truth <= high)
    assert held.mean() / 400 < 0.93


def test_taking_questions_about_one_chunk_for_independent_would_promise_too_much():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    held = 0
    for seed in range(200):
        values = 0.1 + 0.3 * rng.standard_normal(40)[clusters] + 0.1 * rng.standard_normal(200)
        low, high = paired_interval(values[:, None], np.arange(200), num_resamples=200, seed=seed)
        held += bool(low[0] <= 0.1 <= high[0])
    assert held / 200 < 0.8


def test_paired_interval_is_made_of_the_standard_error_of_scipys_bootstrap():
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 0.0, 1.0, 1.0], size=150)
    low, high = paired_interval(differences[:, None], np.arange(150), seed=1)
    scipys = scipy.stats.bootstrap((differences,), np.mean, n_resamples=10_000, rng=np.random.default_rng(2))
    quantile = scipy.stats.t.ppf(0.975, 149)
    assert (high - low)[0] / 2 == pytest.approx(quantile * scipys.standard_error, rel=0.03)
    assert (low + high)[0] / 2 == pytest.approx(differences.mean())
    # With so many questions, the other ways of scipy come to the same.
    assert (low[0], high[0]) == pytest.approx(tuple(scipys.confidence_interval), abs=0.015)


def test_paired_interval_is_that_of_resamples_drawn_one_by_one():
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.repeat(np.arange(25), rng.integers(1, 6, size=25)))
    differences = np.tanh(rng.standard_normal((len(clusters), 2)) + rng.standard_normal((25, 1))[clusters]) / 2
    means = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(clusters == c) for c in rng.integers(25, size=25)])
        means.append(differences[drawn].mean(axis=0))
    low, high = paired_interval(differences, clusters, confidence_level=0.9)
    df = degrees_of_freedom(np.bincount(clusters).astype(float))
    assert 18 < df < 24  # of unequal clusters, fewer than 25 count
    expected = scipy.stats.t.ppf(0.95, df) * np.std(means, axis=0) * np.sqrt(25 / 24)
    np.testing.assert_allclose((high - low) / 2, expected, rtol=0.04)
    np.testing.assert_allclose((high + low) / 2, differences.mean(axis=0))


def by_document(num_documents, rng):
    """Draw differences whose true mean is 0, about documents of very unequal numbers of questions."""
    sizes = np.maximum(1, rng.lognormal(2.3, 0.8, num_documents).round()).astype(int)
    clusters = np.repeat(np.arange(num_documents), sizes)
    effects = rng.normal(0, 0.1, num_documents)[clusters] + rng.normal(0, 0.3, len(clusters))
    return effects[:, None], clusters


@pytest.mark.parametrize("num_documents", [6, 12, 40])
def test_intervals_by_document_hold_the_truth_also_with_few_documents_of_unequal_size(num_documents):
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(1000):
        low, high = paired_interval(*by_document(num_documents, rng), num_resamples=200, seed=seed)
        held += bool(low[0] <= 0 <= high[0])
    assert 0.93 <= held / 1000 <= 0.985  # the standard error is 0.007


def test_the_number_of_documents_alone_would_promise_too_much_of_six_unequal_ones(monkeypatch):
    monkeypatch.setattr("embedtune.evaluation.statistics.degrees_of_freedom", lambda sizes: len(sizes) - 1)
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(1000):
        low, high = paired_interval(*by_document(6, rng), num_resamples=200, seed=seed)
        held += bool(low[0] <= 0 <= high[0])
    assert held / 1000 < 0.945


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_intervals_over_seeds_cover_the_draw_of_the_seeds(num_seeds):
    rng = np.random.default_rng(2)
    held, without = 0, 0
    for seed in range(600):
        of_seeds = rng.normal(0, 0.03, (num_seeds, 1))
        differences, clusters = by_document(40, rng)
        values = differences + of_seeds.mean(axis=0)
        by_seed = values.mean(axis=0) + of_seeds - of_seeds.mean(axis=0)
        low, high = paired_interval(values, clusters, num_resamples=200, seed=seed, by_seed=by_seed)
        held += bool(low[0] <= 0 <= high[0])
        low, high = paired_interval(values, clusters, num_resamples=200, seed=seed)
        without += bool(low[0] <= 0 <= high[0])
    assert held / 600 >= 0.92  # the standard error is 0.01
    assert without < held


def test_equal_seeds_change_nothing():
    values, clusters = by_document(20, np.random.default_rng(3))
    alone = paired_interval(values, clusters)
    same = paired_interval(values, clusters, by_seed=np.repeat(values.mean(axis=0)[None], 3, axis=0))
    np.testing.assert_allclose(alone, same)


def test_paired_interval_depends_on_the_seed_alone(monkeypatch):
    differences, clusters = np.random.default_rng(0).uniform(-1, 1, (50, 3)), np.arange(50) // 2
    first = paired_interval(differences, clusters, seed=3)
    np.testing.assert_array_equal(first, paired_interval(differences, clusters, seed=3))
    assert not np.array_equal(first, paired_interval(differences, clusters, seed=4))
    monkeypatch.setattr("embedtune.evaluation.statistics._DRAWS_PER_BLOCK", 1000)
    np.testing.assert_allclose(first, paired_interval(differences, clusters, seed=3), atol=1e-12)


def test_where_nothing_differs_the_interval_is_what_such_questions_can_overlook():
    low, high = paired_interval(np.zeros((30, 2)), np.arange(30))
    exact = scipy.stats.binomtest(0, 30).proportion_ci(0.95, method="exact").high
    np.testing.assert_allclose([low, high], [[-exact] * 2, [exact] * 2])


def test_one_chunk_says_nothing():
    ones = np.ones((5, 1))
    assert [bound.tolist() for bound in paired_interval(ones, np.zeros(5, dtype=int))] == [[-1], [1]]
    assert [bound.tolist() for bound in mean_intervals(ones, np.zeros(5, dtype=int))] == [[0], [1]]


@pytest.mark.parametrize("num_hits", [0, 3, 40, 100])
def test_the_interval_of_a_hit_rate_of_independent_questions_is_nearly_wilsons(num_hits):
    values = np.zeros((100, 1))
    values[:num_hits] = 1
    low, high = mean_intervals(values, np.arange(100))
    wilson = scipy.stats.binomtest(num_hits, 100).proportion_ci(0.95, method="wilson")
    assert (low[0], high[0]) == pytest.approx((wilson.low, wilson.high), abs=0.004)


def test_standard_error_of_equal_clusters_is_that_of_their_means():
    rng = np.random.default_rng(0)
    values, clusters = rng.uniform(size=(60, 2)), np.arange(60) // 3
    means = values.reshape(20, 3, 2).mean(axis=1)
    np.testing.assert_allclose(standard_error(values, clusters), scipy.stats.sem(means, axis=0))


def test_p_value_is_the_share_of_sign_flips_with_as_large_a_mean():
    differences = np.random.default_rng(0).choice([-1.0, -0.5, 0.0, 1.0, 1.0], size=(10, 3))
    flips = np.array(list(itertools.product([-1, 1], repeat=10)))
    expected = (np.abs(flips @ differences) >= np.abs(differences.sum(axis=0)) - 1e-9).mean(axis=0)
    np.testing.assert_allclose(permutation_p_values(differences, np.arange(10)), expected)
    drawn = permutation_p_values(np.repeat(differences, 2, axis=0), np.repeat(np.arange(10), 2), num_resamples=1000)
    np.testing.assert_allclose(drawn, expected, atol=0.05)


def test_clusters_are_flipped_whole():
    differences = np.ones((60, 1))
    together, apart = (
        permutation_p_values(differences, clusters)[0] for clusters in (np.arange(60) // 20, np.arange(60))
    )
    assert together == pytest.approx(2 / 2**3)
    assert apart == pytest.approx(2 / 10_001)


def test_where_nothing_differs_everything_is_as_large():
    assert permutation_p_values(np.zeros((9, 2)), np.arange(9)).tolist() == [1, 1]
    assert permutation_p_values(np.array([[1.0]] + [[0.0]] * 8), np.arange(9)).tolist() == [1]


def test_without_a_difference_few_p_values_are_small():
    differences = np.random.default_rng(0).standard_normal((40, 200))
    p_values = permutation_p_values(differences, np.arange(40), num_resamples=2000)
    assert (p_values <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p_values <= 0.5).mean() == pytest.approx(0.5, abs=0.08)


def test_flips_depend_on_the_seed_alone():
    differences, clusters = np.random.default_rng(0).standard_normal((50, 2)) + 0.2, np.arange(50) // 2
    first = permutation_p_values(differences, clusters, seed=3)
    np.testing.assert_array_equal(first, permutation_p_values(differences, clusters, seed=3))
    assert not np.array_equal(first, permutation_p_values(differences, clusters, seed=4))


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
