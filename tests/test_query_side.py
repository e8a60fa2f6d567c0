"""freeze_index: two routes that agree until one is trained, and a document side that nothing can change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_repositories import jina_hf_repository
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize

from embedtune.models.load import load_model
from embedtune.models.query_side import freeze_index, is_index_frozen

TEXTS = ["how to open the pump", "press the red valve and wait", "sensor"]
SIDES = ["lora", "linear", "route"]


def disturb(model):
    """Move everything that may be trained, as training does."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("query", SIDES)
def test_both_routes_give_the_given_models_vectors_until_one_is_trained(tiny_model, query):
    before = tiny_model.encode(TEXTS)
    frozen = freeze_index(tiny_model, query=query)
    for encode in (frozen.encode_query, frozen.encode_document, frozen.encode):
        np.testing.assert_array_equal(encode(TEXTS), before)


@pytest.mark.parametrize("query", SIDES)
def test_no_bit_of_a_document_vector_changes_with_the_query_side_also_after_saving(tiny_model, query, tmp_path):
    before = tiny_model.encode(TEXTS)
    frozen = freeze_index(tiny_model, query=query)
    disturb(frozen)
    trained = frozen.encode_query(TEXTS)
    assert abs(trained - before).max() > 1e-3
    np.testing.assert_array_equal(frozen.encode_document(TEXTS), before)
    np.testing.assert_array_equal(frozen.encode(TEXTS), before)

    frozen.save_pretrained(str(tmp_path / "model"))
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_array_equal(plain.encode_document(TEXTS), before)
    np.testing.assert_array_equal(plain.encode(TEXTS), before)
    np.testing.assert_allclose(plain.encode_query(TEXTS), trained, atol=1e-5)
    assert not [name for name, _ in plain.named_parameters() if "lora_" in name]


def test_the_linear_layer_is_all_that_is_trained_and_weights_are_saved_once(tiny_model, tmp_path):
    frozen = freeze_index(tiny_model, query="linear")
    assert [p.shape for p in frozen.parameters() if p.requires_grad] == [(32, 32)]
    frozen.save_pretrained(str(tmp_path / "model"))
    assert len(list((tmp_path / "model").glob("**/tokenizer.json"))) == 1


def test_freezing_a_saved_model_again_trains_its_linear_layer_further_instead_of_adding_another(tiny_model, tmp_path):
    model = tiny_model
    for number in range(3):
        before = model.encode_query(TEXTS), model.encode_document(TEXTS)
        frozen = freeze_index(model, query="linear")
        np.testing.assert_array_equal(frozen.encode_query(TEXTS), before[0])
        assert [p.shape for p in frozen.parameters() if p.requires_grad] == [(32, 32)]
        assert is_index_frozen(frozen)
        disturb(frozen)
        assert abs(frozen.encode_query(TEXTS) - before[0]).max() > 1e-3
        np.testing.assert_array_equal(frozen.encode_document(TEXTS), before[1])
        frozen.save_pretrained(str(tmp_path / str(number)))
        model = load_model(tmp_path / str(number), device="cpu")
        router = next(model.children())
        assert [type(m).__name__ for m in router.sub_modules["query"]] == ["Transformer", "Pooling", "Dense"]


def test_the_linear_layer_stands_before_the_normalisation_of_a_model_that_has_one(tiny_model):
    normalised = SentenceTransformer(modules=[*tiny_model.children(), Normalize()], device="cpu")
    frozen = freeze_index(normalised, query="linear")
    disturb(frozen)
    np.testing.assert_allclose(np.linalg.norm(frozen.encode_query(TEXTS), axis=1), 1, rtol=1e-5)


def test_a_lora_shares_the_weights_of_the_two_routes_in_memory(tiny_model):
    frozen = freeze_index(tiny_model, query="lora")
    own = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert own, "something is trained"
    assert all("lora_" in name and ".query." in name for name in own)
    base = sum(parameter.numel() for parameter in tiny_model.parameters())
    lora = sum(parameter.numel() for parameter in frozen.parameters() if parameter.requires_grad)
    assert sum(parameter.numel() for parameter in frozen.parameters()) == base + lora


def test_settings_of_the_model_are_kept(tiny_model):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    tiny_model.default_prompt_name = "document"
    tiny_model.truncate_dim = 16
    before = tiny_model.encode_query(TEXTS), tiny_model.encode_document(TEXTS)
    frozen = freeze_index(tiny_model)
    np.testing.assert_array_equal(frozen.encode_query(TEXTS), before[0])
    np.testing.assert_array_equal(frozen.encode_document(TEXTS), before[1])
    assert frozen.encode(TEXTS).shape == (3, 16)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("query", SIDES)
def test_the_query_route_of_jina_v3_is_trained_and_its_document_route_is_not(tmp_path, query):
    jina_hf_repository(tmp_path / "jina")
    model = load_model(tmp_path / "jina", device="cpu")
    queries, documents = model.encode_query(TEXTS), model.encode_document(TEXTS)
    frozen = freeze_index(model, query=query)
    assert is_index_frozen(frozen)
    np.testing.assert_array_equal(frozen.encode_query(TEXTS), queries)
    disturb(frozen)
    assert abs(frozen.encode_query(TEXTS) - queries).max() > 1e-3
    np.testing.assert_array_equal(frozen.encode_document(TEXTS), documents)

    trained = frozen.encode_query(TEXTS)
    frozen.save_pretrained(str(tmp_path / "saved"))
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    # Its adapters are merged when it is saved, on the document side too, and a sum rounds otherwise than its parts.
    np.testing.assert_allclose(plain.encode_document(TEXTS), documents, atol=1e-6)
    np.testing.assert_allclose(plain.encode_query(TEXTS), trained, atol=1e-5)


def test_a_model_that_is_still_trained_is_not_frozen(tiny_model):
    assert not is_index_frozen(tiny_model)


def test_what_cannot_be_frozen_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"query='adapter' must be one of \('lora', 'linear', 'route'\)"):
        freeze_index(tiny_model, query="adapter")
    shared = list(tiny_model.children())
    twins = SentenceTransformer(modules=[Router.for_query_document(shared, shared)], device="cpu")
    with pytest.raises(ValueError, match="shares all its weights"):
        freeze_index(twins, query="route")
    named = SentenceTransformer(modules=[Router({"text": shared}, default_route="text")], device="cpu")
    with pytest.raises(ValueError, match=r"has the routes \['text'\], but needs 'document'"):
        freeze_index(named)
    with pytest.raises(ValueError, match="needs float32 weights"):
        freeze_index(tiny_model.bfloat16(), query="linear")
    tiny_model.similarity_fn_name = "dot"
    with pytest.raises(ValueError, match="similarity is 'dot'"):
        freeze_index(tiny_model)
