from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from datasets import Dataset

from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.bootstrap import paired_interval
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import compare

NUM_CHUNKS = 40


class Placed:
    """A ranker that puts each question's right chunk (its id's last part) at the rank it is told."""

    def __init__(self, ranks):
        self.ranks = ranks

    def rank(self, queries, documents, k):
        positions = []
        for query, rank in zip(queries, self.ranks, strict=True):
            right = documents.index(query.split()[-1])
            others = [i for i in range(len(documents)) if i != right]
            positions.append([*others[: rank - 1], right, *others[rank - 1 :]][:k])
        return np.array(positions), np.zeros((len(queries), k), dtype=np.float32)


def evaluate(ranks, *, name="made up", chunk_of=None, k=(1, 3, 10)):
    """Evaluate a retriever that finds the right chunk of question i at ``ranks[i]``."""
    chunk_of = chunk_of if chunk_of is not None else [i % NUM_CHUNKS for i in range(len(ranks))]
    ids = [f"q{i:04}" for i in range(len(ranks))]
    data = RetrievalDataset(
        corpus=Dataset.from_dict(
            {"_id": [f"c{i:02}" for i in range(NUM_CHUNKS)], "text": list(map(str, range(NUM_CHUNKS)))}
        ),
        queries=Dataset.from_dict({"_id": ids, "text": [f"about {chunk}" for chunk in chunk_of]}),
        qrels={
            "test": Dataset.from_dict(
                {"query-id": ids, "corpus-id": [f"c{chunk:02}" for chunk in chunk_of], "score": [1] * len(ids)}
            )
        },
    )
    return TopKEvaluator(data, k=k).evaluate(Placed(ranks), name=name)


def some_ranks(num, *, seed=0):
    return np.random.default_rng(seed).integers(1, 20, size=num)


def test_clusters_of_one_give_the_interval_of_scipy():
    differences = np.random.default_rng(0).choice([-1.0, 0.0, 0.0, 1.0, 1.0], size=150)
    low, high = paired_interval(differences[:, None], np.arange(150), seed=1)
    expected = scipy.stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_interval_is_that_of_resamples_drawn_one_by_one():
    rng = np.random.default_rng(0)
    clusters = rng.permutation(np.repeat(np.arange(25), rng.integers(1, 6, size=25)))
    differences = rng.standard_normal((len(clusters), 2)) + rng.standard_normal((25, 1))[clusters]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(clusters == c) for c in rng.integers(25, size=25)])
        means.append(differences[drawn].mean(axis=0))
    low, high = paired_interval(differences, clusters, confidence=0.9)
    np.testing.assert_allclose([low, high], np.quantile(means, [0.05, 0.95], axis=0), atol=0.03)


def test_interval_holds_the_truth_about_as_often_as_it_says_and_only_so_with_clusters():
    rng = np.random.default_rng(0)
    num_trials, num_clusters, truth = 300, 60, 0.1
    clusters = np.repeat(np.arange(num_clusters), 4)
    held = {"clusters": 0, "questions": 0}
    for seed in range(num_trials):
        values = truth + 0.3 * rng.standard_normal(num_clusters)[clusters] + 0.1 * rng.standard_normal(len(clusters))
        for kind, groups in (("clusters", clusters), ("questions", np.arange(len(clusters)))):
            low, high = paired_interval(values[:, None], groups, num_resamples=400, seed=seed)
            held[kind] += bool(low[0] <= truth <= high[0])
    assert 0.91 <= held["clusters"] / num_trials <= 0.98
    assert held["questions"] / num_trials < 0.8


def test_interval_depends_on_the_seed_alone(monkeypatch):
    differences, clusters = np.random.default_rng(0).standard_normal((50, 3)), np.arange(50) // 2
    first = paired_interval(differences, clusters, seed=3)
    np.testing.assert_array_equal(first, paired_interval(differences, clusters, seed=3))
    assert not np.array_equal(first, paired_interval(differences, clusters, seed=4))
    monkeypatch.setattr("embedtune.evaluation.bootstrap._DRAWS_PER_BLOCK", 1000)
    np.testing.assert_allclose(first, paired_interval(differences, clusters, seed=3), atol=1e-12)


def test_no_difference_is_exactly_none_and_cannot_be_told():
    result = evaluate(some_ranks(100))
    verdict = compare(result, result)
    assert verdict.decision == "cannot tell"
    for change in verdict.metrics.values():
        assert (change.difference, change.low, change.high) == (0, 0, 0)
        assert change.before == change.after
    assert set(verdict.fixed.values()) == set(verdict.broken.values()) == {()}
    assert "+0.000 to +0.000" in str(verdict)


def test_better_is_better_and_the_other_way_round_worse():
    ranks = some_ranks(120)
    poor, good = evaluate(ranks, name="base"), evaluate(np.maximum(ranks - 3, 1), name="tuned")
    verdict, reverse = compare(poor, good), compare(good, poor)
    assert (verdict.decision, reverse.decision) == ("better", "worse")
    assert verdict.sentence.startswith("Better (n = 120 questions about 40 chunks): ndcg@10 went from ")
    assert reverse.sentence.startswith("Worse (")
    for name, change in verdict.metrics.items():
        assert change.before == poor.metrics[name]
        assert change.after == good.metrics[name]
        assert change.difference == pytest.approx(good.metrics[name] - poor.metrics[name])
        assert change.low <= change.difference <= change.high
        assert reverse.metrics[name].difference == pytest.approx(-change.difference)
    assert verdict.fixed == reverse.broken


def test_a_change_within_chance_cannot_be_told_and_the_verdict_says_what_could_be():
    ranks = some_ranks(120)
    verdict = compare(evaluate(ranks), evaluate(np.random.default_rng(1).permutation(ranks)))
    change = verdict.metrics["ndcg@10"]
    assert change.low < 0 < change.high
    assert verdict.decision == "cannot tell"
    assert verdict.sentence.startswith("Cannot tell (n = 120")
    assert f"a difference of about {(change.high - change.low) / 2:.3f}" in verdict.notes[1]


@pytest.mark.parametrize(
    ("num_changed", "decision"), [(4, "cannot tell"), (5, "cannot tell"), (6, "better"), (7, "better")]
)
def test_fewer_than_six_changed_chunks_can_be_chance(num_changed, decision):
    before = np.full(NUM_CHUNKS, 8)
    after = before.copy()
    after[:num_changed] = 1
    verdict = compare(evaluate(before), evaluate(after))
    assert verdict.metrics["ndcg@10"].low > 0
    assert (verdict.num_changed, verdict.decision) == (num_changed, decision)
    assert any(f"only {num_changed} chunks changed" in note for note in verdict.notes) == (decision == "cannot tell")


def test_questions_about_one_chunk_are_one_observation():
    ranks = np.full(60, 8)
    many = compare(evaluate(ranks), evaluate(np.ones_like(ranks)))
    one = compare(evaluate(ranks, chunk_of=[3] * 60), evaluate(np.ones_like(ranks), chunk_of=[3] * 60))
    assert (many.decision, one.decision) == ("better", "cannot tell")
    assert (many.num_clusters, one.num_clusters) == (40, 1)


@pytest.mark.parametrize("num_queries", [1, 2, 5, 19])
def test_few_questions_work_and_the_verdict_says_how_little_they_tell(num_queries):
    verdict = compare(evaluate([9] * num_queries), evaluate([1] * num_queries))
    assert verdict.notes[-1] == f"{num_queries} questions can tell very little: ask a hundred or more."
    assert verdict.decision == ("better" if num_queries == 19 else "cannot tell")
    assert "very little" not in str(compare(evaluate([9] * 20), evaluate([1] * 20)))


def test_fixed_and_broken_questions_are_listed_for_each_k():
    verdict = compare(evaluate([4, 1, 11, 2, 20]), evaluate([1, 4, 10, 3, 19]))
    assert verdict.fixed == {1: ("q0000",), 3: ("q0000",), 10: ("q0002",)}
    assert verdict.broken == {1: ("q0001",), 3: ("q0001",), 10: ()}
    assert "among the first 10 for 80.0% of the questions, before for 60.0%: 1 fixed, 0 broken" in verdict.notes[0]


def test_a_baseline_that_is_ahead_or_level_is_named_and_one_behind_is_not():
    ranks = some_ranks(120)
    before, after = evaluate(ranks), evaluate(np.maximum(ranks - 3, 1))
    ahead = evaluate(np.maximum(ranks - 8, 1), name="BM25")
    level = evaluate(np.roll(np.maximum(ranks - 3, 1), 1), name="other")
    behind = evaluate(ranks + 3, name="weak")
    verdict = compare(before, after, baselines=[ahead, level, behind])
    assert verdict.against_baselines == ("worse", "cannot tell", "better")
    assert f"; BM25 is better, at {ahead.metrics['ndcg@10']:.3f}" in verdict.sentence
    assert "; other cannot be told apart from it" in verdict.sentence
    assert "weak" not in verdict.sentence
    assert "weak" in str(verdict)
    assert compare(before, after, baselines=[behind]).sentence == compare(before, after).sentence


def test_results_for_other_questions_are_refused():
    result, other = evaluate([1, 2, 3], name="base"), evaluate([1, 2], name="tuned")
    with pytest.raises(
        ValueError, match="'tuned' and 'base' cannot be compared: their questions, judgements or corpora"
    ):
        compare(result, other)
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(result, result, baselines=[other])


def test_results_for_other_k_are_refused():
    with pytest.raises(ValueError, match=r"k=\(1, 3\).*k=\(1, 3, 10\)"):
        compare(evaluate([1, 2, 3]), evaluate([1, 2, 3], k=(1, 3)))


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5])
def test_confidence_must_be_a_share(confidence):
    result = evaluate([1, 2])
    with pytest.raises(ValueError, match=f"confidence={confidence}"):
        compare(result, result, confidence=confidence)


def test_some_resamples_must_be_drawn():
    result = evaluate([1, 2])
    with pytest.raises(ValueError, match="num_resamples=0"):
        compare(result, result, num_resamples=0)


def test_a_higher_confidence_gives_a_wider_interval():
    before, after = evaluate(some_ranks(60)), evaluate(some_ranks(60, seed=1))
    narrow, wide = (compare(before, after, confidence=c).metrics["mrr@10"] for c in (0.8, 0.995))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert "99.5% interval" in str(compare(before, after, confidence=0.995))


def test_it_prints_as_aligned_text():
    ranks = some_ranks(60)
    before, after = evaluate(ranks, name="base"), evaluate(np.maximum(ranks - 3, 1), name="tuned")
    verdict = compare(before, after, baselines=[evaluate(some_ranks(60, seed=1), name="BM25")])
    lines = str(verdict).splitlines()
    assert lines[0] == verdict.sentence
    assert "base -> tuned on test: 60 questions about 40 chunks, 40 chunks to choose from" in lines
    header = next(line for line in lines if line.startswith("metric"))
    row = next(line for line in lines if line.startswith("ndcg@10"))
    assert header.split() == ["metric", "before", "after", "difference", "95%", "interval", "BM25"]
    change = verdict.metrics["ndcg@10"]
    assert row.split()[:4] == ["ndcg@10", f"{change.before:.3f}", f"{change.after:.3f}", f"{change.difference:+.3f}"]
    assert len(header) == len(row)
    assert not any(line.endswith(" ") for line in lines)


def test_it_shows_in_a_notebook_with_names_escaped():
    before, after = evaluate([1, 2, 3], name="<script>"), evaluate([1, 2, 3], name="a & b")
    html = compare(before, after, baselines=[evaluate([1, 1, 1], name="<img>")])._repr_html_()
    assert "<script>" not in html
    assert "<img>" not in html
    assert "&lt;script&gt; -&gt; a &amp; b" in html
    assert html.count("<table>") == html.count("</table>") == 2
