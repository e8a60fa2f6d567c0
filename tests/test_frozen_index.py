"""FrozenIndexLoss and FrozenIndexTrainer: the softmax over the corpus, and training that leaves every document alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_trainer import make_data
from torch.nn import functional

from embedtune.dataset import build_dataset
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.models.query_side import freeze_index
from embedtune.training.arguments import TuningArguments
from embedtune.training.frozen_index import FrozenIndex, FrozenIndexLoss, FrozenIndexTrainer
from embedtune.types import Chunk, Question


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        settings = {"num_train_epochs": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "dropout": 0.0}
        return TuningArguments(str(tmp_path / "out"), disable_tqdm=True, use_cpu=True, **(settings | options))

    return make


def related_data():
    """Chunk b is the near-duplicate of a, and d overlaps c; nothing is held out."""
    first = "press the red pump and wait for the lamp to go on"
    third = "open the old door and clean the filter in the engine"
    chunks = [
        Chunk("a#0", "a", first, 0, len(first)),
        Chunk("b#0", "b", first + " now", 0, len(first) + 4),
        Chunk("c#0", "c", third, 0, len(third)),
        Chunk("c#1", "c", third[20:] + " then dry it", 20, len(third) + 12),
        Chunk("e#0", "e", "the crane is on the ship in the harbour", 0, 39),
    ]
    questions = [
        Question("1", "how to press", ("a#0",)),
        Question("2", "how to clean", ("c#0",)),
        Question("3", "where is it", ("e#0",)),
    ]
    return build_dataset(chunks, questions, test_size=0, dev_size=0)


def test_the_loss_is_a_softmax_over_the_corpus_without_what_else_answers_the_question(tiny_model):
    data = related_data()
    loss = FrozenIndexLoss(freeze_index(tiny_model, query="linear"), data, scale=10)
    assert loss.chunk_ids == ["a#0", "b#0", "c#0", "c#1", "e#0"]
    torch.manual_seed(0)
    questions = torch.randn(3, 32)
    labels = torch.tensor(data.pairs("train", with_ids=True)["label"][:])
    texts = [data.corpus_texts[chunk] for chunk in loss.chunk_ids]
    scores = 10 * functional.cosine_similarity(
        questions[:, None], torch.from_numpy(tiny_model.encode_document(texts))[None], dim=2
    )
    weights = scores.exp()
    expected = [
        -torch.log((weights[0, 0] + weights[0, 1]) / weights[0].sum()),  # the near-duplicate is as right
        -torch.log(weights[1, 2] / (weights[1].sum() - weights[1, 3])),  # the overlapping neighbour is left out
        -torch.log(weights[2, 4] / weights[2].sum()),
    ]
    value = loss.compute_loss_from_embeddings([questions], labels)
    torch.testing.assert_close(value, torch.stack(expected).mean())


def test_documents_held_out_for_other_splits_are_not_negatives(tiny_model, data):
    held_out = {c for split in ("dev", "test") for cs in data.relevant(split).values() for c in cs}
    loss = FrozenIndexLoss(freeze_index(tiny_model, query="linear"), data)
    assert held_out
    assert set(loss.chunk_ids) == set(data.corpus_texts) - held_out


def test_a_large_corpus_is_sampled_and_always_holds_the_relevant_chunks(tiny_model):
    texts = [f"the {i} lamp is {i * 7} old" for i in range(40)]
    chunks = [Chunk(f"{i}#0", str(i), text, 0, len(text)) for i, text in enumerate(texts)]
    data = build_dataset(chunks, [Question("q", "how old", ("33#0",))], test_size=0, dev_size=0)
    model = freeze_index(tiny_model, query="linear")
    loss = FrozenIndexLoss(model, data, max_chunks=10, seed=5)
    assert len(loss.chunk_ids) == 10
    assert "33#0" in loss.chunk_ids
    assert loss.chunk_ids == FrozenIndexLoss(model, data, max_chunks=10, seed=5).chunk_ids
    assert loss.chunk_ids != FrozenIndexLoss(model, data, max_chunks=10, seed=6).chunk_ids
    with pytest.raises(ValueError, match="max_chunks=0 must be at least 1"):
        FrozenIndexLoss(model, data, max_chunks=0)


def test_vectors_are_compared_in_the_dimensions_that_search_uses(tiny_model, data):
    tiny_model.truncate_dim = 16
    loss = FrozenIndexLoss(freeze_index(tiny_model, query="linear"), data)
    assert loss.vectors.shape[1] == 16
    labels = torch.tensor([[0]])
    full = torch.randn(1, 32)
    torch.testing.assert_close(
        loss.compute_loss_from_embeddings([full], labels), loss.compute_loss_from_embeddings([full[:, :16]], labels)
    )


@pytest.mark.parametrize("query", ["lora", "linear", "route"])
def test_training_lowers_the_loss_and_moves_no_bit_of_a_document_vector(tiny_model, data, arguments, query, tmp_path):
    texts = list(data.corpus_texts.values())
    before = tiny_model.encode_document(texts)
    model = freeze_index(tiny_model, query=query)
    trainer = FrozenIndexTrainer(model, arguments(logging_steps=1, load_best_model_at_end=False), data=data)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1
    assert abs(model.encode_query(texts) - before).max() > 1e-3
    np.testing.assert_array_equal(model.encode_document(texts), before)

    trainer.save_model(str(tmp_path / "saved"))
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(plain.encode_document(texts), before)
    np.testing.assert_allclose(plain.encode_query(texts), model.encode_query(texts), atol=1e-5)


def test_the_checkpoint_that_is_best_on_dev_comes_back(tiny_model, data, arguments):
    model = freeze_index(tiny_model, query="linear")
    trainer = FrozenIndexTrainer(model, arguments(num_train_epochs=3), data=data)
    trainer.train()
    assert trainer.args.metric_for_best_model == "eval_dev_ndcg@10"
    dev = [log["eval_dev_ndcg@10"] for log in trainer.state.log_history if "eval_dev_ndcg@10" in log]
    now = TopKEvaluator(data, "dev").evaluate(model).metrics["ndcg@10"]
    assert now == pytest.approx(max(dev[1:]))


def test_each_document_is_encoded_once_in_a_whole_run(tiny_model, data, arguments, monkeypatch):
    model = freeze_index(tiny_model, query="linear")
    encoded = []
    encode = model.encode_document
    monkeypatch.setattr(
        model, "encode_document", lambda texts, **options: encoded.extend(texts) or encode(texts, **options)
    )
    FrozenIndexTrainer(model, arguments(num_train_epochs=2), data=data).train()
    chunks = set(data.corpus_texts.values())
    assert sorted(text for text in encoded if text in chunks) == sorted(chunks)


def test_the_queries_prompt_is_trained_with(tiny_model, data, arguments):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    trainer = FrozenIndexTrainer(freeze_index(tiny_model, query="linear"), arguments(), data=data)
    assert trainer.args.prompts == {"anchor": "ask: "}
    assert trainer.args.router_mapping == {"anchor": "query"}


def test_the_index_gives_the_vectors_that_the_model_gives(tiny_model):
    model = freeze_index(tiny_model, query="linear")
    index = FrozenIndex(model)
    texts = ["open the door", "press the pump", "open the door"]
    np.testing.assert_allclose(index.encode_documents(texts), model.encode_document(texts), atol=1e-6)
    np.testing.assert_array_equal(index.encode_documents(texts[:1]), index.encode_documents(texts)[:1])


def test_what_cannot_work_is_refused(tiny_model, data):
    with pytest.raises(ValueError, match=r"Pass et.freeze_index\(model\)"):
        FrozenIndexLoss(tiny_model, data)
    model = freeze_index(tiny_model, query="linear")
    with pytest.raises(ValueError, match="scale=0 must be a finite number above 0"):
        FrozenIndexLoss(model, data, scale=0)
    with pytest.raises(ValueError, match="needs ids"):
        FrozenIndexLoss(model, data).compute_loss_from_embeddings([torch.zeros(1, 32)], None)
