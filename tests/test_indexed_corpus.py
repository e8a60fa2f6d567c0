from __future__ import annotations

import faiss
import numpy as np
import pytest
from datasets import Dataset
from test_evaluator import build, made_up

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.result import Evaluation
from embedtune.evaluation.verdict import compare
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.hybrid import Hybrid
from embedtune.retrieval.indexed_corpus import IndexedCorpus
from embedtune.types import Ranker

METRICS = {"cosine": faiss.METRIC_INNER_PRODUCT, "distance": faiss.METRIC_L2}


def indexed(data, model, *, shuffled=False, **options):
    """Return the corpus of a dataset with a FAISS index over the model's unit vectors, as its users make it."""
    corpus = data.corpus.shuffle(seed=0) if shuffled else data.corpus
    vectors = model.encode_document(corpus["text"][:], normalize_embeddings=True)
    corpus = Dataset.from_dict({**corpus.to_dict(), "embeddings": vectors})
    corpus.add_faiss_index("embeddings", **options)
    return corpus


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_flat_index_gives_the_metrics_of_exact_search(tiny_model, metric, shuffled):
    data = build(*made_up(num_copies=6))
    corpus = indexed(data, tiny_model, shuffled=shuffled, metric_type=METRICS[metric])
    retriever = IndexedCorpus(corpus, tiny_model)
    assert isinstance(retriever, Ranker)
    evaluator = TopKEvaluator(data, k=(1, 5, 10))
    found, exact = evaluator.evaluate(retriever, name="x"), evaluator.evaluate(tiny_model, name="x")
    assert found.metrics == pytest.approx(exact.metrics)
    assert not found.approximate
    assert "approximate" not in str(found)
    if metric == "cosine":
        lengths = np.linalg.norm(tiny_model.encode_query(found.per_query["query"][:]), axis=1, keepdims=True)
        np.testing.assert_allclose(found.per_query["scores"][:] / lengths, exact.per_query["scores"][:], atol=1e-6)
    assert found.model == f"IndexedCorpus(IndexFlat, {model_fingerprint(tiny_model)})"


def test_an_encoder_and_another_name_of_the_index_will_do(tiny_model):
    data = build(*made_up())
    corpus = indexed(data, tiny_model, index_name="by meaning")
    found = TopKEvaluator(data).evaluate(IndexedCorpus(corpus, ModelEncoder(tiny_model), index_name="by meaning"))
    assert found.metrics == pytest.approx(TopKEvaluator(data).evaluate(tiny_model).metrics)


def test_an_approximate_index_is_searched_as_it_is_and_the_result_says_so(tiny_model, tmp_path):
    data = build(*made_up())
    corpus = indexed(data, tiny_model, string_factory="HNSW4", metric_type=faiss.METRIC_INNER_PRODUCT)
    evaluator = TopKEvaluator(data, k=(1, 5))
    found = evaluator.evaluate(IndexedCorpus(corpus, tiny_model), name="graph")
    assert found.approximate
    assert "approximate search" in str(found)
    found.save(tmp_path / "found.json")
    assert Evaluation.load(tmp_path / "found.json").approximate
    exact = evaluator.evaluate(tiny_model, name="exact")
    assert "Searched by an approximate index, which may overlook chunks: graph." in compare(exact, found).notes
    assert "overlook" not in str(compare(exact, exact))
    assert evaluator.evaluate(Hybrid(IndexedCorpus(corpus, tiny_model))).approximate


def test_what_an_index_does_not_find_is_a_miss(tiny_model):
    data = build(*made_up())
    corpus = indexed(data, tiny_model, string_factory="IVF8,Flat", train_size=48)  # looks into one list of eight
    found = TopKEvaluator(data, k=(1, 40)).evaluate(IndexedCorpus(corpus, tiny_model))
    exact = TopKEvaluator(data, k=(1, 40)).evaluate(tiny_model)
    lengths = [len(chunks) for chunks in found.per_query["retrieved"][:]]
    assert max(lengths) < 40
    assert lengths == [len(scores) for scores in found.per_query["scores"][:]]
    assert found.metrics["accuracy@40"] < exact.metrics["accuracy@40"]
    for rank, right, chunks in zip(
        found.per_query["rank"][:], found.per_query["relevant"][:], found.per_query["retrieved"][:], strict=True
    ):
        assert rank == (chunks.index(right[0]) + 1 if right[0] in chunks else None)
    positions, _ = Hybrid(IndexedCorpus(corpus, tiny_model)).rank(["which pump"], list(data.corpus_texts.values()), 48)
    assert sorted(positions[0]) == list(range(48))


def test_an_index_of_another_corpus_or_another_model_is_refused(tiny_model):
    corpus, queries, relevant = made_up()
    index = IndexedCorpus(indexed(build(corpus, queries, relevant), tiny_model), tiny_model)
    changed = build({**corpus, "c000": "changed since"}, queries, relevant)
    with pytest.raises(ValueError, match="has 48 texts, of which 1 are not among the 48 documents"):
        TopKEvaluator(changed).evaluate(index)
    more = build({**corpus, "c999": "new"}, queries, relevant)
    with pytest.raises(ValueError, match="has 48 texts, of which 0 are not among the 49 documents"):
        TopKEvaluator(more).evaluate(index)
    tiny_model.truncate_dim = 16
    with pytest.raises(ValueError, match="vectors have 16 dimensions, and those of the index 'embeddings' have 32"):
        TopKEvaluator(build(corpus, queries, relevant)).evaluate(index)
