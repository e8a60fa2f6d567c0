"""Linear layers by oneDNN: the same numbers, in training too, and refused where they would not be."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

from embedtune.models import onednn
from embedtune.models.onednn import OneDnnLinear, is_exact
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.training.arguments import TuningArguments
from embedtune.training.losses import TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer

ROWS = Dataset.from_dict({"anchor": ["open the pump"] * 4, "positive": list("abcd"), "negative": list("efgh")})


@pytest.mark.skipif(not is_exact(), reason="oneDNN does not compute in float32 on this CPU")
@pytest.mark.parametrize("shape", [(7, 32), (1, 300, 32), (2, 3, 5, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_float32(shape, bias):
    torch.manual_seed(0)
    layer, inputs = nn.Linear(32, 48, bias=bias), torch.randn(shape, requires_grad=True)
    gradient = torch.randn(*shape[:-1], 48)

    def run():
        output = layer(inputs)
        return output, *torch.autograd.grad(output, (inputs, *layer.parameters()), gradient)

    expected = run()
    with OneDnnLinear():
        found = run()
    assert "_Linear" in found[0].grad_fn.name()
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)


def test_frozen_weights_double_precision_and_autocast_are_left_alone():
    layer = nn.Linear(8, 8).requires_grad_(False)
    with OneDnnLinear():
        inputs = torch.randn(3, 8, requires_grad=True)
        layer(inputs).sum().backward()
        assert inputs.grad is not None
        assert layer.weight.grad is None
        assert "_Linear" not in nn.Linear(8, 8).double()(torch.randn(3, 8).double()).grad_fn.name()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(inputs).dtype == torch.bfloat16


def test_the_setting_is_what_it_was_afterwards():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with OneDnnLinear():
        nn.Linear(8, 8)(torch.randn(3, 8)).sum().backward()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def trained(model, folder, **options):
    args = TuningArguments(
        str(folder), max_steps=2, use_cpu=True, dropout=0.0, learning_rate=1e-2, disable_tqdm=True, eval_strategy="no",
        save_strategy="no", load_best_model_at_end=False, optim="sgd", **options,
    )  # fmt: skip
    EmbeddingTrainer(model, args, train_dataset=ROWS, loss=TripletMarginLoss).train()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(autouse=True)
def tried_anew():
    onednn.usable.cache_clear()
    yield
    onednn.usable.cache_clear()


def inexact(monkeypatch):
    monkeypatch.setattr(onednn, "_MAX_ERROR", -1.0)
    onednn.usable.cache_clear()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_tried_out_where_gradients_are_switched_off(mode):
    expected = is_exact()
    with mode():
        assert is_exact() == expected


def test_an_encoder_uses_it_where_it_is_exact_and_says_where_it_is_not(tiny_model, monkeypatch, caplog):
    texts = ["open the pump", "close it"]
    plain = ModelEncoder(tiny_model).encode_documents(texts)
    calls = []
    apply = onednn._Linear.apply
    monkeypatch.setattr(onednn._Linear, "apply", lambda *args: calls.append(args) or apply(*args))
    if is_exact():
        calls.clear()
        found = ModelEncoder(tiny_model, onednn_linear=True).encode_documents(texts)
        np.testing.assert_allclose(found, plain, atol=1e-6)
        assert calls
    inexact(monkeypatch)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(ModelEncoder(tiny_model, onednn_linear=True).encode_documents(texts), plain)
    assert "onednn_linear=True has no effect" in caplog.text


def test_a_trainer_uses_it_where_it_is_exact_and_says_where_it_is_not(tiny_model_folder, tmp_path, monkeypatch, caplog):
    from sentence_transformers import SentenceTransformer

    def model():
        return SentenceTransformer(str(tiny_model_folder), device="cpu")

    plain = trained(model(), tmp_path)
    calls = []
    apply = onednn._Linear.apply
    monkeypatch.setattr(onednn._Linear, "apply", lambda *args: calls.append(args) or apply(*args))
    if is_exact():
        calls.clear()
        torch.testing.assert_close(trained(model(), tmp_path, onednn_linear=True), plain, atol=1e-6, rtol=0)
        assert calls
    inexact(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(trained(model(), tmp_path, onednn_linear=True), plain)
    assert "onednn_linear=True has no effect" in caplog.text
