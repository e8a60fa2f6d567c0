"""train_reranker: a cross-encoder that learns the dataset's questions, and no known answer as a negative."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from test_mining import entangled_data
from test_trainer import THINGS, make_data

import embedtune as et
from embedtune.dataset import build_dataset
from embedtune.retrieval.fingerprint import reranker_fingerprint
from embedtune.retrieval.retriever import Retriever
from embedtune.training.reranker import labelled_rows, train_reranker
from embedtune.types import Chunk, Question


def arguments(folder, **options):
    settings = {"learning_rate": 1e-2, "num_train_epochs": 8, "per_device_train_batch_size": 16, "report_to": "none"}
    return CrossEncoderTrainingArguments(
        str(folder), save_strategy="no", disable_tqdm=True, use_cpu=True, **(settings | options)
    )


def one_sided_data():
    """All questions are about red things; a model of one layer can learn that from the chunks alone."""
    texts = {f"{colour} {thing}": f"check the {colour} {thing}" for thing in THINGS[:8] for colour in ("red", "blue")}
    chunks = [Chunk(f"{name}#0", name, text, 0, len(text)) for name, text in texts.items()]
    red = [chunk for chunk in chunks if "red" in chunk.text]
    questions = [Question(chunk.id, f"where is the {chunk.document_id[4:]}", (chunk.id,)) for chunk in red]
    return build_dataset(chunks, questions, test_size=0, dev_size=0)


def test_a_trained_reranker_ranks_what_is_asked_about_first(tiny_model, tiny_model_folder, tmp_path):
    data = one_sided_data()
    retriever = Retriever.from_dataset(tiny_model, data, word_weight=0)
    args = arguments(tmp_path / "checkpoints", num_train_epochs=40, learning_rate=5e-3)
    trained = train_reranker(tiny_model_folder, data, output_dir=tmp_path, retriever=retriever, args=args)
    reranked = retriever.with_reranker(trained)
    for question in data.query_texts.values():
        assert ["red" in hit.text for hit in reranked.search(question, k=16)] == [True] * 8 + [False] * 8
    evaluator = et.TopKEvaluator(data, "train", k=(1, 8))
    rows = [evaluator.evaluate(one, name=name) for name, one in (("plain", retriever), ("reranked", reranked))]
    assert rows[1].metrics["accuracy@8"] == 1
    assert et.compare(*rows).after.name == "reranked"


def test_a_trained_reranker_is_saved_as_a_plain_cross_encoder_and_its_model_stays_as_it_was(
    tiny_model, cross_encoder, tmp_path
):
    before = reranker_fingerprint(cross_encoder)
    args = arguments(tmp_path / "checkpoints", max_steps=2)
    trained = train_reranker(cross_encoder, one_sided_data(), output_dir=tmp_path, retriever=tiny_model, args=args)
    assert reranker_fingerprint(cross_encoder) == before != reranker_fingerprint(trained)
    saved = CrossEncoder(str(tmp_path / "reranker"), device="cpu")
    pairs = [("how to open the pump", f"check the {thing}") for thing in THINGS]
    np.testing.assert_array_equal(saved.predict(pairs), trained.predict(pairs))
    assert not (tmp_path / "reranker" / "README.md").exists()


def test_an_interrupted_training_goes_on_where_it_stopped(tiny_model, cross_encoder, tmp_path, monkeypatch, caplog):
    import signal

    data, args = one_sided_data(), arguments(tmp_path / "checkpoints", num_train_epochs=4)
    whole = train_reranker(cross_encoder, data, output_dir=tmp_path / "whole", retriever=tiny_model, args=args)
    step = CrossEncoderTrainer.training_step

    def interrupted(self, *inputs):
        if self.state.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, *inputs)

    with monkeypatch.context() as patch:
        patch.setattr(CrossEncoderTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_reranker(cross_encoder, data, output_dir=tmp_path, retriever=tiny_model, args=args)
    trained = train_reranker(cross_encoder, data, output_dir=tmp_path, retriever=tiny_model, args=args)
    assert "goes on at" in caplog.text
    assert reranker_fingerprint(trained) == reranker_fingerprint(whole)
    assert not list((tmp_path / "checkpoints").glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_ends_the_training_at_its_step(tiny_model, cross_encoder, tmp_path):
    args = arguments(tmp_path / "checkpoints", learning_rate=1e38, num_train_epochs=4, max_grad_norm=0.0)
    with pytest.raises(FloatingPointError, match=r"the loss of the reranker is (nan|inf)|weights of the reranker NaN"):
        train_reranker(cross_encoder, one_sided_data(), output_dir=tmp_path, retriever=tiny_model, args=args)
    assert not (tmp_path / "reranker").exists()


def test_no_known_answer_is_a_negative_and_relevant_chunks_have_the_label_one(tiny_model):
    data = entangled_data()
    texts = data.corpus_texts
    rows = labelled_rows(tiny_model, data, num_negatives=2)
    assert set(rows["label"][:]) == {0.0, 1.0}
    right = {(row["anchor"], row["candidate"]) for row in rows if row["label"] == 1}
    assert right == {("how to press", texts["a#0"]), ("How to  press", texts["e#0"]), ("how to clean", texts["c#0"])}
    wrong = {(row["anchor"], row["candidate"]) for row in rows if row["label"] == 0}
    known = {"how to press": "abe", "How to  press": "abe", "how to clean": "c"}
    for question, text in wrong:
        assert not {name[0] for name in texts if texts[name] == text} & set(known[question])
    assert sum(label == 0 for label in rows["label"][:]) == 2 * len(right)


def test_a_model_is_loaded_by_its_folder_with_one_score_for_each_pair(tiny_model, tiny_model_folder, tmp_path):
    data = make_data(test_size=0, dev_size=0)
    args = arguments(tmp_path / "checkpoints", num_train_epochs=1, max_steps=1)
    trained = train_reranker(tiny_model_folder, data, output_dir=tmp_path, retriever=tiny_model, args=args)
    assert trained.num_labels == 1
    assert not trained.training


def test_a_model_of_several_scores_is_refused(tiny_model, cross_encoder, tmp_path):
    cross_encoder.model.config.num_labels = 2
    with pytest.raises(ValueError, match="returns 2 scores"):
        train_reranker(cross_encoder, make_data(), output_dir=tmp_path, retriever=tiny_model)
    with pytest.raises(TypeError, match="reranker is a SentenceTransformer"):
        train_reranker(tiny_model, make_data(), output_dir=tmp_path, retriever=tiny_model)
    assert not (tmp_path / "reranker").exists()
