"""Texts end to end get the vectors of padded ones, or are refused."""

from __future__ import annotations

import copy
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from model_repositories import gte_qwen2_repository, jina_hf_repository, load_family
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import MistralConfig, MistralModel, RobertaConfig, RobertaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from embedtune.models.load import load_model
from embedtune.models.packing.attention import PACKED, TEXT_LENGTHS, packed_attention, packed_attention_forward, runs_of
from embedtune.models.packing.pack import can_pack, encode_packed, pack, pack_in_parts, tokens_per_pass
from embedtune.retrieval.encoders import ModelEncoder

TEXTS = ["a", "the pump of the ship " * 5, "who", "", "check the valve", "check the valve and wait", "door " * 40] * 2


class Layer(torch.nn.Module):
    is_causal = False
    num_key_value_groups = 2


@settings(deadline=None, max_examples=40)
@given(
    lengths=some.lists(some.one_of(some.integers(1, 12), some.integers(60, 90)), min_size=1, max_size=8),
    causal=some.booleans(),
    in_order=some.booleans(),
    waste=some.sampled_from([2**11, 2**20]),
)
def test_each_text_attends_to_itself_alone(lengths, causal, in_order, waste):
    lengths = tuple(sorted(lengths)) if in_order else tuple(lengths)
    generator = torch.Generator().manual_seed(len(lengths))
    total = sum(lengths)
    query, key, value = (
        torch.randn(1, heads, total, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    )
    weight = torch.randn(1, total, 4, 8, generator=generator, dtype=torch.float64)

    def gradients(output):
        return output, *torch.autograd.grad((output * weight).sum(), (query, key, value))

    runs_of.cache_clear()
    with patch("embedtune.models.packing.attention._PAIRS_PER_CALL", waste):
        packed, _ = packed_attention_forward(
            Layer(), query, key, value, None, text_lengths=lengths, is_causal=causal, dropout=0.0, scaling=0.3
        )
    runs_of.cache_clear()
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    alone = torch.cat(
        [sdpa_attention_forward(Layer(), *part, None, is_causal=causal, dropout=0.0, scaling=0.3)[0] for part in parts],
        1,
    )
    for found, expected in zip(gradients(packed), gradients(alone), strict=True):
        torch.testing.assert_close(found, expected)


@given(some.lists(some.integers(1, 1000), min_size=1, max_size=60))
def test_runs_keep_every_text_and_pad_little(lengths):
    runs = runs_of(tuple(sorted(lengths)))
    assert [length for run in runs for length in run] == sorted(lengths)
    assert all(sum(max(run) ** 2 - length**2 for length in run) <= 2048 for run in runs)
    assert len(runs_of((20,) * 50)) == 1


def test_an_accelerator_gets_fewer_calls():
    lengths = tuple(range(10, 200))
    assert len(runs_of(lengths, "cuda")) < 10 < len(runs_of(lengths))


@pytest.mark.parametrize("unknown", ["sliding_window", "position_bias"])
def test_attention_of_another_kind_is_refused(unknown):
    states = torch.randn(1, 2, 5, 4)
    with pytest.raises(NotImplementedError, match=unknown):
        packed_attention_forward(Layer(), states, states, states, None, text_lengths=(2, 3), **{unknown: 3})


def test_a_batch_is_laid_end_to_end_whichever_side_its_padding_is_on():
    right = {"input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    left = {"input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}
    for padded in (right, left):
        packed = pack(padded | {"modality": "text"}, position_offset=2)
        assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
        assert packed["position_ids"].tolist() == [[2, 3, 2, 3, 4]]
        assert packed["cu_seq_lens_q"].tolist() == [0, 2, 5]
        assert packed["text_lengths"] == (2, 3)
        assert packed["modality"] == "text"
        assert "attention_mask" not in packed


def from_backbone(backbone, tokenizer, folder):
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=100)
    return SentenceTransformer(modules=[transformer, Pooling(32), Normalize()], device="cpu")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture
def model(request, tiny_model, tmp_path):
    torch.manual_seed(0)
    name = request.param
    if name == "bert":
        return tiny_model
    if name == "roberta":
        config = RobertaConfig(
            vocab_size=len(tiny_model.tokenizer), max_position_embeddings=128, pad_token_id=0, **SMALL
        )
        return from_backbone(RobertaModel(config), tiny_model.tokenizer, tmp_path)
    if name.startswith("gte"):
        gte_qwen2_repository(tmp_path)
        return load_family(tmp_path, device="cpu", attention=name.split()[1], max_seq_length=100)
    if name == "jina":
        jina_hf_repository(tmp_path)
        return load_model(tmp_path, device="cpu", max_seq_length=100)
    window = 4 if name == "sliding window" else None
    config = MistralConfig(
        vocab_size=len(tiny_model.tokenizer), num_key_value_heads=2, sliding_window=window, pad_token_id=0, **SMALL
    )
    return from_backbone(MistralModel(config), tiny_model.tokenizer, tmp_path)


@pytest.mark.parametrize("length", [5, 600])  # which go different ways on a CPU
def test_bfloat16_states_stay_bfloat16_and_give_nearly_the_same(length):
    lengths = (length, length, length + 3)
    states = [torch.randn(1, heads, sum(lengths), 8, requires_grad=True) for heads in (4, 2, 2)]

    def output_and_gradients(dtype):
        inputs = [part.detach().to(dtype).requires_grad_() for part in states]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output, _ = packed_attention_forward(
                Layer(), *inputs, None, text_lengths=lengths, is_causal=False, dropout=0.0, scaling=0.3
            )
        assert output.dtype == dtype
        return output, *torch.autograd.grad(output.float().square().sum(), inputs)

    for rough, exact in zip(output_and_gradients(torch.bfloat16), output_and_gradients(torch.float32), strict=True):
        assert (rough.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("length", [5, 600])
def test_encoding_in_bfloat16_takes_the_kernel_of_bfloat16_whose_forward_pass_is_fast(length):
    torch.manual_seed(0)
    states = [torch.randn(1, heads, 2 * length, 8, dtype=torch.bfloat16) for heads in (4, 2, 2)]
    options = {"is_causal": False, "dropout": 0.0, "scaling": 0.3}

    def attend():
        output, _ = packed_attention_forward(Layer(), *states, None, text_lengths=(length, length), **options)
        return output.reshape(2, length, 4, 8)

    batch = [part[0].unflatten(1, (2, length)).transpose(0, 1) for part in states]
    expected, _ = sdpa_attention_forward(Layer(), *batch, None, **options)
    with torch.inference_mode():
        assert torch.equal(attend(), expected)
    with torch.no_grad():  # which gradient checkpointing and caching do before they compute the layer for its gradient
        assert torch.equal(attend(), expected) == (length >= 512)


@pytest.mark.parametrize(("max_tokens", "sizes"), [(None, [5]), (100, [5]), (10, [4, 1]), (6, [3, 1, 1]), (1, [1] * 5)])
def test_parts_have_at_most_so_many_tokens_or_one_text(max_tokens, sizes):
    lengths = torch.tensor([3, 1, 20, 2, 4])
    mask = (torch.arange(20) < lengths[:, None]).long()
    features = {"input_ids": torch.arange(100).view(5, 20), "attention_mask": mask, "task": "query"}
    parts = list(pack_in_parts(features, max_tokens=max_tokens, position_offset=2))
    assert [len(rows) for rows, _ in parts] == sizes
    assert torch.cat([rows for rows, _ in parts]).tolist() == [1, 3, 0, 4, 2]
    for rows, part in parts:
        assert part["input_ids"].tolist() == [[20 * row + i for row in rows.tolist() for i in range(lengths[row])]]
        assert part["position_ids"].tolist() == [[2 + i for row in rows.tolist() for i in range(lengths[row])]]
        assert part[TEXT_LENGTHS] == tuple(lengths[rows].tolist())
        assert part["task"] == "query"


def test_a_pass_on_a_cpu_has_as_many_tokens_as_their_widest_tensor_fits_into_memory_that_is_used_again(tiny_model):
    assert tokens_per_pass(tiny_model, "cpu") == 2**25 // (4 * 64)
    wide = torch.nn.Sequential(tiny_model, torch.nn.Linear(8, 10_000))
    assert tokens_per_pass(wide, torch.device("cpu")) == 2048
    assert tokens_per_pass(tiny_model, "cuda") is None
    assert tokens_per_pass(torch.nn.Embedding(3, 2), "cpu") is None


PACKABLE = ["bert", "roberta", "gte bidirectional", "gte causal", "jina", "full window"]


@pytest.mark.parametrize("model", PACKABLE, indirect=True)
@pytest.mark.parametrize("passes", ["one", "many"])
def test_encoding_without_padding_gives_the_vectors_of_sentence_transformers(model, passes, monkeypatch):
    if passes == "many":
        monkeypatch.setattr("embedtune.models.packing.pack.tokens_per_pass", lambda *_: 30)
    assert can_pack(model, "query")
    assert can_pack(model, "document")
    model.prompts = {"query": "ask: ", "passage": "chunk: "}
    encoder = ModelEncoder(model, batch_size=4)
    for ours, theirs in (
        (encoder.encode_queries, model.encode_query),
        (encoder.encode_documents, model.encode_document),
    ):
        np.testing.assert_allclose(ours(TEXTS), theirs(TEXTS), atol=1e-6)


@pytest.mark.parametrize("model", ["sliding window"], indirect=True)
def test_a_model_that_looks_only_so_far_is_encoded_with_padding(model):
    assert not can_pack(model)
    np.testing.assert_allclose(ModelEncoder(model).encode_queries(TEXTS), model.encode_query(TEXTS), atol=1e-6)


class AddsTheMeanOfItsInput(Module):
    """Right for padded texts; it would mix packed ones."""

    def forward(self, features):
        tokens = features["token_embeddings"]
        mask = features.get("attention_mask", torch.ones(tokens.shape[:2]))[:, :, None]
        mean = (tokens * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return features | {"token_embeddings": tokens + mean}

    def save(self, *args, **kwargs):
        raise NotImplementedError


def test_a_module_that_would_mix_packed_texts_is_found_and_gets_padding(tiny_model):
    transformer, pooling = tiny_model
    mixing = SentenceTransformer(modules=[transformer, AddsTheMeanOfItsInput(), pooling], device="cpu")
    assert can_pack(tiny_model)
    assert not can_pack(mixing)
    np.testing.assert_allclose(ModelEncoder(mixing).encode_queries(TEXTS), mixing.encode_query(TEXTS), atol=1e-6)


def test_the_default_prompt_and_a_shorter_dimension_apply(tiny_model):
    tiny_model.prompts, tiny_model.default_prompt_name = {"query": "ask: ", "other": "say: "}, "other"
    tiny_model.truncate_dim = 8
    vectors = ModelEncoder(tiny_model).encode_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), 8)
    np.testing.assert_allclose(vectors, tiny_model.encode_document(TEXTS), atol=1e-6)
    np.testing.assert_allclose(vectors, tiny_model.encode([f"say: {text}" for text in TEXTS], prompt=""), atol=1e-6)


def test_the_models_attention_is_what_it_was_afterwards(tiny_model):
    encode_packed(tiny_model, TEXTS, prompt=None, task=None, batch_size=8)
    assert tiny_model[0].model.config._attn_implementation == "sdpa"
    with packed_attention(tiny_model):
        assert tiny_model[0].model.config._attn_implementation == PACKED
    with pytest.raises(KeyError), packed_attention(tiny_model):
        raise KeyError
    assert tiny_model[0].model.config._attn_implementation == "sdpa"


def test_padded_texts_are_understood_while_texts_may_lie_end_to_end(tiny_model):
    expected = tiny_model.encode(TEXTS)
    with packed_attention(tiny_model):
        np.testing.assert_allclose(tiny_model.encode(TEXTS), expected, atol=1e-6)


def test_a_model_in_training_is_tried_out_without_dropout_and_goes_on_training(tiny_model):
    tiny_model.train()
    assert can_pack(copy.deepcopy(tiny_model))
    assert can_pack(tiny_model)
    assert tiny_model.training


def test_a_model_that_was_given_another_encode_keeps_it(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "encode_query", lambda texts, **_: np.ones((len(texts), 3)))
    assert ModelEncoder(tiny_model).encode_queries(["a", "b"]).tolist() == [[1, 1, 1], [1, 1, 1]]
