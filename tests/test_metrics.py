from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from embedtune.evaluation.metrics import accuracy_at_k, map_at_k, metrics_at_k, mrr_at_k, ndcg_at_k, recall_at_k

KS = (1, 2, 3, 5, 10)


@st.composite
def rankings(draw):
    """Hits, and for each question at least as many right chunks as it has hits."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 12)))
    hits = draw(hnp.arrays(bool, shape))
    extra = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, 12)))
    return hits, np.maximum(hits.sum(axis=1) + extra, 1)


def sentence_transformers_metrics(hits, num_relevant):
    """Metrics of the same rankings from InformationRetrievalEvaluator; chunk r of question q is named "q-r"."""
    queries = {f"{q}": "" for q in range(len(hits))}
    relevant, results = {}, []
    for q, row in enumerate(hits):
        found = [f"{q}-{r:02}" for r, hit in enumerate(row) if hit]
        relevant[f"{q}"] = {*found, *(f"{q}-never-{i}" for i in range(num_relevant[q] - len(found)))}
        results.append([{"corpus_id": f"{q}-{r:02}", "score": -float(r)} for r in range(len(row))])
    ks = list(KS)
    evaluator = InformationRetrievalEvaluator(
        queries,
        {"": ""},
        relevant,
        mrr_at_k=ks,
        ndcg_at_k=ks,
        accuracy_at_k=ks,
        precision_recall_at_k=ks,
        map_at_k=ks,
    )
    return evaluator.compute_metrics(results)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(rankings())
def test_means_equal_those_of_sentence_transformers(ranking):
    hits, num_relevant = ranking
    expected = sentence_transformers_metrics(hits, num_relevant)
    for k in KS:
        for name, values in metrics_at_k(hits, num_relevant, k=k).items():
            assert values.mean() == pytest.approx(expected[name.replace(f"@{k}", "@k")][k], abs=1e-12), name


@settings(deadline=None, derandomize=True)
@given(rankings())
def test_every_value_is_a_share_and_one_question_does_not_change_another(ranking):
    hits, num_relevant = ranking
    for k in KS:
        alone = [metrics_at_k(hits[i : i + 1], num_relevant[i : i + 1], k=k) for i in range(len(hits))]
        for name, values in metrics_at_k(hits, num_relevant, k=k).items():
            assert values.shape == (len(hits),)
            assert ((values >= 0) & (values <= 1)).all(), name
            assert values.tolist() == [float(one[name][0]) for one in alone]


def test_values_equal_a_hand_calculation():
    hits = np.array([[False, True, False, True], [False, False, False, False]])
    num_relevant = np.array([3, 1])
    assert accuracy_at_k(hits, k=1).tolist() == [0, 0]
    assert accuracy_at_k(hits, k=2).tolist() == [1, 0]
    assert recall_at_k(hits, num_relevant, k=4).tolist() == [2 / 3, 0]
    assert mrr_at_k(hits, k=4).tolist() == [1 / 2, 0]
    assert map_at_k(hits, num_relevant, k=4)[0] == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert map_at_k(hits, num_relevant, k=2)[0] == pytest.approx((1 / 2) / 2)
    gain, best = 1 / np.log2(3) + 1 / np.log2(5), 1 + 1 / np.log2(3) + 1 / np.log2(4)
    assert ndcg_at_k(hits, num_relevant, k=4)[0] == pytest.approx(gain / best)


def test_a_perfect_ranking_scores_one():
    hits = np.array([[True, True, False], [True, False, False]])
    for name, values in metrics_at_k(hits, np.array([2, 1]), k=3).items():
        assert values.tolist() == [1, 1], name


def test_with_one_right_chunk_recall_is_accuracy_and_map_is_mrr():
    hits = np.eye(7, 6, dtype=bool)
    one = np.ones(7, dtype=np.int64)
    for k in KS:
        np.testing.assert_array_equal(recall_at_k(hits, one, k=k), accuracy_at_k(hits, k=k))
        np.testing.assert_array_equal(map_at_k(hits, one, k=k), mrr_at_k(hits, k=k))


def test_more_hits_than_relevant_chunks_are_refused():
    hits = np.array([[True, False, True], [True, True, True]])
    assert max(values.max() for values in metrics_at_k(hits, np.array([2, 3]), k=3).values()) == 1
    with pytest.raises(ValueError, match="Ranking 1 has 3 hits, but its question has 2 relevant chunks"):
        metrics_at_k(hits, np.array([2, 2]), k=3)
