from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
import torch

from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.encoders import ModelEncoder, model_name
from embedtune.text import words
from embedtune.types import Encoder, Ranker

TEXTS = ["the red door", "who checks the pump of the old ship", "the red door", "wool", "the red door", "wool"]


def test_texts_get_the_models_own_vectors_in_their_order(tiny_model):
    encoder = ModelEncoder(tiny_model, batch_size=2)
    assert isinstance(encoder, Encoder)
    for vectors, encode in (
        (encoder.encode_queries(TEXTS), tiny_model.encode_query),
        (encoder.encode_documents(TEXTS), tiny_model.encode_document),
    ):
        assert (vectors.dtype, vectors.shape) == (np.float32, (6, 32))
        np.testing.assert_allclose(vectors, encode(TEXTS), atol=1e-6)


def test_queries_and_documents_get_their_own_prompts(tiny_model):
    tiny_model.prompts = {"query": "which ", "document": "the "}
    encoder = ModelEncoder(tiny_model)
    np.testing.assert_allclose(encoder.encode_queries(["pump"]), tiny_model.encode(["which pump"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_documents(["pump"]), tiny_model.encode(["the pump"]), atol=1e-6)


def test_every_distinct_text_is_encoded_once(tiny_model, monkeypatch):
    seen = Counter()

    def spy(texts, **_):
        seen.update(texts)
        return np.array([[len(text)] for text in texts])

    monkeypatch.setattr(tiny_model, "encode_document", spy)
    vectors = ModelEncoder(tiny_model).encode_documents(TEXTS)
    assert set(seen.values()) == {1}
    assert vectors.ravel().tolist() == [len(text) for text in TEXTS]


def test_equal_texts_get_equal_vectors_in_whatever_batch(tiny_model):
    vectors = ModelEncoder(tiny_model, batch_size=1).encode_documents(TEXTS)
    np.testing.assert_array_equal(vectors[0], vectors[4])


def test_vectors_of_a_half_precision_model_are_float32(tiny_model):
    assert ModelEncoder(tiny_model.to(torch.bfloat16)).encode_queries(TEXTS).dtype == np.float32


def test_a_model_is_called_by_its_hub_id_or_its_folder_and_never_by_a_path(tiny_model, tiny_model_folder):
    assert model_name(tiny_model) == tiny_model_folder.name
    tiny_model.model_card_data.base_model = "someone/some-model"
    assert model_name(tiny_model) == "someone/some-model"
    tiny_model.model_card_data.model_name = "Handbook"
    assert model_name(tiny_model) == "Handbook"


DOCUMENTS = [
    "Clean the pump before the pump is cold.",
    "The harbour crane",
    "",
    "A pump, a valve and a filter",
    "the harbour crane",
    "?!",
]


def lucene_bm25(query, documents, k1=1.5, b=0.75):
    """The formula of Kamphuis et al. (2020), table 1, with Lucene's idf."""
    texts = [words(document) for document in documents]
    mean = np.mean([len(text) for text in texts])
    scores = np.zeros(len(texts))
    for word in words(query):
        frequency = sum(word in text for text in texts)
        idf = np.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
        for i, text in enumerate(texts):
            count = text.count(word)
            scores[i] += idf * count / (count + k1 * (1 - b + b * len(text) / mean))
    return scores


def test_bm25_scores_equal_the_formula():
    queries = ["Which PUMP?", "pump pump filter", "the crane of the harbour"]
    for ranker, options in ((BM25(), {}), (BM25(k1=0.9, b=0.4), {"k1": 0.9, "b": 0.4})):
        positions, scores = ranker.rank(queries, DOCUMENTS, len(DOCUMENTS))
        for query, order, found in zip(queries, positions, scores, strict=True):
            expected = lucene_bm25(query, DOCUMENTS, **options)
            np.testing.assert_allclose(found, expected[order], rtol=1e-5)
            assert (np.diff(found) <= 0).all()


def test_bm25_is_a_ranker_and_breaks_ties_by_position():
    assert isinstance(BM25(), Ranker)
    positions, scores = BM25().rank(["the harbour crane"], DOCUMENTS, 3)
    assert positions.tolist() == [[1, 4, 0]]
    assert scores[0, 0] == scores[0, 1]


@pytest.mark.parametrize("query", ["", "...", "engine", "zzz yyy"])
def test_a_query_without_a_known_word_ranks_by_position(query):
    positions, scores = BM25().rank([query, "valve"], DOCUMENTS, 4)
    assert positions.tolist() == [[0, 1, 2, 3], [3, 0, 1, 2]]
    assert not scores[0].any()


def test_documents_without_words_can_be_ranked():
    positions, scores = BM25().rank(["pump"], ["", "?", "--"], 3)
    assert positions.tolist() == [[0, 1, 2]]
    assert not scores.any()


def test_blocks_make_no_difference_to_bm25(monkeypatch):
    queries = ["pump", "crane", "filter valve", "nothing", "the"]
    positions, scores = BM25().rank(queries, DOCUMENTS, 4)
    monkeypatch.setattr("embedtune.retrieval.bm25._SCORES_PER_BLOCK", 2 * len(DOCUMENTS))
    blocked = BM25().rank(queries, DOCUMENTS, 4)
    np.testing.assert_array_equal(blocked[0], positions)
    np.testing.assert_array_equal(blocked[1], scores)


@pytest.mark.parametrize("k", [0, 7])
def test_bm25_refuses_a_k_beyond_the_documents(k):
    with pytest.raises(ValueError, match=f"k={k} is out of range for 6 documents"):
        BM25().rank(["pump"], DOCUMENTS, k)


def test_bm25_is_quiet(capfd, caplog):
    caplog.set_level(logging.DEBUG)
    BM25().rank(["pump"], DOCUMENTS, 2)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    BM25(show_progress_bar=True).rank(["pump"], DOCUMENTS, 2)
    assert "BM25S" in capfd.readouterr().err


def test_a_tokenizer_of_ones_own_can_be_used():
    stemmed = BM25(tokenize=lambda text: [word.rstrip("s") for word in words(text)])
    documents = ["one crane", "two pumps"]
    assert BM25().rank(["pump"], documents, 1)[1].tolist() == [[0]]
    assert stemmed.rank(["pump"], documents, 1)[0].tolist() == [[1]]


@pytest.mark.slow
def test_a_corpus_is_encoded_by_a_process_for_each_device(tiny_model):
    encoder = ModelEncoder(tiny_model, devices=("cpu", "cpu"))
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), tiny_model.encode_document(TEXTS), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), tiny_model.encode_query(TEXTS), atol=1e-6)
