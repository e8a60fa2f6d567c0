from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from datasets import Dataset

from embedtune.dataset import RetrievalDataset
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
    return evaluator_of(tuple(chunk_of), k).evaluate(Placed(ranks), name=name)


@cache
def evaluator_of(chunk_of, k):
    ids = [f"q{i:04}" for i in range(len(chunk_of))]
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
    return TopKEvaluator(data, k=k)


def some_ranks(num, *, seed=0):
    return np.random.default_rng(seed).integers(1, 20, size=num)


def test_no_difference_cannot_be_told_and_may_still_be_one_that_the_questions_overlook():
    result = evaluate(some_ranks(100))
    verdict = compare(result, result)
    assert (verdict.decision, verdict.p_value, verdict.num_changed) == ("cannot tell", 1, 0)
    for change in verdict.metrics.values():
        assert change.difference == 0
        assert change.before == change.after
        assert (1 - change.high) ** 40 == pytest.approx(0.025)
        assert change.low == -change.high
    assert set(verdict.fixed.values()) == set(verdict.broken.values()) == {()}
    assert verdict.num_queries_needed() is None


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
    half = (change.high - change.low) / 2
    assert f"a difference of about {half:.3f}" in verdict.notes[0]
    assert f"a difference of 0.03 takes about {verdict.num_queries_needed():,} like these" in verdict.next_step


def test_questions_that_are_enough_are_not_said_to_be_needed():
    ranks = some_ranks(120)
    changed = ranks.copy()
    changed[0], changed[1] = (1, 2) if ranks[0] != 1 else (2, 1)
    verdict = compare(evaluate(ranks), evaluate(changed))
    assert verdict.decision == "cannot tell"
    assert verdict.num_queries_needed() < 120
    assert "can detect a difference" in verdict.notes[0]
    assert "takes about" not in verdict.next_step


@pytest.mark.parametrize(
    ("num_changed", "decision"), [(4, "cannot tell"), (5, "cannot tell"), (6, "better"), (7, "better")]
)
def test_fewer_than_six_changed_chunks_can_be_chance(num_changed, decision):
    before = np.full(NUM_CHUNKS, 8)
    after = before.copy()
    after[:num_changed] = 1
    verdict = compare(evaluate(before), evaluate(after))
    assert (verdict.num_changed, verdict.decision) == (num_changed, decision)
    assert verdict.p_value == pytest.approx(2.0 ** (1 - num_changed), abs=0.01)
    says_so = any(f"only {num_changed} chunks changed" in note for note in verdict.notes)
    assert says_so == (decision == "cannot tell" and verdict.metrics["ndcg@10"].low > 0)


def test_questions_about_one_chunk_are_one_observation():
    ranks = np.full(60, 8)
    many = compare(evaluate(ranks), evaluate(np.ones_like(ranks)))
    one = compare(evaluate(ranks, chunk_of=[3] * 60), evaluate(np.ones_like(ranks), chunk_of=[3] * 60))
    assert (many.decision, one.decision) == ("better", "cannot tell")
    assert (many.num_clusters, one.num_clusters) == (40, 1)


@pytest.mark.parametrize("num_queries", [1, 2, 5, 19])
def test_few_questions_work_and_the_verdict_says_how_little_they_tell(num_queries):
    verdict = compare(evaluate([9] * num_queries), evaluate([1] * num_queries))
    assert verdict.notes[-1] == f"{num_queries} questions are very few: use a hundred or more."
    assert verdict.decision == ("better" if num_queries == 19 else "cannot tell")
    assert "very few" not in str(compare(evaluate([9] * 20), evaluate([1] * 20)))


def test_fixed_and_broken_questions_are_listed_for_each_k():
    verdict = compare(evaluate([4, 1, 11, 2, 20]), evaluate([1, 4, 10, 3, 19]))
    assert verdict.fixed == {1: ("q0000",), 3: ("q0000",), 10: ("q0002",)}
    assert verdict.broken == {1: ("q0001",), 3: ("q0001",), 10: ()}
    assert "Of 5 questions, 2 as before find their chunk among the first 3: 1 fixed, 1 broken." in " ".join(
        str(verdict).split()
    )


def test_a_baseline_that_is_ahead_or_level_is_named_and_one_behind_is_not():
    ranks = some_ranks(120)
    before, after = evaluate(ranks), evaluate(np.maximum(ranks - 3, 1))
    ahead = evaluate(np.maximum(ranks - 8, 1), name="BM25")
    level = evaluate(np.roll(np.maximum(ranks - 3, 1), 1), name="other")
    behind = evaluate(ranks + 3, name="weak")
    verdict = compare(before, after, ahead, level, behind)
    assert verdict.against_baselines == ("worse", "cannot tell", "better")
    assert f"; BM25 is better, at {ahead.metrics['ndcg@10']:.3f}" in verdict.sentence
    assert "; other may be as good" in verdict.sentence
    assert "weak" not in verdict.sentence
    assert "weak" in str(verdict)


def test_results_for_other_questions_are_refused():
    result, other = evaluate([1, 2, 3], name="base"), evaluate([1, 2], name="tuned")
    with pytest.raises(
        ValueError, match="'tuned' and 'base' cannot be compared: their questions, judgements or corpora"
    ):
        compare(result, other)
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(result, result, other)


def test_results_for_other_k_are_refused():
    with pytest.raises(ValueError, match=r"k=\(1, 3\).*k=\(1, 3, 10\)"):
        compare(evaluate([1, 2, 3]), evaluate([1, 2, 3], k=(1, 3)))


@pytest.mark.parametrize("confidence_level", [0, 1, 95, -0.5])
def test_confidence_level_must_be_a_share(confidence_level):
    result = evaluate([1, 2])
    with pytest.raises(ValueError, match=f"confidence_level={confidence_level}"):
        compare(result, result, confidence_level=confidence_level)


def test_some_resamples_must_be_drawn():
    result = evaluate([1, 2])
    with pytest.raises(ValueError, match="num_resamples=0"):
        compare(result, result, num_resamples=0)


def test_a_higher_confidence_gives_a_wider_interval():
    before, after = evaluate(some_ranks(60)), evaluate(some_ranks(60, seed=1))
    narrow, wide = (compare(before, after, confidence_level=c).metrics["mrr@10"] for c in (0.8, 0.995))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert "99.5% interval" in str(compare(before, after, confidence_level=0.995))


def test_it_prints_as_aligned_text():
    ranks = some_ranks(60)
    before, after = evaluate(ranks, name="base"), evaluate(np.maximum(ranks - 3, 1), name="tuned")
    verdict = compare(before, after, evaluate(some_ranks(60, seed=1), name="BM25"))
    lines = str(verdict).splitlines()
    assert lines[0] == f"{verdict.headline.capitalize()}: {verdict.reason}"
    assert "base -> tuned on test: 60 questions about 40 chunks, 40 chunks to choose from" in lines
    assert lines.index(next(line for line in lines if line.startswith("base -> "))) > lines.index("")
    header = next(line for line in lines if line.startswith("metric"))
    row = next(line for line in lines if line.startswith("ndcg@10"))
    assert header.split() == ["metric", "before", "after", "difference", "95%", "interval", "BM25"]
    change = verdict.metrics["ndcg@10"]
    assert row.split()[:4] == ["ndcg@10", f"{change.before:.3f}", f"{change.after:.3f}", f"{change.difference:+.3f}"]
    assert len(header) == len(row)
    assert not any(line.endswith(" ") for line in lines)


def test_it_shows_in_a_notebook_with_names_escaped():
    before, after = evaluate([1, 2, 3], name="<script>"), evaluate([1, 2, 3], name="a & b")
    html = compare(before, after, evaluate([1, 1, 1], name="<img>"))._repr_html_()
    assert "<script>" not in html
    assert "<img>" not in html
    assert "&lt;script&gt; -&gt; a &amp; b" in html
    assert html.count("<table>") == html.count("</table>") == 3


def test_each_retriever_stands_in_the_table_with_its_own_interval():
    ranks = some_ranks(120)
    runs = [evaluate(np.maximum(ranks - shift, 1), name=name) for name, shift in (("base", 0), ("tuned", 3), ("x", 5))]
    text = str(compare(*runs)).splitlines()
    for run in runs:
        interval = run.intervals()["ndcg@10"]
        cell = f"{run.metrics['ndcg@10']:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        assert any(line.startswith(run.name + " ") and cell in line for line in text)


def test_other_results_do_not_change_the_decision_and_among_themselves_need_more_evidence():
    ranks = some_ranks(120)
    base, after = evaluate(ranks, name="base"), evaluate(np.maximum(ranks - 1, 1), name="tuned")
    others = [evaluate(np.roll(ranks, i), name=f"r{i}") for i in range(1, 5)]
    alone, with_one, with_four = compare(base, after), compare(base, after, others[0]), compare(base, after, *others)
    for verdict in (with_one, with_four):
        assert (verdict.decision, verdict.p_value, verdict.metrics) == (alone.decision, alone.p_value, alone.metrics)
        assert verdict.num_queries_needed() == alone.num_queries_needed()
    one, four = (verdict.comparisons[1].metrics["ndcg@10"] for verdict in (with_one, with_four))
    assert four.low < one.low < one.high < four.high
    says_so = "against the 4 other retrievers are adjusted for their number"
    assert [says_so in str(verdict) for verdict in (alone, with_one, with_four)] == [False, False, True]


def test_the_number_of_questions_that_would_be_needed_is_enough_and_not_far_too_much():
    rng = np.random.default_rng(0)
    pilot = compare(evaluate([2] * 40), evaluate(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25], size=40)))
    gain = 0.05
    needed = pilot.num_queries_needed(gain)
    # Draw as many of the pilot's own differences, moved to the gain, and see how often it is seen.
    differences = pilot.after.per_query_metrics["ndcg@10"] - pilot.before.per_query_metrics["ndcg@10"]
    draws = rng.choice(differences - differences.mean() + gain, size=(2000, needed))
    seen = draws.mean(axis=1) > 1.96 * draws.std(axis=1, ddof=1) / np.sqrt(needed)
    assert 0.7 < seen.mean() < 0.9
    assert pilot.num_queries_needed(gain, power=0.95) > needed
    assert pilot.num_queries_needed() == pytest.approx(needed * (gain / 0.03) ** 2, rel=0.01)


def test_a_gain_too_large_to_be_true_is_warned_of(caplog):
    ranks = np.full(60, 9)
    verdict = compare(evaluate(ranks), evaluate(np.ones_like(ranks)))
    assert [warning.partition(" rose by ")[0] for warning in verdict.warnings] == ["accuracy@1", "ndcg@10"]
    assert verdict.warnings[0] in verdict.notes
    assert verdict.warnings[0] in caplog.text
    assert compare(evaluate(some_ranks(60)), evaluate(np.maximum(some_ranks(60) - 1, 1))).warnings == ()


def test_questions_that_were_trained_on_are_warned_of():
    ranks = some_ranks(60)
    before, after = evaluate(ranks), evaluate(np.maximum(ranks - 1, 1))
    known = ["About  7", "something else"]
    verdict = compare(before, after, training=known)
    # Question 47 asks about chunk 7, too.
    assert verdict.warnings[0].startswith("2 of the 60 questions, or near duplicates of them, were trained on")
    assert "'q0007', 'q0047'" in verdict.warnings[0]
    assert compare(before, after, training=["something else"]).warnings == ()
    with pytest.raises(TypeError, match="got a string"):
        compare(before, after, training="About 7")


@pytest.mark.parametrize("other", [{}, None, "before.json", [], {"ndcg@10": 0.5}])
def test_what_is_no_result_is_refused(other):
    result = evaluate([1, 2])
    message = rf"\) takes results of TopKEvaluator.evaluate, got a {type(other).__name__}. .*Evaluation.load"
    for results in ((result, other), (other, result), (result, result, other)):
        with pytest.raises(TypeError, match=message):
            compare(*results)
