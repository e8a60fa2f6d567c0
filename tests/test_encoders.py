from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from embedtune.retrieval.encoders import ModelEncoder, RememberingEncoder, model_name
from embedtune.types import Encoder

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


@pytest.mark.slow
def test_a_corpus_is_encoded_by_a_process_for_each_device(tiny_model):
    encoder = ModelEncoder(tiny_model, devices=("cpu", "cpu"))
    np.testing.assert_allclose(encoder.encode_documents(TEXTS), tiny_model.encode_document(TEXTS), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), tiny_model.encode_query(TEXTS), atol=1e-6)


def test_what_an_encoder_remembers_is_what_it_encoded_and_each_role_has_its_own(tiny_model, monkeypatch):
    texts, other = ["press both", "turn it", "press both"], ["turn it", "call Ada"]
    plain, remembering = ModelEncoder(tiny_model), RememberingEncoder(tiny_model)
    encoded = []
    real = ModelEncoder._encode_distinct
    monkeypatch.setattr(
        ModelEncoder, "_encode_distinct", lambda self, new, role: encoded.append((role, *new)) or real(self, new, role)
    )
    first = remembering.encode_queries(texts)
    np.testing.assert_array_equal(remembering.encode_queries(texts), first)
    np.testing.assert_allclose(remembering.encode_queries(other), real(plain, other, "query"), atol=1e-6)
    remembering.encode_documents(texts)
    assert encoded == [("query", "press both", "turn it"), ("query", "call Ada"), ("document", "press both", "turn it")]
    np.testing.assert_array_equal(first, real(plain, texts, "query"))
    assert remembering.encode_queries([]).shape[0] == 0
