"""The lower layers keep their weights during a training, and only during it."""

from __future__ import annotations

import pytest
import torch
from model_repositories import gte_qwen2_repository
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from test_chunk_batches import trainer_of
from transformers import BertConfig, BertModel

from embedtune.models.load import load_model
from embedtune.training.freezing import lower_layers


@pytest.fixture
def four_layers(tiny_model_folder, tmp_path):
    """A BERT of four layers with the tokenizer of the tiny model."""
    torch.manual_seed(0)
    tokenizer = SentenceTransformer(str(tiny_model_folder), device="cpu").tokenizer
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(32)], device="cpu")


def names_of(model, parameters):
    chosen = {id(parameter) for parameter in parameters}
    return [name for name, parameter in model.named_parameters() if id(parameter) in chosen]


@pytest.mark.parametrize(("share", "layers"), [(0.0, None), (0.2, ()), (0.25, (0,)), (0.5, (0, 1)), (0.9, (0, 1, 2))])
def test_the_share_counts_layers_from_the_input_and_includes_the_embeddings(four_layers, share, layers):
    names = names_of(four_layers, lower_layers(four_layers, share))
    parts = ["embeddings.", *(f"encoder.layer.{layer}." for layer in layers)] if layers is not None else []
    assert names == [name for name, _ in four_layers.named_parameters() if any(part in name for part in parts)]


def test_a_decoder_keeps_its_upper_layers_and_its_last_norm(tmp_path):
    gte_qwen2_repository(tmp_path)
    model = load_model(tmp_path, device="cpu")
    layers = {int(name.split("layers.")[1].split(".")[0]) for name, _ in model.named_parameters() if "layers." in name}
    frozen = names_of(model, lower_layers(model, 0.5))
    assert any("embed_tokens" in name for name in frozen)
    upper = {f"layers.{layer}." for layer in layers if layer >= len(layers) // 2}
    trained = [name for name, _ in model.named_parameters() if name not in frozen]
    assert trained == [
        name
        for name, _ in model.named_parameters()
        if any(part in name for part in upper) or name.endswith("model.norm.weight")
    ]


def test_what_is_frozen_already_is_left_alone(four_layers, tiny_model):
    next(four_layers.parameters()).requires_grad_(False)
    assert lower_layers(four_layers, 0.5) == []
    static = SentenceTransformer(modules=[StaticEmbedding(tiny_model.tokenizer, embedding_dim=8)], device="cpu")
    assert lower_layers(static, 0.5) == [], "it has no layers"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_changes_the_upper_layers_alone_and_frees_the_others_at_its_end(
    four_layers, tmp_path, checkpointing
):
    before = {name: parameter.detach().clone() for name, parameter in four_layers.named_parameters()}
    trainer = trainer_of(four_layers, tmp_path, frozen_layers=0.5, max_steps=2, gradient_checkpointing=checkpointing)
    trainer.train()
    changed = {name for name, p in four_layers.named_parameters() if not torch.equal(p, before[name])}
    frozen = set(names_of(four_layers, lower_layers(four_layers, 0.5)))
    assert changed == {name for name in before if name not in frozen and "pooler" not in name}
    assert all(parameter.requires_grad for parameter in four_layers.parameters())


def test_a_training_that_fails_frees_the_layers_too(four_layers, tmp_path, monkeypatch):
    trainer = trainer_of(four_layers, tmp_path, frozen_layers=0.5)
    monkeypatch.setattr(trainer, "training_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert all(parameter.requires_grad for parameter in four_layers.parameters())


def test_nothing_is_frozen_with_a_share_of_zero(four_layers, tmp_path):
    before = {name: parameter.detach().clone() for name, parameter in four_layers.named_parameters()}
    trainer_of(four_layers, tmp_path, frozen_layers=0.0, max_steps=2, learning_rate=1e-2).train()
    unchanged = {name for name, p in four_layers.named_parameters() if torch.equal(p, before[name])}
    assert all("pooler" in name for name in unchanged), unchanged


@pytest.mark.parametrize("share", [-0.1, 1.0, 6])
def test_a_share_that_leaves_nothing_to_train_is_refused(tiny_model, tmp_path, share):
    with pytest.raises(ValueError, match="frozen_layers"):
        trainer_of(tiny_model, tmp_path, frozen_layers=share)
