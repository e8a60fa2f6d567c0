from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from test_tune import COLOURS, THINGS, arguments

import embedtune as et
from embedtune.dataset.folds import assign_folds, document_of_questions
from embedtune.dataset.views import chunks_for_training
from embedtune.evaluation.result import Evaluation
from embedtune.evaluation.verdict import compare
from embedtune.retrieval.fingerprint import reranker_fingerprint
from embedtune.training.experiments import cross_validation
from embedtune.training.experiments.cross_validation import cross_validate

torch.set_num_threads(1)


def make_data(question="where is the {colour} {thing}", colours=COLOURS):
    chunks, questions = [], []
    for colour in colours:
        for i, thing in enumerate(THINGS):
            text = f"{colour} {thing} of the {colour} house"
            chunks.append(et.Chunk(f"{colour}#{i}", colour, text, 1000 * i, 1000 * i + len(text)))
            questions.append(
                et.Question(f"{colour}#{i}/0", question.format(colour=colour, thing=thing), (f"{colour}#{i}",))
            )
    return et.build_dataset(chunks, questions, test_size=0.2, dev_size=0)


@pytest.fixture
def data():
    return make_data()


def spy_on_fits(monkeypatch):
    trained = []
    real = cross_validation.fit

    def fit(before, data, args):
        trained.append(set(data.relevant("train")))
        return real(before, data, args)

    monkeypatch.setattr(cross_validation, "fit", fit)
    return trained


def test_every_question_is_judged_once_by_a_retriever_that_never_saw_its_document(
    tiny_model, data, tmp_path, monkeypatch
):
    trained = spy_on_fits(monkeypatch)
    found = cross_validate(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=4)
    assert found.verdict.num_queries == len(data.queries) == 48
    assert len(found.folds) == len(trained) == 4
    for fold, seen in enumerate(trained):
        judged = {query for query, place in found.fold_of.items() if place == fold}
        assert set(found.folds[fold][0].per_query["query-id"][:]) == judged
        assert judged | seen == set(data.query_texts)
        assert not {query.partition("#")[0] for query in judged} & {query.partition("#")[0] for query in seen}


def test_pooled_results_are_those_of_the_folds(tiny_model, data, tmp_path):
    found = cross_validate(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=3)
    for position, pooled in enumerate([found.verdict.before, found.verdict.after, *found.verdict.baselines]):
        rows = {row["query-id"]: row for fold in found.folds for row in fold[position].per_query}
        assert pooled.per_query["query-id"][:] == sorted(rows)
        assert list(pooled.per_query) == [rows[query] for query in sorted(rows)]
        mean = np.average(
            [fold[position].metrics["ndcg@10"] for fold in found.folds],
            weights=[f[position].num_queries for f in found.folds],
        )
        assert pooled.metrics["ndcg@10"] == pytest.approx(mean)


def test_metrics_over_seeds_are_means_and_the_interval_covers_the_seed(tiny_model, data, tmp_path, monkeypatch):
    settings = arguments(max_steps=2, learning_rate=0.05)
    one = cross_validate(tiny_model, data, output_dir=tmp_path, args=settings, num_folds=3)
    trained = spy_on_fits(monkeypatch)
    three = cross_validate(tiny_model, data, output_dir=tmp_path, args=settings, num_folds=3, num_seeds=3)
    of_one, of_three = (found.verdict.baselines[1] for found in (one, three))
    assert of_three.name == "tuned model alone"
    assert len(trained) == 6  # the folds of the first seed are not trained again
    by_seed = of_three.per_seed_metrics["ndcg@10"]
    assert by_seed.shape == (3, 48)
    np.testing.assert_array_equal(by_seed[0], of_one.per_query_metrics["ndcg@10"])
    assert len({*by_seed.mean(axis=1).tolist()}) > 1
    assert of_three.metrics["ndcg@10"] == pytest.approx(by_seed.mean())
    assert not three.verdict.before.repeats
    assert not three.verdict.baselines[0].repeats
    shown = ", ".join(f"{mean:.3f}" for mean in by_seed.mean(axis=1))
    assert f"means of 3 trainings (ndcg@10 of each: {shown})" in str(of_three)
    assert f"tuned retriever, {three.verdict.after.spread}." in " ".join(three.verdict.notes)
    assert three.verdict.after.spread in three.verdict.to_html(tmp_path / "report.html").read_text()
    assert "of each:" not in " ".join(one.verdict.notes)
    of_three.save(tmp_path / "after.json")
    saved = Evaluation.load(tmp_path / "after.json")
    np.testing.assert_array_equal(saved.per_seed_metrics["ndcg@10"], by_seed)
    with pytest.raises(ValueError, match="Results of 2 and 3 trainings cannot be compared"):
        compare(replace(saved, repeats=saved.repeats[:1]), saved)


def test_seeds_below_one_are_refused(tiny_model, data, tmp_path):
    with pytest.raises(ValueError, match="num_seeds=0 must be at least 1"):
        cross_validate(tiny_model, data, output_dir=tmp_path, num_seeds=0)


def test_no_negative_of_a_fold_is_from_a_document_that_it_judges_or_that_is_locked(
    tiny_model, data, tmp_path, monkeypatch
):
    allowed = []

    def fit(before, part, args):
        allowed.append(set(chunks_for_training(part, "train")))
        return before

    monkeypatch.setattr(cross_validation, "fit", fit)
    found = cross_validate(
        tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=3, locked=["test"]
    )
    documents = dict(zip(data.corpus["_id"][:], data.corpus["document_id"][:], strict=True))
    locked = {documents[chunk] for chunks in data.relevant("test").values() for chunk in chunks}
    for fold, chunks in enumerate(allowed):
        judged = {documents[query.partition("/")[0]] for query, of in found.fold_of.items() if of == fold}
        assert {documents[chunk] for chunk in chunks} == set(documents.values()) - judged - locked


def test_folds_in_processes_of_their_own_give_the_same_results(tiny_model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(cross_validation, "cpu_count", lambda: 2)  # one thread each, as here: more add in another order
    found = [
        cross_validate(
            tiny_model,
            data,
            output_dir=tmp_path / str(num_processes),
            args=arguments(max_steps=2, learning_rate=0.05),
            num_folds=3,
            num_processes=num_processes,
        )
        for num_processes in (1, 2)
    ]
    for one, other in zip(
        *((each.verdict.before, each.verdict.after, *each.verdict.baselines) for each in found), strict=True
    ):
        assert one.model == other.model
        assert one.per_query.to_dict() == other.per_query.to_dict()


def test_the_base_model_and_bm25_are_judged_as_on_one_split(tiny_model, data, tmp_path):
    found = cross_validate(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=3)
    evaluator = et.TopKEvaluator(found.data, "folds")
    assert evaluator.evaluate(tiny_model).metrics == pytest.approx(found.verdict.before.metrics)
    assert evaluator.evaluate(et.BM25()).metrics == found.verdict.baselines[0].metrics


def test_intervals_are_by_document(tiny_model, data, tmp_path):
    by_document = cross_validate(tiny_model, data, output_dir=tmp_path / "d", args=arguments(max_steps=1), num_folds=3)
    assert by_document.verdict.num_clusters == len(COLOURS)
    assert "questions about 8 documents" in str(by_document)
    by_question = cross_validate(
        tiny_model, data, output_dir=tmp_path / "q", args=arguments(max_steps=1), num_folds=3, folds_by="question"
    )
    assert by_question.verdict.num_clusters == 48
    assert "questions about 48 chunks" in str(by_question)


def test_few_documents_decide_nothing(tiny_model, tmp_path):
    data = make_data(colours=COLOURS[:4])
    found = cross_validate(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1))
    assert len(found.folds) == 4  # a fold for each document
    assert {found.verdict.decision, *found.verdict.against_baselines} == {"cannot tell"}
    assert "4 documents are too few" in str(found)


def test_one_document_is_refused(tiny_model, tmp_path):
    data = make_data(colours=COLOURS[:2])
    one = et.RetrievalDataset(data.corpus, data.queries, {"train": data.qrels["train"]})
    with pytest.raises(ValueError, match=r"about one document group.*folds_by='question'"):
        cross_validate(tiny_model, one, output_dir=tmp_path, args=arguments(max_steps=1))


def test_a_fold_does_not_depend_on_the_questions_that_it_judges(tiny_model, tmp_path):
    def first_fold(question):
        folder = tmp_path / question[:5]
        data = make_data()
        fold_of = assign_folds(document_of_questions(data, all_relevant(data)), 3, seed=0)
        texts = [
            question if fold_of[query] == 0 else text
            for query, text in zip(data.queries["_id"][:], data.queries["text"][:], strict=True)
        ]
        changed = et.RetrievalDataset(
            data.corpus, data.queries.remove_columns("text").add_column("text", texts), data.qrels, data.split_by
        )
        found = cross_validate(tiny_model, changed, output_dir=folder, args=arguments(), num_folds=3)
        return found.folds[0]

    first, second = first_fold("which of the houses"), first_fold("other words entirely")
    assert [one.model for one in first] == [one.model for one in second]  # fingerprints: weights, words, their weight


def all_relevant(data):
    return {query: chunks for split in data.splits for query, chunks in data.relevant(split).items()}


def test_a_locked_split_is_neither_trained_on_nor_judged_by(tiny_model, data, tmp_path, monkeypatch):
    trained = spy_on_fits(monkeypatch)
    found = cross_validate(
        tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=2, locked=["test"]
    )
    locked = set(data.relevant("test"))
    assert not locked & set.union(*trained)
    assert not locked & set(found.fold_of)
    with pytest.raises(ValueError, match="no split 'tset' to lock"):
        cross_validate(tiny_model, data, output_dir=tmp_path, locked=["tset"])


class StopError(Exception):
    pass


def test_an_interrupted_run_continues_with_the_next_fold(tiny_model, data, tmp_path, monkeypatch):
    whole = cross_validate(tiny_model, data, output_dir=tmp_path / "whole", args=arguments(), num_folds=3)
    real = cross_validation.fit
    calls = []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 3:
            raise StopError
        return real(*args)

    monkeypatch.setattr(cross_validation, "fit", stopping)
    with pytest.raises(StopError):
        cross_validate(tiny_model, data, output_dir=tmp_path / "cut", args=arguments(), num_folds=3)
    again = cross_validate(tiny_model, data, output_dir=tmp_path / "cut", args=arguments(), num_folds=3)
    assert len(calls) == 4
    assert str(again) == str(whole)
    with pytest.raises(ValueError, match="of another run"):
        cross_validate(tiny_model, data, output_dir=tmp_path / "cut", args=arguments(learning_rate=1.0), num_folds=3)


def test_folds_have_nearly_equal_numbers_of_questions():
    sizes = [30, 20, 20, 10, 10, 5, 3, 2]
    group_of = {f"{group}-{i}": str(group) for group, size in enumerate(sizes) for i in range(size)}
    folds = assign_folds(group_of, 5, seed=1)
    counts = np.bincount(list(folds.values()))
    assert len(counts) == 5
    assert counts.max() == 30
    assert counts.min() >= 15
    assert folds == assign_folds(dict(reversed(group_of.items())), 5, seed=1)


def test_documents_that_share_a_question_are_in_one_fold():
    data = make_data()
    questions = {query: list(chunks) for query, chunks in all_relevant(data).items()}
    questions["red#0/0"].append("blue#1")
    documents = document_of_questions(data, questions)
    assert documents["red#3/0"] == documents["blue#4/0"] == "blue"
    assert documents["green#0/0"] == "green"


@pytest.mark.parametrize("num_folds", [-1, 0, 1])
def test_fewer_than_two_folds_are_refused(tiny_model, data, tmp_path, num_folds):
    with pytest.raises(ValueError, match=f"num_folds={num_folds} must be at least 2"):
        cross_validate(tiny_model, data, output_dir=tmp_path, args=arguments(), num_folds=num_folds)


def test_an_unfinished_fold_of_other_data_is_refused(tiny_model, data, tmp_path, monkeypatch):
    class Crash(BaseException):
        pass

    def fit(*_):
        raise Crash

    monkeypatch.setattr(cross_validation, "fit", fit)
    with pytest.raises(Crash):
        cross_validate(tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=2)
    other = make_data("what of the {colour} {thing}")
    with pytest.raises(ValueError, match="another run"):
        cross_validate(tiny_model, other, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=2)


def test_a_retriever_that_is_the_same_in_all_folds_keeps_its_fingerprint(tiny_model, data, tmp_path):
    verdict = cross_validate(
        tiny_model, data, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=2, k=(1, 3)
    ).verdict
    bm25 = next(one for one in verdict.baselines if one.name == "BM25")
    assert bm25.model == et.BM25().fingerprint  # by which the advice knows that it needs no training
    assert verdict.after.model not in (bm25.model, verdict.before.model)


def test_repeated_judgements_count_once_and_questions_without_a_relevant_chunk_not_at_all(tiny_model, data, tmp_path):
    rows = data.qrels["train"]
    query = next(iter(data.relevant("test")))
    mixed = replace(
        data,
        qrels={
            "train": concatenate_datasets([rows, rows.select([0])]),
            "test": data.qrels["test"].map(lambda row: {"score": 0 if row["query-id"] == query else row["score"]}),
        },
    )
    assert max(map(len, mixed.relevant("train").values())) == 1
    found = cross_validate(tiny_model, mixed, output_dir=tmp_path, args=arguments(max_steps=1), num_folds=2)
    assert found.verdict.num_queries == len(data.queries) - 1


def test_copies_of_a_chunk_are_in_one_fold_also_where_no_documents_are_known(data):
    copies = dict.fromkeys(list(data.corpus_texts)[:30:10], "the same text")
    corpus = Dataset.from_list(
        [{"_id": chunk, "text": copies.get(chunk, text)} for chunk, text in data.corpus_texts.items()]
    )
    qrels = {split: data.qrels[split].remove_columns("chunk_hash") for split in data.splits}  # of other texts
    data = replace(data, corpus=corpus, qrels=qrels)
    relevant = all_relevant(data)
    document_of = document_of_questions(data, relevant)
    assert len({document_of[query] for query, chunks in relevant.items() if chunks[0] in copies}) == 1
    assert len(set(document_of.values())) == len(corpus) - 2


# A second stage


def test_a_reranker_is_trained_in_each_fold_on_what_the_fold_trains_on(
    tiny_model, cross_encoder, data, tmp_path, monkeypatch
):
    trained = []

    def train(model, data, *, retriever, **options):
        trained.append((set(data.relevant("train")), retriever))
        other = copy.deepcopy(model)
        torch.nn.init.normal_(
            other[0].auto_model.classifier.weight, generator=torch.Generator().manual_seed(len(trained))
        )
        return other

    monkeypatch.setattr("embedtune.training.reranker.train_reranker", train)
    before = reranker_fingerprint(cross_encoder)
    options = {"args": arguments(max_steps=1), "num_folds": 3}
    found = cross_validate(tiny_model, data, output_dir=tmp_path, reranker=cross_encoder, **options)
    assert reranker_fingerprint(cross_encoder) == before
    for fold, (asked, retriever) in enumerate(trained):
        assert asked == {query for query, place in found.fold_of.items() if place != fold}
        assert retriever.reranker is None
    names = [one.name for one in found.verdict.baselines]
    assert names == ["BM25", "tuned without the reranker", "tuned model alone", "tuned words alone"]
    plain = cross_validate(tiny_model, data, output_dir=tmp_path / "plain", **options)
    rows = {one.name: one for one in found.verdict.baselines}
    for name, one in (
        ("tuned without the reranker", plain.verdict.after),
        ("tuned model alone", plain.verdict.baselines[1]),
    ):
        assert list(rows[name].per_query) == list(one.per_query)
    assert list(found.verdict.after.per_query) != list(plain.verdict.after.per_query)
    again = cross_validate(tiny_model, data, output_dir=tmp_path, reranker=cross_encoder, **options)
    assert len(trained) == 3
    assert str(again) == str(found)
    with pytest.raises(ValueError, match="holds a fold of another run"):
        cross_validate(tiny_model, data, output_dir=tmp_path, **options)
