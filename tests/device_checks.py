"""On another device everything is computed there, gives what the CPU gives, and does not wait without need.

Not collected by itself: ``test_device.py`` runs it, in a process of its own.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import test_improve
import torch
from accelerate.state import AcceleratorState
from model_repositories import gte_qwen2_repository, jina_hf_repository, load_family
from pretend_device import NAME, PretendDevice, dtypes, waits
from sentence_transformers import SentenceTransformer
from test_encode_once import LOSSES, MODELS
from test_trainer import make_data
from torch import nn
from transformers import TrainerCallback

import embedtune as et
from embedtune.models.lora import transformers_of
from embedtune.models.packing.pack import encode_packed
from embedtune.models.query_side import freeze_index
from embedtune.retrieval.search import top_k
from embedtune.training.dropout import dropout_within
from embedtune.training.frozen_index import FrozenIndexTrainer
from embedtune.training.losses import RetrievalLoss
from embedtune.training.negatives.mining import mine_hard_negatives
from embedtune.training.trainer import EmbeddingTrainer

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def device():
    with PretendDevice():
        yield


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def on(tmp_path, monkeypatch):
    """Arguments that train on one device or the other, and a copy of a model there."""

    def make(device, model, **options):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
        if device != "cpu":
            monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", f"{device}:0")
        settings = {"dropout": 0.0, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        settings |= {"disable_tqdm": True, "use_cpu": device == "cpu", "per_device_train_batch_size": 8}
        args = et.TuningArguments(str(tmp_path / f"out-{device}"), **(settings | options))
        assert args.device.type == device
        return args, copy.deepcopy(model).to(device)

    return make


def on_both(train):
    return train(NAME), train("cpu")


def assert_close(ours, expected, *, rtol=1e-9):
    total = sum(value.norm() for value in expected.values() if value is not None)
    for name, value in expected.items():
        if value is not None:
            assert (ours[name].cpu() - value).norm() <= rtol * value.norm() + 1e-12 * total, name


def gradients_of(on, model, loss, dataset, **options):
    def step(device):
        args, there = on(device, model, **({"per_device_train_batch_size": len(dataset)} | options))
        trainer = EmbeddingTrainer(there.double(), args, train_dataset=dataset, loss=loss)
        trainer.current_gradient_accumulation_steps = 1
        assert trainer.data_collator.packable
        there.train()
        batch = next(iter(trainer.get_train_dataloader()))
        batch = trainer._prepare_inputs(batch)
        waits.clear()
        with dropout_within(there, args.dropout):  # as in train()
            loss_value = trainer.training_step(there, batch)
        assert loss_value.device.type == device
        counted = dict(waits)
        return {n: p.grad for n, p in there.named_parameters()} | {"loss": loss_value}, counted

    return on_both(step)


@pytest.mark.parametrize("caching", [None, 15])
@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_has_the_same_gradients_there(on, tiny_model, name, caching):
    loss, dataset = LOSSES[name]
    (ours, counted), (expected, _) = gradients_of(on, tiny_model, loss, dataset, mini_batch_num_tokens=caching)
    assert_close(ours, expected)
    if isinstance(loss(tiny_model), RetrievalLoss) and "hardest" not in name:
        assert not counted


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    gte_qwen2_repository(folder / "gte")
    jina_hf_repository(folder / "jina")
    return folder


def load(folder, name):
    torch.manual_seed(0)
    model = load_family(folder / name.split()[0], device="cpu", max_seq_length=160, **MODELS[name])
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_has_the_same_gradients_there(on, folders, name, checkpointing):
    loss, dataset = LOSSES["triplet"]
    model = load(folders, name)
    if checkpointing:
        for _, part in transformers_of(model):
            part.model.activation_checkpointing_enable()
        assert any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules())
    (ours, counted), (expected, _) = gradients_of(on, model, loss, dataset)
    assert_close(ours, expected)
    if name != "gte causal":  # transformers looks for packed texts in the positions
        assert not counted


@pytest.mark.parametrize("loss", ["in-batch", "triplet", "cosine"])
def test_training_with_evaluation_checkpoints_and_resuming(on, tiny_model, data, loss):
    def train(device):
        options: dict = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        # All layers: with half of them frozen, the last bias under "triplet" (which a shift of all vectors does not change) is
        # nothing but rounding.
        options["frozen_layers"] = 0.0
        args, model = on(device, tiny_model, num_train_epochs=3, loss=loss, learning_rate=1e-3, **options)
        trainer = EmbeddingTrainer(model.double(), args, data=data)
        trainer.train()
        straight = {n: p.detach().clone() for n, p in model.named_parameters()}
        checkpoint = min(Path(args.output_dir).glob("checkpoint-*"))
        resumed = EmbeddingTrainer(copy.deepcopy(model), args, data=data)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        for name, parameter in resumed.model.named_parameters():
            assert torch.equal(parameter, straight[name]), name
        return straight

    ours, expected = on_both(train)
    assert_close(ours, expected, rtol=1e-6)


def test_only_the_guard_waits_in_the_loop(on, tiny_model, data):
    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            counted.append(dict(waits))
            waits.clear()

    counted = []
    args, model = on(NAME, tiny_model, max_steps=6, logging_steps=100)
    EmbeddingTrainer(model, args, data=data, callbacks=[Watch()]).train()
    assert counted[1:] == [{"tolist": 1}] * 5, "FiniteGuard, which on CUDA reads a step later"


def test_nothing_needs_float64_which_apples_gpus_do_not_have(on, tiny_model, data):
    dtypes.clear()
    args, model = on(NAME, tiny_model, num_train_epochs=1, eval_strategy="epoch")
    EmbeddingTrainer(model, args, data=data).train()
    mine_hard_negatives(model, data)
    FrozenIndexTrainer(freeze_index(model, query="linear"), args, data=data).train()
    et.Retriever.from_chunks(model, [et.Chunk("a", "a", "the pump", 0, 8)]).search("where is it", k=1)
    assert torch.float32 in dtypes
    assert torch.float64 not in dtypes


def test_texts_are_tokenised_while_the_device_encodes(on, tiny_model, monkeypatch):
    def preprocess(*args, **kwargs):
        seen.append(("tokenised", waits["to the CPU"]))
        return tokenise(*args, **kwargs)

    _, model = on(NAME, tiny_model)
    tokenise, seen = model.preprocess, []
    monkeypatch.setattr(model, "preprocess", preprocess)
    texts = [f"{word} the pump" for word in ("open", "close", "check", "replace", "press")]
    waits.clear()
    vectors = encode_packed(model, texts, prompt=None, task=None, batch_size=2)
    assert seen == [("tokenised", 0), ("tokenised", 0), ("tokenised", 1)]
    np.testing.assert_allclose(vectors, tiny_model.encode(texts), atol=1e-6)


def test_mining_finds_the_same_negatives(on, tiny_model, data):
    def mine(device):
        _, model = on(device, tiny_model)
        return mine_hard_negatives(model, data, num_negatives=2)

    ours, expected = on_both(mine)
    assert ours[:] == expected[:]


def test_a_frozen_index_is_trained_on_there(on, tiny_model, data):
    def train(device):
        args, model = on(device, tiny_model, num_train_epochs=2)
        model = freeze_index(model, query="linear")
        FrozenIndexTrainer(model, args, data=data).train()
        return dict(model.named_parameters())

    ours, expected = on_both(train)
    assert_close(ours, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"similarity": "dot"}, {"similarity": "euclidean"}, {"similarity": "manhattan"}],
)
def test_search_finds_the_same(options):
    random = np.random.default_rng(0)
    queries, corpus = (random.standard_normal((size, 16)).astype(np.float32) for size in (20, 500))
    corpus[400] = corpus[3]
    ours = top_k(queries, corpus, 10, device=NAME, block_size=64, **options)
    expected = top_k(queries, corpus, 10, block_size=64, **options)
    np.testing.assert_array_equal(ours[1], expected[1])
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "gte lora", "jina adapters"])
def test_evaluation_and_a_retriever_encode_there(on, tiny_model, folders, data, name):
    base = tiny_model if name == "tiny" else load(folders, name)

    def evaluate(device):
        _, model = on(device, base)
        retriever = et.Retriever.from_chunks(
            model, [et.Chunk(i, i, t, 0, len(t)) for i, t in data.corpus_texts.items()]
        )
        found = retriever.search("where is the pump", k=3)
        return et.TopKEvaluator(data, "dev", k=(1, 3)).evaluate(model).metrics, [hit.id for hit in found]

    ours, expected = on_both(evaluate)
    assert ours == expected


@pytest.mark.parametrize("name", ["tiny", "gte causal", "gte lora", "jina adapters"])
def test_a_model_is_checked_saved_and_loaded(on, tiny_model, folders, tmp_path, name):
    model = tiny_model if name == "tiny" else load(folders, name)
    _, there = on(NAME, model)
    report = et.check_model(there)
    assert report.ok, str(report)
    there.save_pretrained(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    texts = ["where is the pump", "close the valve " * 5]
    np.testing.assert_allclose(saved.encode_document(texts), model.encode_document(texts), atol=1e-5)


def test_merging_and_forgetting(on, tiny_model, data):
    def merge(device):
        _, base = on(device, tiny_model)
        tuned = copy.deepcopy(base)
        for parameter in tuned.parameters():
            parameter.data.add_(0.01)
        merged = et.merge_with_base(tuned, base, data=data)
        return dict(merged.model.named_parameters()), et.check_forgetting(base, tuned)

    ours, expected = on_both(merge)
    assert_close(ours[0], expected[0], rtol=1e-6)
    assert repr(ours[1]) == repr(expected[1])


def test_losses_are_compared_and_more_data_is_tried(on, tiny_model, data):
    def compare(device):
        args, model = on(device, tiny_model, num_train_epochs=1, learning_rate=1e-3)
        comparison = et.compare_losses(model, data, args=args, k=(1, 3))
        curve = et.learning_curve(model, data, args=args, k=(1, 3))
        runs = [comparison.base, *(run.evaluations["dev"] for run in comparison.runs)]
        return [run.metrics for run in runs], comparison.chosen, curve.sentences

    ours, expected = on_both(compare)
    assert ours == expected


def test_the_loop(on, tiny_model, tmp_path):
    def round_of(device):
        log = et.FeedbackLog(tmp_path / f"{device}.sqlite")
        test_improve.fill(log)
        args, model = on(device, tiny_model, num_train_epochs=4, learning_rate=3e-3)
        made = test_improve.improve(model, log, tmp_path / device, args)
        log.close()
        return made

    ours, expected = on_both(round_of)
    assert ours.status == expected.status
