from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import embedtune as et
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.fingerprint import reranker_fingerprint
from embedtune.training import fit as fit_module
from embedtune.training import reranker as reranker_module
from embedtune.training import tune as tune_module
from embedtune.training.tune import tune

torch.set_num_threads(1)

COLOURS = ["red", "blue", "green", "grey", "black", "white", "brown", "pink"]
THINGS = ["pump", "valve", "door", "lamp", "roof", "crane"]


def make_data(test_question="where is the {} {}"):
    pairs = [
        (
            f"check the {colour} {thing} every week",
            [f"where is the {colour} {thing}", f"who looks at the {colour} {thing}"],
        )
        for colour in COLOURS
        for thing in THINGS
    ]
    data = et.RetrievalDataset.from_pairs(pairs, test_size=0.3, dev_size=0.1, seed=1)
    tests = set(data.relevant("test"))
    texts = [
        f"{text} {test_question}" if query in tests and test_question else text
        for query, text in zip(data.queries["_id"], data.queries["text"], strict=True)
    ]
    queries = data.queries.remove_columns("text").add_column("text", texts)
    return et.RetrievalDataset(data.corpus, queries, data.qrels, data.split_by, data.context)


def arguments(**options):
    return et.TuningArguments("unused", num_train_epochs=2, use_cpu=True, disable_tqdm=True, report_to=[], **options)


@pytest.fixture
def data():
    return make_data("")


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".md"
    }


def test_it_returns_a_retriever_a_verdict_and_a_report(tiny_model, data, tmp_path):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    run = tune(tiny_model, data, output_dir=tmp_path / "out", args=arguments(), test_split="test")
    names = [run.verdict.before.name, run.verdict.after.name, *(one.name for one in run.verdict.baselines)]
    assert names[1:] == ["tuned retriever", "BM25", "tuned model alone", "tuned words alone"]
    assert names[0].endswith("(base)")
    assert run.verdict.after.metrics == et.TopKEvaluator(data).evaluate(run.retriever).metrics
    assert run.verdict.num_queries == len(data.relevant("test"))
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert repr(run).startswith(run.verdict.summary)
    assert f"Retriever {tmp_path / 'out' / 'retriever'} (vectors + " in repr(run)
    assert f"Report    {tmp_path / 'out' / 'report.html'}" in repr(run)
    assert run.verdict.forgetting.verdict.num_queries == 100
    assert run.verdict.seconds > 0
    assert "seconds of training and measuring." in repr(run)
    again = et.Retriever.load(tmp_path / "out" / "retriever")
    assert [hit.id for hit in again.search("the red pump")] == [hit.id for hit in run.retriever.search("the red pump")]
    plain = SentenceTransformer(str(tmp_path / "out" / "retriever"), device="cpu")
    np.testing.assert_allclose(plain.encode_query(["a pump"]), run.retriever.model.encode_query(["a pump"]), atol=1e-6)
    for name, tensor in tiny_model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_everything_but_test_questions_is_trained_on(tiny_model, data, tmp_path, monkeypatch):
    seen = {}
    real = fit_module.EmbeddingTrainer

    def spy(model, args, *, data):
        seen["trained on"] = set(data.relevant("train"))
        return real(model, args, data=data)

    monkeypatch.setattr(fit_module, "EmbeddingTrainer", spy)
    tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), test_split="test")
    assert seen["trained on"] == set(data.relevant("train")) | set(data.relevant("dev"))


def test_other_test_questions_give_the_same_bytes(tiny_model, tmp_path):
    for name, question in (("one", "by the river"), ("two", "how do I call")):
        tune(tiny_model, make_data(question), output_dir=tmp_path / name, args=arguments(), test_split="test")
    first, second = (files_of(tmp_path / name / "retriever") for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


class StopError(Exception):
    pass


def test_an_interrupted_run_continues_and_ends_with_the_same_bytes(tiny_model, data, tmp_path, monkeypatch):
    tune(tiny_model, data, output_dir=tmp_path / "whole", args=arguments(), test_split="test")
    real = fit_module.EmbeddingTrainer.training_step
    steps = []

    def stopping(self, *args, **kwargs):
        steps.append(1)
        if self.state.global_step == 3 and len(steps) == 4:
            raise StopError
        return real(self, *args, **kwargs)

    monkeypatch.setattr(fit_module.EmbeddingTrainer, "training_step", stopping)
    with pytest.raises(StopError):
        tune(tiny_model, data, output_dir=tmp_path / "cut", args=arguments(), test_split="test")
    del steps[:]
    run = tune(tiny_model, data, output_dir=tmp_path / "cut", args=arguments(), test_split="test")
    total = run.verdict and len(steps)
    whole, cut = (files_of(tmp_path / name / "retriever") for name in ("whole", "cut"))
    assert [name for name in whole if whole[name] != cut[name]] == []
    assert 0 < total < 6


def test_by_default_folds_are_the_evidence_and_all_questions_are_trained_on(tiny_model, data, tmp_path):
    run = tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=2), num_folds=3)
    assert run.verdict.num_queries == len(data.queries)
    assert run.verdict.unit == "documents"
    assert run.retriever.words.weights.num_questions == len(data.queries)
    assert (tmp_path / "report.html").exists()
    assert not list((tmp_path / "folds").glob("*/checkpoints"))


def test_the_model_before_encodes_every_chunk_and_question_once(tiny_model, data, tmp_path, monkeypatch):
    real = ModelEncoder._encode_distinct
    encoded = Counter()

    def spy(self, texts, role):
        encoded.update((self.model is tiny_model, text) for text in texts)
        return real(self, texts, role)

    monkeypatch.setattr(ModelEncoder, "_encode_distinct", spy)
    run = tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=3)
    known = [*data.corpus_texts.values(), *data.query_texts.values()]
    assert {encoded[True, text] for text in known} == {1}
    by_the_tuned = [encoded[False, text] for text in data.query_texts.values()]
    assert set(by_the_tuned) == {1}  # by the model of the fold that judges it, for the model alone and with words
    again = tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=3)
    assert again.verdict.seconds == run.verdict.seconds
    assert str(again) == str(run)


def test_damaged_records_of_a_run_are_named_with_the_remedy(tiny_model, data, tmp_path):
    options = {"args": arguments(max_steps=1), "num_folds": 2}
    tune(tiny_model, data, output_dir=tmp_path, **options)
    for place, remedy in (
        (tmp_path / "folds" / "fold-1" / "results.json", "Delete this fold's folder"),
        (tmp_path / "tune.json", "Choose another output_dir"),
    ):
        whole = place.read_bytes()
        for torn in (whole[:9], b"", b"[]", b'{"num_results": 1}'):
            if torn.startswith(b"{") and place.name == "tune.json":
                continue  # a run with other everything
            place.write_bytes(torn)
            with pytest.raises(ValueError, match=f"{place.name} is damaged or incomplete .*{remedy}"):
                tune(tiny_model, data, output_dir=tmp_path, **options)
        place.write_bytes(whole)
    (tmp_path / "folds" / "fold-0" / "plan.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="fold-0 holds a fold of another run"):
        tune(tiny_model, data, output_dir=tmp_path, **options)


def test_a_folder_with_another_run_is_refused(tiny_model, data, tmp_path):
    tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), test_split="test")
    with pytest.raises(ValueError, match="holds a run with other arguments"):
        tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=2), test_split="test")
    with pytest.raises(ValueError, match="holds a run with other training data, evidence"):
        tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=3)
    assert json.loads((tmp_path / "tune.json").read_text())["arguments"]["max_steps"] == 1


def test_a_dataset_without_questions_to_train_on_is_refused(tiny_model, data, tmp_path):
    tests = et.RetrievalDataset(data.corpus, data.queries, {"test": data.qrels["test"]})
    with pytest.raises(ValueError, match="no questions to train on"):
        tune(tiny_model, tests, output_dir=tmp_path, args=arguments(), test_split="test")
    assert not (tmp_path / "tune.json").exists()


def test_the_split_that_judges_is_not_trained_on_whatever_its_name(tiny_model, data, tmp_path, monkeypatch):
    trained = []
    real = tune_module.fit

    def fit(before, data, args):
        trained.append(set(data.relevant("train")))
        return real(before, data, args)

    monkeypatch.setattr(tune_module, "fit", fit)
    run = tune(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), test_split="dev")
    assert trained[0] == set(data.relevant("train"))
    assert run.verdict.num_queries == len(data.relevant("dev"))


@pytest.mark.parametrize("options", [{"num_folds": 1}, {"num_folds": 0}, {"test_split": "exam"}, {"test_split": ""}])
def test_evidence_that_cannot_be_is_refused_before_anything_is_written(tiny_model, data, tmp_path, options):
    with pytest.raises(ValueError, match=r"num_folds=[01] must be at least 2|There is no split"):
        tune(tiny_model, data, output_dir=tmp_path / "out", args=arguments(max_steps=1), **options)
    assert not (tmp_path / "out").exists()


def test_a_reranker_is_trained_at_last_on_all_questions_and_saved_with_the_retriever(
    tiny_model, cross_encoder, data, tmp_path, monkeypatch
):
    asked = []
    real = reranker_module.train_reranker

    def spy(model, data, *, args, **options):
        asked.append((set(data.relevant("train")), {name for name in data.splits if name != "train"}))
        args.max_steps = 3
        return real(model, data, args=args, **options)

    monkeypatch.setattr(reranker_module, "train_reranker", spy)
    options = {"args": arguments(max_steps=1), "test_split": "test", "reranker": cross_encoder}
    run = tune(tiny_model, data, output_dir=tmp_path, **options)
    assert asked == [(set(data.relevant("train")) | set(data.relevant("dev")), {"test"})]
    trained = reranker_fingerprint(run.retriever.reranker)
    assert trained != reranker_fingerprint(cross_encoder)
    saved = et.Retriever.load(tmp_path / "retriever")
    assert reranker_fingerprint(saved.reranker) == trained
    assert "tuned without the reranker" in [one.name for one in run.verdict.baselines]
    again = tune(tiny_model, data, output_dir=tmp_path, **options)
    assert reranker_fingerprint(again.retriever.reranker) == trained
    assert len(asked) == 1
    with pytest.raises(ValueError, match="holds a run with other reranker"):
        tune(tiny_model, data, output_dir=tmp_path, **options | {"reranker": None})
