from __future__ import annotations

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.fingerprint import fingerprint_of, model_fingerprint


def change_a_weight(model):
    with torch.no_grad():
        next(model.parameters())[3, 0] += 1e-6


def change_a_prompt(model):
    model.prompts = {"query": "find: "}


def change_the_length(model):
    model.max_seq_length = 12


def change_the_similarity(model):
    model.similarity_fn_name = "dot"


def change_the_dimension(model):
    model.truncate_dim = 8


def change_the_pooling(model):
    model[1].pooling_mode = "cls"


def change_the_attention(model):
    model.transformers_model.config.is_causal = True


def change_the_precision(model):
    model.to(torch.bfloat16)


@pytest.mark.parametrize(
    "change",
    [
        change_a_weight,
        change_a_prompt,
        change_the_length,
        change_the_similarity,
        change_the_dimension,
        change_the_pooling,
        change_the_attention,
        change_the_precision,
    ],
    ids=lambda change: change.__name__,
)
def test_it_changes_with_whatever_changes_the_vectors(tiny_model, change):
    before = model_fingerprint(tiny_model)
    change(tiny_model)
    assert model_fingerprint(tiny_model) != before


def test_it_survives_use_saving_and_another_folder(tiny_model, tmp_path):
    before = model_fingerprint(tiny_model)
    tiny_model.encode_query(["a pump", "the old ship"])
    tiny_model.eval()
    assert model_fingerprint(tiny_model) == before
    tiny_model.save_pretrained(str(tmp_path / "elsewhere"))
    assert model_fingerprint(SentenceTransformer(str(tmp_path / "elsewhere"), device="cpu")) == before


def test_other_retrievers_say_what_they_are_or_are_called_by_their_class():
    assert fingerprint_of(BM25()) == "BM25(k1=0.9, b=0.4)"
    assert fingerprint_of(BM25(k1=1.2)) != fingerprint_of(BM25())
    assert fingerprint_of(object()) == "object"
