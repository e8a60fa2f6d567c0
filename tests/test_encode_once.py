"""Encoding every text once gives the stock trainer's loss and gradients: each loss, prompts, routes, LoRA, caching."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from datasets import Dataset
from model_repositories import gte_qwen2_repository, jina_hf_repository, load_family
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

from embedtune.models.lora import transformers_of
from embedtune.training.arguments import TuningArguments
from embedtune.training.dropout import dropout_within
from embedtune.training.encode_once.collator import TEXT_ROWS, UniqueTextCollator
from embedtune.training.encode_once.embedded_loss import takes_embeddings
from embedtune.training.losses import CosineEmbeddingLoss, InBatchNegativesLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer

CHUNKS = ["check the pump and press 1 " * 6, "the door of the roof", "close the valve " * 3, "a lamp"]
QUESTIONS = [
    "how to open the pump",
    "what is the valve for",
    "who",
    "where is the door of the old roof",
    "what to press",
]
ASKED = [(0, 0), (0, 4), (1, 3), (2, 1), (0, 2), (2, 4), (3, 0), (1, 3)]  # chunk, question: both repeat


def rows(*columns, label=None):
    made = {
        "anchor": [QUESTIONS[q] for _, q in ASKED],
        "positive": [CHUNKS[c] for c, _ in ASKED],
        "negative": [CHUNKS[(c + 1) % 4] for c, _ in ASKED],
        "candidate": [CHUNKS[c] for c, _ in ASKED],
    }
    table = {column: made[column] for column in columns}
    return Dataset.from_dict(table | ({"label": label} if label is not None else {}))


PAIRS = rows("anchor", "positive")
WITH_IDS = rows("anchor", "positive", label=[[c, c] for c, _ in ASKED])
TRIPLETS = rows("anchor", "positive", "negative")
SIGNS = rows("anchor", "candidate", label=[1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
BINARY = rows("anchor", "candidate", label=[1, 0, 1, 1, 0, 1, 0, 1])
SCORES = rows("anchor", "candidate", label=[0.1, 0.9, 0.4, 0.7, 0.2, 0.3, 0.8, 0.5])
CLASSES = rows("anchor", label=[q % 2 for _, q in ASKED])
TEACHER_SCORES = rows("anchor", "positive", "negative", label=[[0.9, 0.1 * i] for i in range(8)])
TEACHER_VECTORS = rows(
    "anchor", "positive", label=torch.randn(8, 32, generator=torch.Generator().manual_seed(0)).tolist()
)

SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
LOSSES = {
    "in-batch": (InBatchNegativesLoss, WITH_IDS),
    "in-batch with negatives": (InBatchNegativesLoss, TRIPLETS),
    "triplet": (TripletMarginLoss, TRIPLETS),
    "triplet hardest": (lambda m: TripletMarginLoss(m, negatives="hardest"), WITH_IDS),
    "cosine": (CosineEmbeddingLoss, SIGNS),
    "cosine hardest": (lambda m: CosineEmbeddingLoss(m, negatives="hardest"), WITH_IDS),
    "MultipleNegativesRankingLoss": (st.MultipleNegativesRankingLoss, TRIPLETS),
    "MultipleNegativesRankingLoss symmetric": (lambda m: st.MultipleNegativesRankingLoss(m, **SYMMETRIC), PAIRS),
    "TripletLoss": (st.TripletLoss, TRIPLETS),
    "ContrastiveLoss": (st.ContrastiveLoss, BINARY),
    "OnlineContrastiveLoss": (st.OnlineContrastiveLoss, BINARY),
    "CosineSimilarityLoss": (st.CosineSimilarityLoss, SCORES),
    "CoSENTLoss": (st.CoSENTLoss, SCORES),
    "AnglELoss": (st.AnglELoss, SCORES),
    "MarginMSELoss": (st.MarginMSELoss, TEACHER_SCORES),
    "DistillKLDivLoss": (st.DistillKLDivLoss, TEACHER_SCORES),
    "EmbedDistillLoss": (st.EmbedDistillLoss, TEACHER_VECTORS),
    "BatchAllTripletLoss": (st.BatchAllTripletLoss, CLASSES),
    "BatchHardTripletLoss": (st.BatchHardTripletLoss, CLASSES),
    "BatchHardSoftMarginTripletLoss": (st.BatchHardSoftMarginTripletLoss, CLASSES),
    "BatchSemiHardTripletLoss": (st.BatchSemiHardTripletLoss, CLASSES),
    "GlobalOrthogonalRegularizationLoss": (st.GlobalOrthogonalRegularizationLoss, PAIRS),
    "MatryoshkaLoss": (lambda m: st.MatryoshkaLoss(m, TripletMarginLoss(m), [32, 16, 8]), TRIPLETS),
    "MatryoshkaLoss in-batch": (lambda m: st.MatryoshkaLoss(m, InBatchNegativesLoss(m), [32, 8]), WITH_IDS),
}


@pytest.fixture
def step(tmp_path):
    """A loss and the gradients of all parameters, after the steps of one optimizer step."""

    def run(model, loss, dataset, *, steps=1, **options):
        model = copy.deepcopy(model).double()
        settings = {"use_cpu": True, "dropout": 0.0, "eval_strategy": "no", "load_best_model_at_end": False}
        settings |= {"per_device_train_batch_size": len(dataset) // steps, "gradient_accumulation_steps": steps}
        args = TuningArguments(str(tmp_path / "out"), **(settings | {"group_rows": False} | options))
        trainer = EmbeddingTrainer(model, args, train_dataset=dataset, loss=loss)
        trainer.current_gradient_accumulation_steps = steps
        trainer.args.batch_sampler = BatchSamplers.BATCH_SAMPLER  # texts repeat, whatever the loss
        model.train()
        batches = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
        with dropout_within(model, args.dropout):  # as in train()
            value = sum(float(trainer.training_step(model, dict(batch))) for batch in batches)
        return value, {n: p.grad for n, p in model.named_parameters()}, trainer

    return run


def assert_same(ours, stock):
    (loss, gradients, _), (expected_loss, expected, _) = ours, stock
    assert loss == pytest.approx(expected_loss, rel=1e-8, abs=1e-12)
    total = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    assert total > 1e-6, "a test without gradients shows nothing"
    for name, gradient in expected.items():
        if gradient is None:
            assert gradients[name] is None or not gradients[name].any(), name
        else:
            assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9 * total, name


@pytest.mark.parametrize("name", list(LOSSES))
def test_each_loss_and_its_gradients_are_the_stock_trainers(tiny_model, step, name):
    loss, dataset = LOSSES[name]
    ours, stock = (step(tiny_model, loss, dataset, encode_once=once) for once in (True, False))
    assert isinstance(ours[2].data_collator, UniqueTextCollator)
    assert_same(ours, stock)


@pytest.fixture
def many_passes(monkeypatch):
    """A processor on which hardly any tokens should go through a model at once."""
    monkeypatch.setattr("embedtune.training.encode_once.trainer.tokens_per_pass", lambda *_: 15)


@pytest.mark.usefixtures("many_passes")
@pytest.mark.parametrize("name", list(LOSSES))
def test_many_passes_through_the_model_change_neither_loss_nor_gradients(tiny_model, step, name):
    loss, dataset = LOSSES[name]
    ours = step(tiny_model, loss, dataset)
    parts = [key for key in next(iter(ours[2].get_train_dataloader())) if key.endswith("_input_ids")]
    assert len(parts) > 1
    assert_same(ours, step(tiny_model, loss, dataset, encode_once=False))


@pytest.mark.parametrize("name", list(LOSSES))
def test_caching_gradients_changes_neither_loss_nor_gradients(tiny_model, step, name):
    loss, dataset = LOSSES[name]
    cached = step(tiny_model, loss, dataset, mini_batch_num_tokens=15)
    assert_same(cached, step(tiny_model, loss, dataset, encode_once=False))
    parts = [key for key in next(iter(cached[2].get_train_dataloader())) if key.endswith("_input_ids")]
    assert len(parts) > 1


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    gte_qwen2_repository(folder / "gte")
    jina_hf_repository(folder / "jina")

    def load(name, **options):
        torch.manual_seed(0)
        model = load_family(folder / name, device="cpu", max_seq_length=160, **options)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:  # a new LoRA is zero, and has no gradient on one side
                nn.init.normal_(parameter, std=0.1)
        return model

    return load


MODELS = {
    "gte": {},
    "gte causal": {"attention": "causal"},
    "gte lora": {"lora": True},
    "jina adapters": {},
    "jina full": {"train": "full"},
    "jina lora": {"train": "lora"},
    "jina shared": {"mode": "shared"},
}


@pytest.mark.parametrize("caching", [None, 60])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_gets_the_stock_trainers_gradients_with_prompts_and_routes(models, step, name, caching):
    model = models(name.split()[0], **MODELS[name])
    for loss, dataset in (LOSSES["in-batch"], LOSSES["triplet"]):
        ours = step(model, loss, dataset, mini_batch_num_tokens=caching)
        assert ours[2].data_collator.packable, "its texts are packed"
        assert ours[2].args.prompts
        assert_same(ours, step(model, loss, dataset, encode_once=False))


@pytest.mark.usefixtures("many_passes")
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_gets_them_in_many_passes(models, step, name):
    model = models(name.split()[0], **MODELS[name])
    loss, dataset = LOSSES["triplet"]
    assert_same(step(model, loss, dataset), step(model, loss, dataset, encode_once=False))


@pytest.mark.parametrize("caching", [None, 60])
@pytest.mark.parametrize("name", ["gte", "gte lora", "jina adapters"])
def test_gradient_checkpointing_runs_the_layers_again_with_the_same_attention(models, step, name, caching):
    model = models(name.split()[0], **MODELS[name])
    loss, dataset = LOSSES["triplet"]
    plain = step(model, loss, dataset, encode_once=False)
    for _, part in transformers_of(model):
        part.model.activation_checkpointing_enable()
        assert any(getattr(layer, "gradient_checkpointing", False) for layer in part.model.modules())
    assert_same(step(model, loss, dataset, mini_batch_num_tokens=caching), plain)


@pytest.mark.parametrize("caching", [None, 30])
def test_accumulated_gradients_are_the_stock_trainers(tiny_model, step, caching):
    loss, dataset = LOSSES["triplet"]
    ours = step(tiny_model, loss, dataset, steps=4, mini_batch_num_tokens=caching)
    assert_same(ours, step(tiny_model, loss, dataset, steps=4, encode_once=False))


def test_equal_texts_under_different_prompts_are_different_texts(tiny_model, step):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    same = Dataset.from_dict({"anchor": ["open", "close", "open"], "positive": ["open", "wait", "open"]})
    ours, stock = (step(tiny_model, st.MultipleNegativesRankingLoss, same, encode_once=once) for once in (True, False))
    assert_same(ours, stock)
    batch = ours[2].data_collator([dict(row) for row in same])
    assert batch[TEXT_ROWS].tolist() == [[0, 2], [1, 3], [0, 2]]


def test_a_prompt_that_is_left_out_of_pooling_is_left_out(tiny_model, step):
    tiny_model.prompts = {"query": "ask: ", "document": "the old chunk: "}
    tiny_model[1].include_prompt = False
    assert_same(*(step(tiny_model, TripletMarginLoss, TRIPLETS, encode_once=once) for once in (True, False)))


@pytest.mark.parametrize("mode", ["cls", "max", "weightedmean", "lasttoken", "mean_sqrt_len_tokens"])
def test_every_kind_of_pooling_gives_the_same(tiny_model, step, mode):
    tiny_model[1].pooling_mode = mode
    assert_same(*(step(tiny_model, TripletMarginLoss, TRIPLETS, encode_once=once) for once in (True, False)))


# Models and losses for which it is not possible, or not wholly


def static_model():
    from conftest import build_tokenizer

    torch.manual_seed(0)
    return SentenceTransformer(modules=[StaticEmbedding(build_tokenizer()._tokenizer, embedding_dim=32)], device="cpu")


class Shift(nn.Module):
    """A module of one's own: each token sees the one before, across the border of packed texts too."""

    def forward(self, features):
        tokens = features["token_embeddings"]
        features["token_embeddings"] = tokens + 0.5 * tokens.roll(1, dims=1)
        return features


def with_eager_attention(model):
    model[0].model.set_attn_implementation("eager")
    return model


def with_a_module_between(model):
    return SentenceTransformer(modules=[model[0], Shift(), model[1]], device="cpu")


@pytest.mark.parametrize("made", [lambda _: static_model(), with_eager_attention])
@pytest.mark.parametrize("caching", [None, 30])
def test_models_whose_texts_cannot_be_packed_get_groups_of_similar_length(tiny_model, step, made, caching):
    model = made(tiny_model)
    loss, dataset = LOSSES["triplet"]
    ours = step(model, loss, dataset, mini_batch_num_tokens=caching)
    assert isinstance(ours[2].data_collator, UniqueTextCollator)
    assert not ours[2].data_collator.packable
    assert_same(ours, step(model, loss, dataset, encode_once=False))


def test_a_module_that_looks_across_texts_is_noticed(tiny_model, step):
    assert collator_of(step, tiny_model).packable
    assert not collator_of(step, with_a_module_between(tiny_model)).packable


def collator_of(step, model):
    return step(model, TripletMarginLoss, TRIPLETS)[2].data_collator


class Overridden(TripletMarginLoss):
    def forward(self, sentence_features, labels):
        return super().forward(sentence_features, labels) + sum(f["attention_mask"].sum() for f in sentence_features)


NOT_POSSIBLE = {
    "SoftmaxLoss": lambda m: st.SoftmaxLoss(m, sentence_embedding_dimension=32, num_labels=2),
    "MegaBatchMarginLoss": lambda m: st.MegaBatchMarginLoss(m, mini_batch_size=4),
    "Overridden": Overridden,
}


@pytest.mark.parametrize("name", list(NOT_POSSIBLE))
def test_a_loss_that_needs_more_than_embeddings_gets_the_stock_batches_and_that_is_said(tiny_model, step, name, caplog):
    dataset = {"SoftmaxLoss": BINARY, "MegaBatchMarginLoss": PAIRS}.get(name, TRIPLETS)
    with caplog.at_level(logging.WARNING):
        ours = step(tiny_model, lambda m: with_seed(NOT_POSSIBLE[name], m), dataset)
    assert caplog.text.count(f"{name} needs more than the embeddings of its columns") == 1
    assert_same(ours, step(tiny_model, lambda m: with_seed(NOT_POSSIBLE[name], m), dataset, encode_once=False))
    with pytest.raises(ValueError, match=rf"mini_batch_num_tokens=50 is not possible here, because {name} needs"):
        step(tiny_model, NOT_POSSIBLE[name], dataset, mini_batch_num_tokens=50)


def with_seed(loss, model):
    torch.manual_seed(0)
    return loss(model).double()


def test_which_losses_take_embeddings(tiny_model):
    assert all(takes_embeddings(loss(tiny_model)) for loss, _ in LOSSES.values())
    assert takes_embeddings({"a": TripletMarginLoss(tiny_model), "b": st.CoSENTLoss(tiny_model)})
    assert not takes_embeddings({"a": TripletMarginLoss(tiny_model), "b": NOT_POSSIBLE["Overridden"](tiny_model)})
    assert not takes_embeddings(st.MatryoshkaLoss(tiny_model, NOT_POSSIBLE["Overridden"](tiny_model), [32]))
    assert not takes_embeddings(st.AdaptiveLayerLoss(tiny_model, TripletMarginLoss(tiny_model)))
    assert not takes_embeddings(st.GISTEmbedLoss(tiny_model, tiny_model))
    assert not takes_embeddings(st.CachedGISTEmbedLoss(tiny_model, tiny_model))
    assert not takes_embeddings(st.CachedMultipleNegativesRankingLoss(tiny_model))


def test_a_loss_that_caches_gradients_itself_gets_the_stock_batches_and_a_better_way(tiny_model, step, caplog):
    with caplog.at_level(logging.WARNING):
        ours = step(tiny_model, st.CachedMultipleNegativesRankingLoss, PAIRS)
    assert "use MultipleNegativesRankingLoss with mini_batch_num_tokens instead" in caplog.text
    better = step(tiny_model, st.MultipleNegativesRankingLoss, PAIRS, mini_batch_num_tokens=15)
    assert_same(better, ours)
