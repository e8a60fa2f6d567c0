"""The loop on a world of made-up words: only training can tell that "red" means the stone."""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense

import embedtune as et
from embedtune.evaluation.comparison import MetricChange
from embedtune.evaluation.result import Evaluation
from embedtune.improvement import gate
from embedtune.improvement import improve as improve_module
from embedtune.improvement.round_data import HELD_OUT, _leaders, build_round_data, hash_of_test, with_locked_test
from embedtune.improvement.rounds import Check, Round, Rounds
from embedtune.models.query_side import freeze_index
from embedtune.retrieval.encoders import ModelEncoder, RememberingEncoder
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.hits import Hit
from embedtune.retrieval.retriever_files import read
from embedtune.retrieval.word_weight import LearnedWords, spread_of
from embedtune.retrieval.words import WordWeights
from embedtune.serving.feedback import FeedbackLog
from embedtune.text import same_question

torch.set_num_threads(1)

THINGS = ["pump", "valve", "sensor", "door", "filter", "battery", "cable", "harbour"]  # trained on
TESTED = ["island", "ship", "crane", "engine", "window", "roof", "garden", "river"]
ASKED = ["stone", "bread", "wool", "lamp", "clock", "paper", "glass", "chair"]
ALIASES = ["red", "blue", "green", "old", "new", "fast", "slow", "one"]  # what people call those
WAYS = [
    "where is",
    "how to open",
    "who may close",
    "when to check",
    "what is in",
    "replace",
    "wait for",
    "hold",
    "press",
]
WAYS += ["call for", "which is", "how to call"]

FORGETTING_CHECK = gate.forgetting_check  # tests of rounds replace it


def problem(*, split_by="given"):
    chunks = [
        et.Chunk(f"{thing}#0", thing, text := f"check the {thing}", 0, len(text)) for thing in THINGS + TESTED + ASKED
    ]
    questions = [
        et.Question(f"{thing}/{i}", f"{way} the {thing}", (f"{thing}#0",), split=split or ("train" if i else "dev"))
        for things, split, ways in ((THINGS, "", WAYS), (TESTED, "test", WAYS[:6]))
        for thing in things
        for i, way in enumerate(ways)
    ]
    return replace(et.build_dataset(chunks, questions, split_by="given"), split_by=split_by)


def unhashed(data):
    """The judgements without the texts that they were given for, so that a test may change these."""
    return {split: table.remove_columns("chunk_hash") for split, table in data.qrels.items()}


def labelled(thing):
    """What a person names: the chunk as it was found."""
    return Hit(f"{thing}#0", 0.5, f"check the {thing}")


def fill(log, *, wrong=0.0, seed=0, ways=WAYS):
    """Log what people asked under names that the documents do not use."""
    rng = random.Random(seed)
    for thing, alias in zip(ASKED, ALIASES, strict=True):
        for way in ways:
            right = rng.choice(THINGS + TESTED + ASKED) if rng.random() < wrong else thing
            number = log.record(f"{way} the {alias}", [("nothing", 0.1)], outcome="not in the documents")
            log.name_chunks(number, [labelled(right)], by="Ada")


@pytest.fixture
def log(tmp_path):
    return FeedbackLog(tmp_path / "log.sqlite")


@pytest.fixture(scope="module")
def learned(_shared_tiny_model, tmp_path_factory):
    """A folder with a log and one accepted round, made once."""
    folder = tmp_path_factory.mktemp("learned")
    log = FeedbackLog(folder / "log.sqlite")
    fill(log, ways=WAYS[:8])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "forgetting_check", lambda old, new, general: Check("forgetting", True, "not looked at"))
        assert improve(copy.deepcopy(_shared_tiny_model), log, folder / "rounds", arguments()).accepted
    log.close()
    return folder


@pytest.fixture
def rounds(learned, tmp_path):
    """A copy of those rounds."""
    shutil.copytree(learned, tmp_path / "copy")
    return Rounds(tmp_path / "copy" / "rounds")


@pytest.fixture
def args():
    return arguments()


def arguments():
    return et.TuningArguments(
        "unused",
        num_train_epochs=8,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        group_rows=False,
        frozen_layers=0.0,
        dropout=0.0,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        report_to="none",
    )


@pytest.fixture(autouse=True)
def nothing_forgotten(monkeypatch):
    """A model of random weights knows nothing of the world that it could forget."""
    monkeypatch.setattr(gate, "forgetting_check", lambda old, new, general: Check("forgetting", True, "not looked at"))


def serving(model, data=None, **options):
    """A retriever that goes by vectors alone: no word of a question is in a document here."""
    return et.Retriever.from_dataset(model, data or problem(), **{"word_weight": 0.0, **options})


def moved(round_, data=None):
    """The retriever of a round."""
    data = data or problem()
    texts = data.corpus_texts
    chunks = [et.Chunk(chunk, chunk.partition("#")[0], text, 0, len(text)) for chunk, text in texts.items()]
    return et.Retriever.load(round_.model_path, round_.load_model(device="cpu"), chunks=chunks)


def improve(model, log, folder, args, *, data=None, **options):
    # In this world no search can tell which labels are right.
    retriever = model if isinstance(model, et.Retriever) else serving(model, data)
    return et.improve(
        retriever,
        data or problem(),
        feedback=log,
        output_dir=folder,
        args=args,
        **{"k": 3, "max_wrong": 1.0, **options},
    )


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())


# What is learned, and what is refused


def test_misses_become_fewer_and_the_new_model_serves(rounds, tiny_model):
    round_ = rounds.current
    assert (round_.number, round_.parent, round_.status) == (1, 0, "accepted")
    evaluator = et.TopKEvaluator(round_.load_data(), HELD_OUT, k=(3,))
    new, old = evaluator.evaluate(round_.load_model(device="cpu")), evaluator.evaluate(tiny_model)
    assert len(new.misses(3)) < len(old.misses(3)) / 2
    assert f"{len(old.misses(3))} -> {len(new.misses(3))} misses of" in repr(round_)
    assert SentenceTransformer(str(round_.model_path), device="cpu").encode_query("?").shape == (32,)


def test_the_model_that_serves_is_not_touched(tiny_model, log, tmp_path, args):
    fill(log)
    before = state(tiny_model)
    round_ = improve(tiny_model, log, tmp_path / "rounds", quick(args))
    assert same_state(tiny_model, before)
    assert not same_state(round_.load_model(device="cpu"), before)


def test_a_poisoned_log_is_refused_and_the_old_model_stays(tiny_model, log, tmp_path, args):
    fill(log, wrong=1.0)
    round_ = improve(tiny_model, log, tmp_path / "rounds", args)
    assert round_.status == "rejected"
    rounds = Rounds(tmp_path / "rounds")
    assert rounds.current.number == 0
    assert same_state(rounds.current.load_model(device="cpu"), state(tiny_model))
    assert not any(candidate.passed for candidate in round_.candidates)


def test_a_log_whose_labels_look_random_is_refused_before_anything_is_trained(tiny_model, log, tmp_path, args):
    rng = random.Random(0)
    for way in WAYS:
        for thing in ASKED:
            number = log.record(f"{way} the {thing} please", [], outcome="not in the documents")
            log.name_chunks(number, [labelled(rng.choice(THINGS))], by="nobody")
    with pytest.raises(ValueError, match=r"The labels of the log seem to be wrong: .* name_chunks\(\)"):
        improve(tiny_model, log, tmp_path / "rounds", args, max_wrong=0.1)
    assert [round_.number for round_ in Rounds(tmp_path / "rounds").all()] == [0]


def test_a_model_that_fails_the_locked_test_is_refused_whatever_it_learned(tiny_model, log, tmp_path, args):
    fill(log)
    round_ = improve(tiny_model, log, tmp_path / "rounds", args, max_loss=-0.99)
    for candidate in round_.candidates:
        checks = {check.name: check.passed for check in candidate.checks}
        assert checks["locked test"] is False
    assert Rounds(tmp_path / "rounds").current.number == 0


def test_a_model_that_forgot_is_refused(tiny_model, log, tmp_path, args, monkeypatch):
    monkeypatch.setattr(gate, "forgetting_check", lambda old, new, general: Check("forgetting", False, "all gone"))
    fill(log)
    round_ = improve(tiny_model, log, tmp_path / "rounds", args)
    assert round_.status == "rejected"
    assert "all gone" in repr(round_)


def test_the_best_merge_is_tried_before_a_round_is_rejected(tiny_model, log, tmp_path, args, monkeypatch):
    verdicts = iter([False, True])
    monkeypatch.setattr(improve_module, "smallest_within_one_error", lambda results: 0.5)
    monkeypatch.setattr(gate, "forgetting_check", lambda old, new, general: Check("forgetting", next(verdicts), "?"))
    fill(log)
    round_ = improve(tiny_model, log, tmp_path / "rounds", args)
    assert [candidate.name for candidate in round_.candidates] == ["tuned", "merged (alpha 0.5)"]
    saved = SentenceTransformer(str(round_.model_path), device="cpu")
    assert not same_state(saved, state(tiny_model))


def test_each_model_encodes_the_corpus_once(tiny_model, log, tmp_path, args, monkeypatch):
    encoded = []
    encode = ModelEncoder._encode_distinct

    def counted(encoder, texts, role):
        if isinstance(encoder, RememberingEncoder) and role == "document":  # the trainer's own evaluations are not
            encoded.append(model_fingerprint(encoder.model))
        return encode(encoder, texts, role)

    monkeypatch.setattr(gate, "forgetting_check", lambda old, new, general: Check("forgetting", False, "gone"))
    monkeypatch.setattr(ModelEncoder, "_encode_distinct", counted)
    fill(log)
    round_ = improve(tiny_model, log, tmp_path / "rounds", quick(args), max_loss=2.0)
    assert round_.status == "rejected"
    assert len(encoded) == len(set(encoded)) == 11  # old, tuned and nine merges


def test_rounds_with_a_frozen_index_train_one_layer(tiny_model, log, tmp_path, args):
    fill(log)
    args.max_steps, args.num_train_epochs = 2, 1
    retriever = serving(tiny_model)
    for number in (1, 2):
        round_ = improve(retriever, log, tmp_path / str(number), args, keep_index=True)
        retriever = moved(round_)
        model = retriever.model
        kinds = [type(module).__name__ for module in next(model.children()).sub_modules["query"]]
        assert kinds.count("Dense") == 1, number


@pytest.mark.parametrize(("max_loss", "passed"), [(0.03, False), (0.05, False), (0.09, True)])
def test_the_locked_test_is_judged_by_the_lower_bound_and_not_by_the_mean(max_loss, passed):
    change = MetricChange(before=0.7, after=0.68, difference=-0.02, low=-0.08, high=0.04)
    verdict = SimpleNamespace(metrics={"ndcg@3": change}, primary_metric="ndcg@3", sentence="Cannot tell.")
    assert gate.locked_check(verdict, max_loss=max_loss).passed == passed


@pytest.mark.parametrize(
    ("decision", "misses", "passed"),
    [("better", (9, 5), True), ("better", (5, 5), True), ("better", (5, 6), False), ("cannot tell", (9, 5), False)],
)
def test_held_out_questions_need_a_better_verdict_and_no_more_misses(decision, misses, passed):
    before, after = (SimpleNamespace(misses=lambda k, n=n: range(n)) for n in misses)
    verdict = SimpleNamespace(before=before, after=after, decision=decision, num_queries=20, sentence="")
    assert gate.held_out_check(verdict, k=3).passed == passed


def test_the_index_stays_valid_where_the_query_side_alone_is_trained(tiny_model, log, tmp_path, args, monkeypatch):
    fill(log)
    data = problem()
    retriever = serving(tiny_model, data)
    args.learning_rate = 1e-2
    round_ = improve(retriever, log, tmp_path / "rounds", args, data=data, keep_index=True)
    with monkeypatch.context() as patch:
        patch.setattr(ModelEncoder, "encode_documents", lambda *args: 1 / 0)
        new = et.reindex(retriever, round_.model_path, path=tmp_path / "index")
    assert len(new.search("where is the red", k=3)) == 3
    assert len(round_.candidates) == 1
    assert round_.candidates[0].checks[0].passed, round_


def test_the_new_questions_teach_the_words_each_once_and_what_is_measured_teaches_nothing(rounds, args):
    log = FeedbackLog(rounds.output_dir.parent / "log.sqlite")
    first = rounds.current
    weights = moved(first).words.weights
    trained = texts_of(problem(), "train") | texts_of(first.load_data(), "train")
    measured = texts_of(first.load_data(), "test", HELD_OUT)
    assert_taught(weights, trained - measured)
    fill(log, ways=WAYS[8:])
    second = improve(moved(first), log, rounds.output_dir, quick(args))
    trained |= texts_of(second.load_data(), "train")
    assert_taught(read(second.model_path).words.weights, trained)
    assert not trained & texts_of(second.load_data(), HELD_OUT, "test")


def assert_taught(weights, texts):
    expected = WordWeights.learn(texts)
    assert weights.num_questions == len(texts)
    np.testing.assert_array_equal(weights.hashes, expected.hashes)
    np.testing.assert_array_equal(weights.counts, expected.counts)


def test_the_gate_compares_retrievers_and_the_round_saves_the_one_that_passed(tiny_model, log, tmp_path, args):
    fill(log)
    words = LearnedWords(WordWeights.learn(texts_of(problem(), "train")), 3.0)
    retriever = et.Retriever.from_dataset(tiny_model, problem(), words=words)
    round_ = improve(retriever, log, tmp_path / "rounds", quick(args), max_loss=2.0)
    evaluator = et.TopKEvaluator(round_.load_data(), HELD_OUT, k=(3,))
    last = round_.candidates[-1].name.partition(" ")[0]
    for name, one in (("old", retriever), (last, moved(round_))):
        kept = Evaluation.load(round_.path / f"{HELD_OUT}-{name}.json")
        assert kept.model == one.fingerprint
        assert kept.per_query["scores"][:] == evaluator.evaluate(one).per_query["scores"][:]
        assert max(map(max, kept.per_query["word_scores"][:])) > 0
    new = moved(round_)
    assert new.words.multiple == 3.0
    assert new.word_weight == pytest.approx(3.0 * spread_of(new.index))


def test_a_retriever_with_the_words_of_another_round_is_refused(rounds, log, args):
    fill(log)
    other = serving(rounds.current.load_model(device="cpu"))
    with pytest.raises(
        ValueError, match=r"words are not those that serve, those of round 1. Move it there with reindex"
    ):
        improve(other, log, rounds.output_dir, args)


def test_a_served_retriever_moves_to_a_round_with_its_words(rounds, tiny_model, tmp_path):
    retriever = et.reindex(serving(tiny_model), rounds.current.model_path, path=tmp_path / "index")
    expected = moved(rounds.current)
    assert retriever.fingerprint == expected.fingerprint
    assert et.Retriever.load(tmp_path / "index").fingerprint == expected.fingerprint


def test_a_model_alone_is_refused_with_the_way_to_a_retriever(tiny_model, log, tmp_path):
    with pytest.raises(TypeError, match=r"retriever is a SentenceTransformer.*Retriever.from_dataset\(model, data\)"):
        et.improve(tiny_model, problem(), feedback=log, output_dir=tmp_path)


# What may be trained on


def rounded(log, data=None, *, trained_before=(), **options):
    options = {"held_out_size": 0.3, "dev_size": 0.1, "replay": 1.0, "seed": 0, **options}
    return build_round_data(data or problem(), log.questions(), trained_before=trained_before, **options)


def texts_of(data, *splits):
    return {same_question(data.query_texts[q]) for split in splits if split in data.qrels for q in data.relevant(split)}


def test_no_question_is_trained_on_and_measured_with(log):
    fill(log)
    data = rounded(log).data
    trained = texts_of(data, "train", "dev")
    assert trained
    assert not trained & texts_of(data, "test")
    assert not trained & texts_of(data, HELD_OUT)


def test_test_questions_in_the_log_are_never_used(log):
    fill(log)
    for text in ("Where is the  ISLAND?", "where is the island"):
        log.name_chunks(log.record(text, []), [labelled("island")], by="Ada")
    prepared = rounded(log)
    assert prepared.counts["asked in the locked test"] == 1
    assert "where is the island" not in texts_of(prepared.data, "train", "dev", HELD_OUT)


def test_a_test_question_in_other_words_is_not_used_either(log):
    fill(log)
    data = problem()
    long = "who may close the big red door of the harbour crane when it is dry and warm"
    queries = {"_id": [*data.queries["_id"][:], "long"], "text": [*data.queries["text"][:], long]}
    rows = [*data.qrels["test"].to_list(), {"query-id": "long", "corpus-id": "crane#0", "score": 1}]
    data = replace(data, queries=Dataset.from_dict(queries), qrels={**data.qrels, "test": Dataset.from_list(rows)})
    log.name_chunks(log.record(long + " again", []), [labelled("crane")], by="Ada")
    log.name_chunks(log.record(long + " today", []), [labelled("stone")], by="Ada")  # another chunk: another question
    prepared = rounded(log, data)
    assert prepared.counts["asked in the locked test"] == 1
    assert same_question(long + " today") in texts_of(prepared.data, "train", "dev", HELD_OUT)


def test_nothing_is_learned_about_the_documents_of_a_test_by_document(log):
    fill(log)
    log.name_chunks(log.record("what about the isle", []), [labelled("island")], by="Ada")
    assert rounded(log).counts["about a document of the locked test"] == 0
    prepared = rounded(log, problem(split_by="document"))
    assert prepared.counts["about a document of the locked test"] == 1
    assert "what about the isle" not in texts_of(prepared.data, "train", "dev", HELD_OUT)


def test_nothing_is_learned_about_a_copy_of_a_tested_chunk_in_another_document(log):
    data = problem(split_by="document")
    rows = [
        row | {"duplicate_group": {"stone#0": "island#0"}.get(row["_id"], row["_id"])} for row in data.corpus.to_list()
    ]
    log.name_chunks(log.record("what about the stone", []), [labelled("stone")], by="Ada")
    assert rounded(log, data).counts["about a document of the locked test"] == 0
    copied = replace(data, corpus=Dataset.from_list(rows, data.corpus.features))
    assert rounded(log, copied).counts["about a document of the locked test"] == 1


def test_a_thousand_near_repeats_about_one_chunk_are_on_the_side_of_the_first():
    text = "how do I close the big red door of the harbour crane when it is dry and warm"
    repeats = [et.Question(f"q{i:04}", f"{text} {i}", ("pump#0", "crane#0")) for i in range(1000)]
    other = et.Question("other", text, ("stone#0",))
    chained = et.Question("chained", "how do I sell a lamp", ("lamp#0", "crane#0"))
    leaders = _leaders([*reversed(repeats), other, chained])
    assert leaders == {**dict.fromkeys((one.id for one in repeats), "q0000"), "other": "other", "chained": "chained"}


def test_questions_about_chunks_that_are_gone_are_left_out_and_counted(log):
    fill(log)
    log.name_chunks(log.record("what about the moon", []), [labelled("moon")], by="Ada")
    assert rounded(log).counts["about texts that are gone"] == 1


def test_a_confirmed_label_is_trained_on_whatever_a_later_answer_cites(log):
    number = log.record("how do I open it", [("lamp#0", 0.9)], outcome="answered", cited=["lamp#0"])
    log.name_chunks(number, [labelled("stone")], by="Ada")
    log.record("How do I open it?", [("lamp#0", 0.9)], outcome="answered", cited=["lamp#0"])
    prepared = rounded(log, held_out_size=0.0, dev_size=0.0)
    assert [prepared.data.relevant("train")[query] for query in prepared.new] == [["stone#0"]]


def test_a_label_follows_its_text_when_ids_move(log):
    moved = [Hit("pump#0", 0.9, "check the stone"), Hit("lamp#0", 0.8, "check the lamp"), Hit("bread#0", 0.7, "gone")]
    for hit in moved:
        log.name_chunks(log.record(f"what about {hit.id}", moved), [hit], by="Ada")
    prepared = rounded(log, held_out_size=0.0, dev_size=0.0)
    labels = {prepared.data.query_texts[query]: prepared.data.relevant("train")[query] for query in prepared.new}
    assert labels == {"what about pump#0": ["stone#0"], "what about lamp#0": ["lamp#0"]}
    assert prepared.counts["about texts that are gone"] == 1


def test_labels_of_texts_that_were_never_logged_are_set_aside_and_counted(log):
    log.name_chunks(log.record("what about the lamp", []), ["lamp#0"], by="Ada")
    log.record("what about the pump", [("pump#0", 0.9)], outcome="answered", cited=["pump#0"])
    prepared = rounded(log, held_out_size=0.0, dev_size=0.0)
    assert not prepared.new
    assert prepared.counts["labelled by ids alone"] == 2


def test_a_label_of_a_bare_chunk_is_found_in_a_corpus_with_context(log):
    text = "check the stone"
    chunk = et.Chunk("stone#7", "stone", text, 0, len(text), title="Stones")
    log.name_chunks(log.record("what about it", []), [chunk], by="Ada")
    data = problem()
    texts = [f"{row['document_id']}\n{row['text']}" for row in data.corpus.to_list()]
    corpus = data.corpus.remove_columns("text").add_column("text", texts)
    prepared = rounded(log, replace(data, corpus=corpus, qrels=unhashed(data)), held_out_size=0.0, dev_size=0.0)
    assert [prepared.data.relevant("train")[query] for query in prepared.new] == [["stone#0"]]


def test_the_lock_is_made_of_the_texts_that_answer_the_test():
    data = problem()
    corpus = data.corpus.to_list()
    other = [row | {"text": row["text"].replace("island", "moon")} for row in corpus]
    assert hash_of_test(data) != hash_of_test(
        replace(data, corpus=Dataset.from_list(other, data.corpus.features), qrels=unhashed(data))
    )


def test_a_question_keeps_its_side_when_others_come(log):
    fill(log, ways=WAYS[:6])
    before = rounded(log).data
    fill(log, ways=WAYS[6:])
    after = rounded(log).data
    assert texts_of(before, HELD_OUT) < texts_of(after, HELD_OUT)
    asked = {same_question(question.text) for question in log.questions()}
    assert texts_of(before, "train") & asked < texts_of(after, "train") & asked


def test_what_was_trained_on_is_never_held_out_again(log):
    fill(log)
    held_out = texts_of(rounded(log).data, HELD_OUT)
    prepared = rounded(log, trained_before=held_out)
    assert prepared.counts["held out"] == 0
    assert held_out <= texts_of(prepared.data, "train")


def test_a_question_of_the_dev_split_that_is_asked_is_trained_on_and_leaves_dev(log):
    fill(log)
    dev = next(iter(texts_of(problem(), "dev")))
    log.name_chunks(log.record(dev, []), [labelled("pump")], by="Ada")
    data = rounded(log, trained_before=texts_of(problem(), "train", "dev")).data
    assert dev in texts_of(data, "train")
    assert dev not in texts_of(data, "dev", HELD_OUT)


def test_questions_that_nearly_repeat_each_other_are_on_one_side(log):
    fill(log)
    base = "how to replace the old red filter of the harbour crane when the ship is in the river"
    for i in range(12):
        log.name_chunks(log.record(f"{base} {WAYS[i]}", []), [labelled("stone")], by="Ada")
    data = rounded(log).data
    sides = {side for side in ("train", "dev", HELD_OUT) for text in texts_of(data, side) if text.startswith(base)}
    assert len(sides) == 1


def test_what_answers_cited_is_measured_with_and_not_trained_on(log):
    fill(log)
    cited = [f"{way} the {thing} please" for way in WAYS for thing in ASKED]
    for text in cited:
        log.record(text, [labelled("stone")], outcome="answered", cited=["stone#0"])
    prepared = rounded(log)
    assert not texts_of(prepared.data, "train", "dev") & set(cited)
    assert texts_of(prepared.data, HELD_OUT) & set(cited)
    assert prepared.counts["not confirmed, not held out"] > 0


def test_old_questions_are_replayed_in_proportion(log):
    fill(log)
    for replay in (0.0, 0.5, 2.0):
        prepared = rounded(log, replay=replay)
        old = texts_of(prepared.data, "train") & texts_of(problem(), "train")
        num_old = len(texts_of(problem(), "train"))
        assert prepared.counts["replayed"] == len(old) == min(num_old, round(replay * prepared.counts["trained on"]))


def test_a_log_with_too_little_is_refused_before_anything_is_trained(tiny_model, log, tmp_path, args):
    log.name_chunks(log.record("where is the red", []), [labelled("stone")], by="Ada")
    with pytest.raises(ValueError, match=r"label_misses\(\)"):
        improve(tiny_model, log, tmp_path / "rounds", args)
    assert Rounds(tmp_path / "rounds").current.number == 0


# Rounds


def quick(args):
    args.max_steps = 2
    return args


def test_a_second_round_goes_on_from_the_first_and_holds_out_nothing_it_saw(rounds, args):
    log = FeedbackLog(rounds.output_dir.parent / "log.sqlite")
    fill(log, ways=WAYS[8:])
    first = rounds.current
    second = improve(moved(first), log, rounds.output_dir, quick(args), held_out_size=0.9)
    assert (second.parent, second.number) == (1, 2)
    assert not texts_of(first.load_data(), "train", "dev") & texts_of(second.load_data(), HELD_OUT)
    assert texts_of(first.load_data(), "train") & texts_of(second.load_data(), "train")


def test_a_changed_test_and_another_model_are_refused(tiny_model, log, tmp_path, args):
    fill(log)
    improve(tiny_model, log, tmp_path / "rounds", quick(args))
    data = problem()
    fewer = replace(data, qrels={**data.qrels, "test": data.qrels["test"].select(range(10))})
    assert hash_of_test(fewer) != hash_of_test(data)
    with pytest.raises(ValueError, match="has changed since it was locked"):
        improve(tiny_model, log, tmp_path / "rounds", args, data=fewer)
    with torch.no_grad():
        next(tiny_model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="is not the model that serves"):
        improve(tiny_model, log, tmp_path / "rounds", args)


def test_a_growing_corpus_leaves_the_lock_alone(tiny_model, log, tmp_path, args):
    fill(log)
    improve(tiny_model, log, tmp_path / "rounds", quick(args))
    data = problem()
    row = data.corpus[0] | {"_id": "moon#0", "text": "the moon", "document_id": "moon"}
    more = replace(data, corpus=Dataset.from_list([*data.corpus.to_list(), row], features=data.corpus.features))
    assert improve(tiny_model, log, tmp_path / "rounds", quick(args), data=more).number == 2


def test_rounds_can_be_rolled_back_and_forward(rounds):
    assert rounds.roll_back().number == rounds.current.number == 0
    with pytest.raises(ValueError, match="no round to roll back to"):
        rounds.roll_back()
    assert rounds.switch_to(1).number == rounds.current.number == 1
    assert [round_.status for round_ in rounds.all()] == ["start", "accepted"]


def test_a_rejected_round_is_kept_and_cannot_serve(tiny_model, log, tmp_path, args):
    fill(log, wrong=1.0)
    improve(tiny_model, log, tmp_path / "rounds", quick(args))
    rounds = Rounds(tmp_path / "rounds")
    assert rounds[1].load_data().splits
    with pytest.raises(ValueError, match="was rejected"):
        rounds.switch_to(1)
    with pytest.raises(ValueError, match="no finished round 7"):
        rounds.switch_to(7)


def test_an_empty_folder_serves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no rounds yet"):
        _ = Rounds(tmp_path / "rounds").current


def test_what_a_round_found_is_kept_with_it(rounds):
    round_ = rounds.current
    names = {path.name for path in round_.path.iterdir()}
    assert {"model", "data", "round.json", "test-old.json", f"{HELD_OUT}-old.json", "test-tuned.json"} <= names
    assert "checkpoints" not in names
    assert Evaluation.load(round_.path / "test-old.json").num_queries == 48
    assert json.loads((round_.path / "round.json").read_text())["settings"]["learning_rate"] == 3e-3


@pytest.mark.parametrize("damage", ["", "{", "{}", "[1]", '{"round": "../0"}', '{"round": true}'])
def test_a_damaged_record_or_pointer_is_an_error_that_names_the_file(tmp_path, damage):
    rounds = Rounds(tmp_path)
    with rounds.new_round() as (number, path):
        Round(path, number, None, "start", "model", "test", "2026-01-01").save()
    assert rounds.switch_to(0).number == 0
    (tmp_path / "current.json").write_text(damage)
    with pytest.raises(ValueError, match=r"current\.json is damaged.*switch_to"):
        _ = rounds.current
    (path / "round.json").write_text(damage)
    with pytest.raises(ValueError, match=r"round\.json is damaged"):
        _ = rounds[0]


class Crash(BaseException):
    pass


STEPS = {
    "data": "dataset.RetrievalDataset.save_to_disk",
    "training": "improvement.improve.EmbeddingTrainer.train",
    "gate": "improvement.improve.Gate.judge",
    "merge": "improvement.improve.merge_with_base",
    "record": "improvement.improve.Round.save",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_leaves_the_old_model(tiny_model, log, tmp_path, args, monkeypatch, step):
    def crashing(*_args, **_kwargs):
        raise Crash

    fill(log)
    improve_module._start(Rounds(tmp_path / "rounds"), serving(tiny_model), test_hash=hash_of_test(problem()))
    with monkeypatch.context() as patch:
        patch.setattr(f"embedtune.{STEPS[step]}", crashing)
        if step == "merge":
            patch.setattr(gate, "forgetting_check", lambda old, new, general: Check("forgetting", False, "gone"))
        with pytest.raises(Crash):
            improve(tiny_model, log, tmp_path / "rounds", quick(args), max_loss=2.0)
    rounds = Rounds(tmp_path / "rounds")
    assert rounds.current.number == 0
    assert same_state(rounds.current.load_model(device="cpu"), state(tiny_model))
    with rounds.new_round() as (number, path):
        assert number == 2  # what was interrupted is in nobody's way
        assert sorted(rounds.output_dir.glob("[0-9]*")) == [rounds[0].path, path]  # and is gone


def test_a_crash_at_the_switch_leaves_the_old_model_and_the_round_can_serve_later(rounds, monkeypatch):
    def crashing(path, text):
        raise Crash

    rounds.roll_back()
    with monkeypatch.context() as patch:
        patch.setattr("embedtune.improvement.rounds.replace_file", crashing)
        with pytest.raises(Crash):
            improve_module._switch(rounds, rounds[0], rounds[1])
    assert rounds.current.number == 0
    improve_module._switch(rounds, rounds[0], rounds[1])
    assert rounds.current.number == 1


def test_a_crash_before_the_first_model_serves_is_made_good(tiny_model, tmp_path, monkeypatch):
    def crashing(self, number):
        raise Crash

    rounds = Rounds(tmp_path / "rounds")
    with monkeypatch.context() as patch:
        patch.setattr(Rounds, "switch_to", crashing)
        with pytest.raises(Crash):
            improve_module._parent(rounds, serving(tiny_model), problem())
    assert improve_module._parent(rounds, serving(tiny_model), problem()).number == rounds.current.number == 1


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from test_improve import Check, FeedbackLog, arguments, gate, improve
gate.forgetting_check = lambda old, new, general: Check("forgetting", True, "not looked at")
print("ready", flush=True)
improve(SentenceTransformer(sys.argv[2], device="cpu"), FeedbackLog(sys.argv[3]), sys.argv[4], arguments())
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 2.0])
def test_a_process_that_is_killed_leaves_the_old_model(tiny_model_folder, tiny_model, log, tmp_path, seconds):
    fill(log)
    rounds = Rounds(tmp_path / "rounds")
    improve_module._start(rounds, serving(tiny_model), test_hash=hash_of_test(problem()))
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, here, str(tiny_model_folder), str(log.path), str(rounds.output_dir)],
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    process.communicate()
    finished = {round_.number: round_ for round_ in rounds.all()}
    assert rounds.current.number in finished
    assert finished[rounds.current.number].status in ("start", "accepted")
    assert rounds.current.load_model(device="cpu").encode_query("?").shape == (32,)


def test_a_round_that_another_one_overtook_does_not_serve(tiny_model, log, tmp_path, args, monkeypatch):
    fill(log)
    rounds = Rounds(tmp_path / "rounds")
    start = improve_module._start(rounds, serving(tiny_model), test_hash=hash_of_test(problem()))
    real = improve_module._train

    def overtaken(*_args, **_kwargs):
        with rounds.new_round() as (number, path):
            other = replace(start, path=path, number=number, parent=0, status="accepted")
            other.save()
        rounds.switch_to(number)
        return real(*_args, **_kwargs)

    monkeypatch.setattr(improve_module, "_train", overtaken)
    with pytest.raises(RuntimeError, match="began to serve while round 1 was trained"):
        improve(tiny_model, log, tmp_path / "rounds", args)
    assert rounds.current.number == 2
    assert rounds[1].accepted


def test_a_linear_layer_that_documents_use_too_is_not_the_one_that_is_trained(tiny_model):
    shared = Dense(32, 32, bias=False, activation_function=None, init_weight=torch.eye(32))
    model = SentenceTransformer(modules=[*tiny_model.children(), shared], device="cpu")
    frozen = freeze_index(model, query="linear")
    trained = [parameter for parameter in frozen.parameters() if parameter.requires_grad]
    assert len(trained) == 1
    assert trained[0] is not shared.linear.weight
    again = freeze_index(frozen, query="linear")
    assert [parameter for parameter in again.parameters() if parameter.requires_grad] == trained


GERMAN = [("Die Pumpe steht im Keller und wird mit dem Ventil geschlossen.", ["Wo steht die Pumpe?"])]
CHINESE = [("水泵在地下室用阀门关闭", ["水泵在哪里"])]
ENGLISH = [("The pump is in the cellar and is closed with the valve.", ["Where is the pump?"])]


@pytest.mark.parametrize(("pairs", "english"), [(GERMAN, False), (CHINESE, False), (ENGLISH, True)])
def test_only_an_english_corpus_is_measured_by_english_general_knowledge(pairs, english):
    other = [(text.replace("p", "k") + "!", [question + "!"]) for text, [question] in pairs]
    data = et.RetrievalDataset.from_pairs([*pairs, *other], test_size=0, dev_size=0)
    assert gate.is_english(data) == english


def test_the_check_of_general_knowledge_takes_other_questions_and_says_where_it_is_not_measured(tiny_model):
    check = FORGETTING_CHECK(tiny_model, tiny_model, None)
    assert check.passed
    assert "Not measured" in check.detail
    assert "general=" in check.detail
    pairs = [*GERMAN, ("Das Tor am Hafen ist rot.", ["Welche Farbe hat das Tor?"])]
    general = et.RetrievalDataset.from_pairs(pairs, test_size=0.5, dev_size=0)
    assert "n = 1 general questions" in FORGETTING_CHECK(tiny_model, tiny_model, general).detail


# Without a test


def without_a_test():
    data = problem()
    return replace(data, qrels={"train": data.qrels["train"]})


def test_without_a_test_a_fifth_of_the_training_questions_is_locked_and_the_rounds_do_not_train_on_them(
    learned, tiny_model, tmp_path, args
):
    log, data = FeedbackLog(learned / "log.sqlite"), without_a_test()
    round_ = improve(tiny_model, log, tmp_path / "rounds", quick(args), data=data, replay=100.0, max_loss=1.0)
    made = round_.load_data()
    locked, trained = set(made.relevant("test")), set(made.relevant("train"))
    assert locked == set(with_locked_test(data).relevant("test"))
    assert 0.1 < len(locked) / len(data.relevant("train")) < 0.3
    assert trained > set(data.relevant("train")) - locked
    assert not trained & locked
    assert round_.counts["about a document of the locked test"] == 0
    # The next round finds the same ones, and other questions cannot take their place.
    again = with_locked_test(without_a_test())
    assert hash_of_test(again) == round_.test_hash == Rounds(tmp_path / "rounds").current.test_hash
    log.close()


def test_what_is_locked_without_a_test_follows_from_the_text_of_a_question():
    data = without_a_test()
    fewer = replace(data, qrels={"train": data.qrels["train"].select(range(0, len(data.qrels["train"]), 2))})
    of_all, of_fewer = (set(with_locked_test(one).relevant("test")) for one in (data, fewer))
    assert of_fewer == of_all & set(fewer.relevant("train"))
    assert of_fewer
    locked = problem()
    assert with_locked_test(locked) is locked


def test_near_duplicates_are_locked_together_also_under_two_ids_and_with_several_chunks():
    texts = [f"Shelf {i} in hall {i * 7} holds the spare part of machine {i * 13}." for i in range(60)]
    chunks = [et.Chunk(f"{i}#0", f"{i}", text, 0, len(text)) for i, text in enumerate(texts)]
    ways = ("Where is the spare part of machine {} kept?", "where is the spare part of machine {} kept")
    ways += ("Where is the spare part of machine {} kept today?",)
    questions = [
        et.Question(f"{way}/{i}", asked.format(i * 13), (f"{i}#0", f"{i + 30}#0")[way // 2 :])
        for i in range(30)
        for way, asked in enumerate(ways)
    ]
    data = et.build_dataset(chunks, questions, test_size=0, dev_size=0)
    data = replace(data, qrels={"train": data.qrels["train"]})
    locked = with_locked_test(data)
    sides = [{query.split("/")[1] for query in locked.relevant(split)} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert 2 <= len(sides[1]) <= 12
    backwards = replace(data, qrels={"train": data.qrels["train"].select(range(len(data.qrels["train"]) - 1, -1, -1))})
    assert set(with_locked_test(backwards).relevant("test")) == set(locked.relevant("test"))


def test_a_dataset_with_too_few_questions_to_lock_is_refused():
    data = without_a_test()
    one = replace(data, qrels={"train": data.qrels["train"].select([0])})
    with pytest.raises(ValueError, match=r"this dataset has 1 question\(s\) to do so.*Add questions"):
        with_locked_test(one)
    with pytest.raises(ValueError, match="'train', and this dataset has only"):
        with_locked_test(replace(data, qrels={"test": data.qrels["train"]}))


def test_too_few_questions_of_the_log_are_named_by_their_use(tiny_model, log, tmp_path, args):
    fill(log, ways=WAYS[:1])
    with pytest.raises(
        ValueError, match=r"The log has \d questions to train on and \d to hold out.*: 0 asked in the locked test, "
    ):
        improve(tiny_model, log, tmp_path / "rounds", args)
