"""Distillation: the teacher's own scores, kept on disk, and a loss that equals its formula."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
import torch
from scripted_llm import ScriptedLLM
from test_mining import entangled_data
from test_trainer import make_data

from embedtune.llms.protocol import Price
from embedtune.training.arguments import TuningArguments
from embedtune.training.distill import DistillationLoss, score_candidates
from embedtune.training.encode_once.collator import UniqueTextCollator
from embedtune.training.encode_once.embedded_loss import takes_embeddings
from embedtune.training.llm_teacher import LLMTeacher
from embedtune.training.losses import InBatchNegativesLoss
from embedtune.training.trainer import EmbeddingTrainer

KNOWN = [[0.0, 1.0], [2.0, 0.0], [3.0, 3.0]]  # the positive of each row, and another known answer


@pytest.fixture(scope="module")
def data():
    return make_data()


def length(question, texts):
    """A teacher that anybody can check."""
    return [len(text) / 10 + len(question) for text in texts]


def candidates(row):
    return [row[name] for name in row if name not in ("anchor", "label")]


def by_hand(vectors, scores, *, scale, temperature, weight):
    """The loss in numpy, of questions and columns of candidates."""
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in vectors]
    logits = scale * np.stack([(unit[0] * part).sum(axis=1) for part in unit[1:]], axis=1)
    student = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    teacher = np.exp(scores / temperature) / np.exp(scores / temperature).sum(axis=1, keepdims=True)
    divergence = (teacher * (np.log(teacher) - student)).sum(axis=1).mean()
    inside = np.exp(scale * unit[0] @ unit[1].T)
    for row, known in enumerate(KNOWN):
        for column, other in enumerate(KNOWN):
            if column != row and other[0] in known:
                inside[row, column] = 0
    return divergence - weight * np.log(np.diag(inside) / inside.sum(axis=1)).mean()


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_loss_is_the_divergence_from_the_teacher_and_the_in_batch_loss(tiny_model, weight):
    rng = np.random.default_rng(0)
    vectors, scores = rng.normal(size=(5, 3, 6)), rng.normal(size=(3, 4)) * 3
    loss = DistillationLoss(tiny_model, scale=7.0, temperature=1.5, in_batch_weight=weight)
    labels = torch.from_numpy(np.concatenate([np.array(KNOWN), scores], axis=1))
    found = loss.compute_loss_from_embeddings([torch.from_numpy(part) for part in vectors], labels)
    assert found.item() == pytest.approx(by_hand(vectors, scores, scale=7, temperature=1.5, weight=weight), rel=1e-12)


def test_a_student_that_agrees_with_its_teacher_has_no_divergence(tiny_model):
    vectors = torch.randn(4, 3, 6, dtype=torch.float64)
    loss = DistillationLoss(tiny_model, in_batch_weight=0)
    cosines = torch.stack([torch.cosine_similarity(vectors[0], part) for part in vectors[1:]], dim=1)
    labels = torch.cat([torch.tensor(KNOWN), 20 * cosines + 3], dim=1)
    assert loss.compute_loss_from_embeddings(list(vectors), labels).item() == pytest.approx(0, abs=1e-12)


def test_the_scores_are_the_teacher_s_of_the_candidates_in_their_order(tiny_model, cross_encoder, data, tmp_path):
    for teacher in (length, cross_encoder, tiny_model):
        rows = score_candidates(teacher, data, model=tiny_model, path=tmp_path, num_candidates=4)
        for row in rows.select(range(5)):
            texts = candidates(row)
            if teacher is length:
                expected = length(row["anchor"], texts)
            elif teacher is cross_encoder:
                pairs = [(row["anchor"], text) for text in texts]
                expected = cross_encoder.predict(pairs, activation_fn=torch.nn.Identity())
            else:
                expected = (
                    20 * tiny_model.similarity(tiny_model.encode_query([row["anchor"]]), tiny_model.encode(texts))[0]
                )
            np.testing.assert_allclose(row["label"][-4:], expected, atol=1e-4)
            assert len(texts) == 4


def test_known_answers_are_no_candidates_and_their_ids_are_in_the_label(tiny_model, tmp_path):
    data = entangled_data()
    texts = data.corpus_texts
    rows = score_candidates(length, data, model=tiny_model, path=tmp_path, num_candidates=3)
    others = {row["anchor"]: set(candidates(row)[1:]) for row in rows}
    assert others["how to press"] <= {texts["c#0"], texts["c#1"], texts["f#0"]}
    assert not others["how to clean"] & {texts["c#0"], texts["c#1"]}
    plain = data.pairs("train", with_ids=True)
    for row, label in zip(rows, plain["label"][:], strict=True):
        assert len(row["label"]) == len(label) + 3
    same = [[a == b for b in row["label"][:-3] for a in other["label"][:-3]] for row in rows for other in rows]
    labels = plain["label"][:]
    assert same == [[a == b for b in row for a in other] for row in labels for other in labels]


def test_an_interrupted_call_goes_on_and_asks_nothing_twice(tiny_model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("embedtune.training.distill._QUESTIONS_PER_BLOCK", 4)
    asked = []

    class Stopping:
        fingerprint, stop_at = "one", 10

        def __call__(self, question, texts):
            if len(asked) == self.stop_at:
                raise KeyboardInterrupt
            asked.append(question)
            return length(question, texts)

    teacher = Stopping()
    with pytest.raises(KeyboardInterrupt):
        score_candidates(teacher, data, model=tiny_model, path=tmp_path / "a", num_candidates=3)
    teacher.stop_at = None
    rows = score_candidates(teacher, data, model=tiny_model, path=tmp_path / "a", num_candidates=3)
    assert len(asked) == len(set(asked)) + 2, (
        "the block of four that was cut off after two is asked again, and no other"
    )
    again = score_candidates(teacher, data, model=tiny_model, path=tmp_path / "a", num_candidates=3)
    assert len(asked) == len(rows) + 2
    whole = score_candidates(length, data, model=tiny_model, path=tmp_path / "b", num_candidates=3)
    assert rows.to_dict() == again.to_dict() == whole.to_dict()


def test_two_teachers_in_one_folder_keep_their_own_scores(tiny_model, data, tmp_path):
    def other(question, texts):
        return [-score for score in length(question, texts)]

    first = score_candidates(length, data, model=tiny_model, path=tmp_path, num_candidates=3)
    second = score_candidates(other, data, model=tiny_model, path=tmp_path, num_candidates=3)
    assert [row[-3:] for row in first["label"][:]] == [[-score for score in row[-3:]] for row in second["label"][:]]
    assert (
        score_candidates(length, data, model=tiny_model, path=tmp_path, num_candidates=3).to_dict() == first.to_dict()
    )


def graded(text):
    """A language model that answers as an expert would: by the length of each passage."""
    passages = re.findall(r'<passage number="(\d+)">\n(.*?)\n</passage>', text, re.DOTALL)
    return {"grades": [{"number": int(number), "grade": len(said) % 4} for number, said in passages]}


def test_a_language_model_grades_the_candidates_once_and_in_their_own_order(tiny_model, data, tmp_path):
    llm = ScriptedLLM(graded)
    teacher = LLMTeacher(llm, output_dir=tmp_path / "ledger")
    rows = score_candidates(teacher, data, model=tiny_model, path=tmp_path / "a", num_candidates=3)
    for row in rows:
        assert row["label"][-3:] == [float(len(text) % 4) for text in candidates(row)]
    assert len(llm.requests) == len(rows)
    places = [text.index(f">\n{row['positive']}\n<") for row in rows for text in [one["text"] for one in llm.requests if f"<question>\n{row['anchor']}\n" in one["text"]]]  # fmt: skip
    assert min(places) < 30 < max(places), "the relevant chunk is not always the first"
    score_candidates(teacher, data, model=tiny_model, path=tmp_path / "a", num_candidates=3)
    again = score_candidates(teacher, data, model=tiny_model, path=tmp_path / "b", num_candidates=3)
    assert len(llm.requests) == len(rows), "the scores are there, and where they are not, the replies are"
    assert again.to_dict() == rows.to_dict()


def test_questions_that_a_language_model_did_not_grade_are_left_out_and_counted(tiny_model, data, tmp_path, caplog):
    def some(text):
        said = graded(text)
        return {"grades": said["grades"][1:]} if len(text) % 2 else said

    teacher = LLMTeacher(ScriptedLLM(some), output_dir=tmp_path / "ledger")
    rows = score_candidates(teacher, data, model=tiny_model, path=tmp_path / "a", num_candidates=3)
    num_asked = len(score_candidates(length, data, model=tiny_model, path=tmp_path / "a", num_candidates=3))
    assert 0 < len(rows) < num_asked
    assert f"no usable grades for {num_asked - len(rows)} of {num_asked} questions: " in caplog.text
    dear = ScriptedLLM(graded)
    dear.price = Price(1_000_000, 1_000_000)
    teacher = LLMTeacher(dear, output_dir=tmp_path / "dear", budget_usd=0.01)
    with pytest.raises(ValueError, match=r"scored none of .* raise budget_usd"):
        score_candidates(teacher, data, model=tiny_model, path=tmp_path / "b", num_candidates=3)
    assert not dear.requests


def test_a_damaged_file_and_a_teacher_that_returns_other_than_scores_are_errors(tiny_model, data, tmp_path):
    score_candidates(length, data, model=tiny_model, path=tmp_path, num_candidates=2)
    path = next(tmp_path.glob("scores-*.json"))
    assert json.loads(path.read_text())
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"is damaged .* Delete it"):
        score_candidates(length, data, model=tiny_model, path=tmp_path, num_candidates=2)
    for wrong in ([1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="2 finite scores are needed"):
            score_candidates(lambda *_, w=wrong: w, data, model=tiny_model, path=tmp_path / "b", num_candidates=2)
    with pytest.raises(TypeError, match="teacher is a str"):
        score_candidates("minilm", data, model=tiny_model, path=tmp_path)
    with pytest.raises(ValueError, match="num_candidates"):
        score_candidates(length, data, model=tiny_model, path=tmp_path, num_candidates=1)


def test_texts_are_encoded_once_and_training_brings_the_student_to_its_teacher(
    tiny_model, cross_encoder, data, tmp_path
):
    rows = score_candidates(cross_encoder, data, model=tiny_model, path=tmp_path / "teacher", num_candidates=4)
    losses = {}
    for encode_once in (True, False):
        args = TuningArguments(
            str(tmp_path / f"out-{encode_once}"), num_train_epochs=4, per_device_train_batch_size=8, learning_rate=3e-3,
            frozen_layers=0, encode_once=encode_once, group_rows=True, logging_steps=1, eval_strategy="no", save_strategy="no",
            load_best_model_at_end=False, disable_tqdm=True, use_cpu=True, check_saved=False,
        )  # fmt: skip
        trainer = EmbeddingTrainer(copy.deepcopy(tiny_model), args, train_dataset=rows, loss=DistillationLoss)
        assert isinstance(trainer.data_collator, UniqueTextCollator) == encode_once
        assert takes_embeddings(trainer.loss)
        trainer.train()
        losses[encode_once] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    np.testing.assert_allclose(losses[True][:3], losses[False][:3], rtol=1e-3)
    assert np.mean(losses[True][-3:]) < np.mean(losses[True][:3])


def test_rows_without_scores_are_refused(tiny_model, data):
    loss = DistillationLoss(tiny_model)
    vectors = [torch.randn(2, 4) for _ in range(3)]
    for columns, labels in ((vectors[:2], torch.ones(2, 3)), (vectors, None), (vectors, torch.ones(2, 2))):
        with pytest.raises(ValueError, match="score_candidates"):
            loss.compute_loss_from_embeddings(columns, labels)
    assert isinstance(loss.in_batch, InBatchNegativesLoss)
    assert loss.get_config_dict() == {"scale": 20.0, "temperature": 1.0, "in_batch_weight": 1.0}
