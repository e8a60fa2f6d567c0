"""A reranker as a second stage: the order of CrossEncoder.predict, in search, evaluation, on disk and on the Hub alike."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from scripted_llm import ScriptedLLM
from sentence_transformers import CrossEncoder, SentenceTransformer
from test_evaluator import build
from test_publishing_hub import server  # noqa: F401 - a fixture
from test_retriever import QUESTIONS, TEXTS, chunk, chunks_of, found

import embedtune as et
from embedtune.retrieval.fingerprint import reranker_fingerprint
from embedtune.retrieval.reindex import reindex
from embedtune.retrieval.retriever import Retriever

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

QUESTIONS = QUESTIONS[:5]


@pytest.fixture
def plain(tiny_model):
    return Retriever.from_chunks(tiny_model, chunks_of(TEXTS))


@pytest.fixture
def retriever(plain, cross_encoder):
    return plain.with_reranker(cross_encoder, rerank_depth=7)


def by_predict(reranker, plain, question, *, depth, k):
    """The order of the first chunks by ``predict``, then the others as they were."""
    hits = plain.search(question, k=max(depth, k))
    scores = reranker.predict([(question, hit.text) for hit in hits[:depth]])
    first = sorted(zip(hits[:depth], scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0].id))
    return [(hit.id, score) for hit, score in first][:k] + [(hit.id, hit.score) for hit in hits[depth:k]]


@pytest.mark.parametrize("k", [1, 5, 7, 12])
def test_the_first_chunks_are_in_the_order_of_predict_and_the_others_stay(plain, retriever, cross_encoder, k):
    for question, row in zip(QUESTIONS, found(retriever, QUESTIONS, k=k), strict=True):
        expected = by_predict(cross_encoder, plain, question, depth=7, k=k)
        assert [one for one, _ in row] == [one for one, _ in expected]
        np.testing.assert_allclose([score for _, score in row], [score for _, score in expected], atol=1e-5)
    changed = [[one for one, _ in row] for row in found(retriever, QUESTIONS)]
    assert changed != [[one for one, _ in row] for row in found(plain, QUESTIONS)]


def test_a_hit_shows_the_score_of_the_reranker_beside_what_vectors_and_words_contribute(plain, retriever):
    before = {hit.id: hit for hit in plain.search(QUESTIONS[0], k=12)}
    hits = retriever.search(QUESTIONS[0], k=12)
    for hit in hits:
        assert hit.similarity == pytest.approx(before[hit.id].similarity, abs=1e-6)
        assert hit.words == pytest.approx(before[hit.id].words, abs=1e-6)
    assert all(hit.score != before[hit.id].score for hit in hits[:7])
    assert all(hit.score == before[hit.id].score for hit in hits[7:])
    assert len({hit.id for hit in hits}) == 12


def test_one_question_gets_the_bits_that_it_gets_in_a_batch_and_in_an_evaluation(tiny_model, retriever, cross_encoder):
    assert [[(hit.id, hit.score) for hit in retriever.search(q, k=9)] for q in QUESTIONS] == found(
        retriever, QUESTIONS, k=9
    )
    relevant = {f"q{i}": [next(iter(TEXTS))] for i in range(len(QUESTIONS))}
    data = build(TEXTS, dict(zip(relevant, QUESTIONS, strict=True)), relevant)
    served = Retriever.from_dataset(tiny_model, data, reranker=cross_encoder, rerank_depth=7)
    result = et.TopKEvaluator(data, k=(9,)).evaluate(served)
    hits = found(served, QUESTIONS, k=9)
    assert [[one for one, _ in row] for row in hits] == result.per_query["retrieved"][:]
    assert [[score for _, score in row] for row in hits] == result.per_query["scores"][:]
    assert "word_scores" not in result.per_query.column_names
    assert result.model != et.TopKEvaluator(data, k=(9,)).evaluate(served.with_reranker(None)).model


def test_equal_scores_are_in_the_order_of_the_ids(tiny_model, cross_encoder):
    same = [chunk(name, "open the pump") for name in ("c#0", "a#0", "d#0", "b#0")]
    retriever = Retriever.from_chunks(tiny_model, same[:2], reranker=cross_encoder)
    retriever.add(same[2:])
    hits = retriever.search("what is the pump", k=4)
    assert [hit.id for hit in hits] == ["a#0", "b#0", "c#0", "d#0"]
    assert len({hit.score for hit in hits}) == 1


def test_scores_that_a_sigmoid_rounds_to_one_keep_their_order(plain, cross_encoder):
    head = cross_encoder.model.classifier
    with torch.no_grad():
        head.bias += 40
    retriever = plain.with_reranker(cross_encoder, rerank_depth=7)
    for question in QUESTIONS:
        hits = retriever.search(question, k=7)
        logits = cross_encoder.predict([(question, hit.text) for hit in hits], activation_fn=torch.nn.Identity())
        assert {hit.score for hit in hits} == {1.0}
        assert (np.diff(logits) <= 1e-5).all()


def test_chunks_that_come_and_go_are_reranked_as_in_a_new_index(tiny_model, retriever, cross_encoder):
    new = chunk("zz#0", "what is the blue river")
    retriever.add([new])
    retriever.remove([next(iter(TEXTS))])
    rest = [*chunks_of(TEXTS)[1:], new]
    again = Retriever.from_chunks(
        tiny_model, rest, word_weight=retriever.word_weight, reranker=cross_encoder, rerank_depth=7
    )
    assert [[i for i, _ in row] for row in found(retriever, QUESTIONS)] == [
        [i for i, _ in row] for row in found(again, QUESTIONS)
    ]


def test_equal_texts_are_in_the_order_of_their_ids_also_if_the_first_came_last(tiny_model, cross_encoder):
    chunks = [chunk("m#0", "what is the blue river"), *chunks_of(TEXTS)]
    grown = Retriever.from_chunks(tiny_model, chunks, reranker=cross_encoder, rerank_depth=len(chunks) + 1)
    grown.add([chunk("a#0", "what is the blue river")])
    ids = [hit.id for hit in grown.search("the blue river", k=len(chunks) + 1)]
    assert ids.index("m#0") - ids.index("a#0") == 1


def test_fewer_chunks_than_the_depth_and_words_that_nothing_has_are_no_error(tiny_model, cross_encoder):
    small = Retriever.from_chunks(tiny_model, chunks_of(TEXTS)[:3], reranker=cross_encoder)
    assert len(small.search("pump", k=10)) == 3
    words = Retriever.from_chunks(tiny_model, chunks_of(TEXTS), word_weight=float("inf"), reranker=cross_encoder)
    assert words.search("xylophone", k=3) == []
    assert Retriever.from_chunks(tiny_model, [], reranker=cross_encoder).search("pump") == []


def test_a_saved_retriever_ranks_as_before_and_its_model_loads_alone(retriever, tmp_path, tiny_model):
    retriever.save(tmp_path / "saved")
    loaded = Retriever.load(tmp_path / "saved")
    assert found(loaded, QUESTIONS, k=9) == found(retriever, QUESTIONS, k=9)
    assert loaded.fingerprint == retriever.fingerprint
    assert (loaded.rerank_depth, loaded.reranker.device) == (7, loaded.model.device)
    alone = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(alone.encode(["pump"]), tiny_model.encode(["pump"]), atol=1e-6)
    assert isinstance(CrossEncoder(str(tmp_path / "saved" / "reranker")), CrossEncoder)
    assert "`reranker`" in (tmp_path / "saved" / "README.md").read_text()


def test_saving_again_without_a_reranker_removes_it(retriever, plain, tmp_path):
    retriever.save(tmp_path / "saved")
    retriever.with_reranker(None).save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "reranker").exists()
    assert Retriever.load(tmp_path / "saved").reranker is None
    assert found(Retriever.load(tmp_path / "saved"), QUESTIONS) == found(plain, QUESTIONS)


def test_a_reranker_that_is_missing_or_another_is_noticed(retriever, cross_encoder, tmp_path):
    retriever.save(tmp_path / "saved")
    place = tmp_path / "saved" / "reranker"
    other = copy.deepcopy(cross_encoder)
    with torch.no_grad():
        other.model.classifier.bias += 1
    other.save_pretrained(str(place), create_model_card=False)
    with pytest.raises(ValueError, match="is of another retriever"):
        Retriever.load(tmp_path / "saved")
    (place / "model.safetensors").write_bytes(b"{")
    with pytest.raises(ValueError, match="damaged or incomplete"):
        Retriever.load(tmp_path / "saved")
    shutil.rmtree(place)
    with pytest.raises(FileNotFoundError, match="reranker is missing"):
        Retriever.load(tmp_path / "saved")


def test_the_fingerprint_of_a_reranker_is_kept_by_saving_and_changes_with_what_its_scores_depend_on(
    cross_encoder, tmp_path
):
    before = reranker_fingerprint(cross_encoder)
    cross_encoder.save_pretrained(str(tmp_path / "saved"))
    assert reranker_fingerprint(CrossEncoder(str(tmp_path / "saved"))) == before
    assert reranker_fingerprint(CrossEncoder(str(tmp_path / "saved"), max_length=9)) != before
    assert reranker_fingerprint(CrossEncoder(str(tmp_path / "saved"), activation_fn=torch.nn.Identity())) != before
    with torch.no_grad():
        cross_encoder.model.classifier.bias += 1
    assert reranker_fingerprint(cross_encoder) != before


def test_other_ways_to_a_retriever_keep_the_reranker(retriever, tiny_model, tmp_path, cross_encoder):
    assert retriever.with_word_weight(0).reranker is cross_encoder
    assert retriever.with_word_weight(0).rerank_depth == 7
    moved = reindex(retriever, copy.deepcopy(tiny_model), path=tmp_path / "moved")
    assert (moved.reranker, moved.rerank_depth) == (cross_encoder, 7)
    assert "reranked by" in repr(retriever)


def test_what_cannot_be_a_second_stage_is_refused(plain, tiny_model, cross_encoder):
    with pytest.raises(TypeError, match=r"reranker is a SentenceTransformer\. Pass .*CrossEncoder\(name or folder\)"):
        plain.with_reranker(tiny_model)
    with pytest.raises(TypeError, match="reranker is a str"):
        Retriever(tiny_model, plain.index, reranker="cross-encoder/some")
    with pytest.raises(ValueError, match="rerank_depth"):
        plain.with_reranker(cross_encoder, rerank_depth=0)
    several = copy.deepcopy(cross_encoder)
    several.model.config.num_labels = 3
    with pytest.raises(ValueError, match="returns 3 scores"):
        plain.with_reranker(several)
    with torch.no_grad():
        cross_encoder.model.classifier.bias += torch.nan
    with pytest.raises(ValueError, match="are not finite"):
        plain.with_reranker(cross_encoder).search("pump")


def test_an_answer_is_from_the_reranked_chunks(retriever):
    llm = ScriptedLLM(lambda _: {"outcome": "answered", "answer": "Check it.", "passages": [1]})
    reply = et.answer(QUESTIONS[0], retriever, llm=llm, k=3)
    assert list(reply.hits) == list(retriever.search(QUESTIONS[0], k=3))


def test_a_published_retriever_has_its_reranker(server, retriever):  # noqa: F811
    publication = et.push_to_hub(retriever, "me/handbook")
    assert {"reranker/config.json", "reranker/model.safetensors"} <= set(publication.files)
    assert "reranker/README.md" not in publication.files
    loaded = Retriever.load("me/handbook", chunks=chunks_of(TEXTS), revision=publication.revision)
    assert found(loaded, QUESTIONS, k=9) == found(retriever, QUESTIONS, k=9)
    plain = et.push_to_hub(retriever.with_reranker(None), "me/handbook")
    assert not [name for name in server.files["models/me/handbook"] if name.startswith("reranker")]
    assert Retriever.load("me/handbook", chunks=chunks_of(TEXTS), revision=plain.revision).reranker is None
