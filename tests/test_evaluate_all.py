from __future__ import annotations

import pytest
from test_evaluator import build, made_up

from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.evaluate_all import evaluate_all
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import compare
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.retriever import Retriever


def test_it_is_evaluate_for_each_and_compare_with_the_second_judged(tiny_model):
    data = build(*made_up())
    retrievers = {
        "base": tiny_model,
        "tuned": ModelEncoder(tiny_model),
        "bm25": "bm25",
        "both": Retriever.from_dataset(tiny_model, data),
    }
    verdict = evaluate_all(data, retrievers, k=(1, 5))
    evaluator = TopKEvaluator(data, k=(1, 5))
    runs = [evaluator.evaluate(BM25() if name == "bm25" else r, name=name) for name, r in retrievers.items()]
    expected = compare(*runs)
    assert str(verdict) == str(expected)
    assert (verdict.before.name, verdict.after.name) == ("base", "tuned")
    assert [baseline.name for baseline in verdict.baselines] == ["bm25", "both"]
    rows = str(verdict).splitlines()
    for name in retrievers:
        assert any(row.startswith(f"{name} ") for row in rows)


def test_where_bm25_finds_more_than_the_model_it_says_so_first(tiny_model):
    corpus = {f"c{i:02}": f"{i} {i * 7} {i * 13}" for i in range(60)}
    queries = {f"q{i:02}": f"where are {i * 7} and {i * 13}" for i in range(60)}
    data = build(corpus, queries, {f"q{i:02}": [f"c{i:02}"] for i in range(60)})
    untrained = {"base": ModelEncoder(tiny_model), "tuned": tiny_model, "bm25": "bm25"}
    verdict = evaluate_all(data, untrained)
    assert verdict.against_baselines == ("worse",)
    assert str(verdict).startswith("Keep what you have: bm25, which needs no training, finds more than tuned.")


def test_test_questions_that_were_trained_on_are_warned_of(tiny_model):
    corpus, queries, relevant = made_up()
    data = build(corpus, queries, relevant)
    copies = {f"t{query}": text for query, text in queries.items()}
    leaking = RetrievalDataset(
        data.corpus,
        build(corpus, {**queries, **copies}, relevant).queries,
        {"train": build(corpus, copies, {q: ["c000"] for q in copies}).qrels["test"], **data.qrels},
    )
    verdict = evaluate_all(leaking, {"base": "bm25", "tuned": "bm25"})
    assert any(
        "40 of the 40 questions, or near duplicates of them, were trained on" in warning for warning in verdict.warnings
    )
    assert evaluate_all(data, {"base": "bm25", "tuned": "bm25"}).warnings == ()


def test_fewer_than_two_and_unknown_words_are_refused(tiny_model):
    data = build(*made_up())
    with pytest.raises(ValueError, match=r"At least two retrievers are needed, .* got \['bm25'\]"):
        evaluate_all(data, {"bm25": "bm25"})
    with pytest.raises(ValueError, match=r"'base' is the string 'minilm'. Pass the model, et.load_model\('minilm'\)"):
        evaluate_all(data, {"bm25": "bm25", "base": "minilm"})


def test_retrievers_without_names_are_refused():
    with pytest.raises(TypeError, match=r"must be a dictionary .* got a list"):
        evaluate_all(build(*made_up()), ["bm25", "bm25"])
