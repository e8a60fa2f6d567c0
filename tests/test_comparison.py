"""How often retrievers that are alike are told apart: the first pair, and any pair of the others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from embedtune.evaluation.comparison import compare_with_each

OPTIONS = {"confidence_level": 0.95, "num_resamples": 500}


def results(num, *, num_queries, num_per_chunk, rng, gains=None):
    """Draw results of retrievers that answer the same questions; each has chunks of its own that it is good at."""
    clusters = np.arange(num_queries) // num_per_chunk
    shared = 0.3 + rng.normal(0, 0.7, clusters[-1] + 1)[clusters] + rng.standard_normal(num_queries)
    made = []
    for gain in gains if gains is not None else np.zeros(num):
        own = rng.normal(0, 0.5, clusters[-1] + 1)[clusters] + rng.normal(0, 0.5, num_queries)
        rank = np.maximum(1, np.ceil(np.exp(1.2 - 1.2 * (shared + own + gain))))
        values = np.where(rank <= 10, 1 / np.log2(rank + 1), 0)
        made.append(
            SimpleNamespace(
                metrics={"ndcg@10": float(values.mean())},
                per_query_metrics={"ndcg@10": values},
                per_seed_metrics={"ndcg@10": values[None]},
                primary_metric="ndcg@10",
                clusters=clusters,
                documents=None,
            )
        )
    return made


@pytest.mark.parametrize(("num_queries", "num_per_chunk"), [(50, 1), (50, 4), (200, 4)])
def test_false_findings_are_as_rare_as_said_in_the_first_pair_and_in_all_others_together(num_queries, num_per_chunk):
    rng = np.random.default_rng(0)
    num_trials, false_better, false_first, false_others = 600, 0, 0, 0
    for seed in range(num_trials):
        after, *others = results(5, num_queries=num_queries, num_per_chunk=num_per_chunk, rng=rng)
        first, *rest = (c.decision for c in compare_with_each(after, others, seed=seed, **OPTIONS))
        false_better += first == "better"
        false_first += first != "cannot tell"
        false_others += set(rest) != {"cannot tell"}
    # Three standard errors above 2.5% and 5% of so many trials.
    assert false_better / num_trials <= 0.025 + 0.019
    assert 0.01 <= false_first / num_trials <= 0.05 + 0.027
    assert false_others / num_trials <= 0.05 + 0.027


def test_without_a_correction_false_findings_among_the_others_would_be_common():
    rng = np.random.default_rng(0)
    false_others = 0
    for seed in range(200):
        after, *others = results(5, num_queries=50, num_per_chunk=1, rng=rng)
        found = {compare_with_each(after, [other], seed=seed, **OPTIONS)[0].decision for other in others}
        false_others += found != {"cannot tell"}
    assert false_others / 200 > 0.08


def test_the_first_comparison_is_the_same_whatever_else_stands_in_the_table():
    rng = np.random.default_rng(1)
    after, before, *others = results(6, num_queries=60, num_per_chunk=2, rng=rng, gains=[0.6, 0, 0, 0, 0, 0])
    alone = compare_with_each(after, [before], seed=0, **OPTIONS)[0]
    among = compare_with_each(after, [before, *others], seed=0, **OPTIONS)[0]
    assert (among.metrics, among.p_value, among.decision) == (alone.metrics, alone.p_value, alone.decision)


def test_each_of_several_others_needs_more_evidence_than_one_alone():
    rng = np.random.default_rng(1)
    after, before, *others = results(5, num_queries=60, num_per_chunk=2, rng=rng, gains=[0.6, 0, 0, 0, 0])
    among = compare_with_each(after, [before, *others], seed=0, **OPTIONS)[1:]
    for other, comparison in zip(others, among, strict=True):
        alone = compare_with_each(after, [other], seed=0, **OPTIONS)[0]
        assert comparison.p_value >= alone.p_value
        assert comparison.metrics["ndcg@10"].low < alone.metrics["ndcg@10"].low
