from __future__ import annotations

import logging

import numpy as np
import pytest
from llm_server import Fault, clean_environment, embedding_of, serving

from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.llms.errors import GenerationStoppedError, RequestError, TemporaryError
from embedtune.retrieval.openai import MAX_INPUTS, OpenAIEncoder
from embedtune.types import Encoder

MODEL = "text-embedding-3-large"


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    clean_environment(monkeypatch, tmp_path)
    monkeypatch.setattr("embedtune.llms.retries.seconds_to_wait", lambda state: 0.0)


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def encoder(server, tmp_path):
    def make(model=MODEL, **options):
        return OpenAIEncoder(model, client=server.openai_client(), cache=tmp_path / "vectors.sqlite", **options)

    return make


def expected(texts, dimensions=64):
    return np.array([embedding_of(text, dimensions) for text in texts], dtype=np.float32)


def test_texts_get_their_own_vectors_in_their_order_and_each_is_sent_once(server, encoder):
    texts = ["one", "two", "one", "three", "two"]
    model = encoder()
    assert isinstance(model, Encoder)
    for encode in (model.encode_documents, model.encode_queries):
        vectors = encode(texts)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, expected(texts))
    assert server.answered == ["one", "two", "three"]


def test_a_second_run_sends_nothing_and_needs_no_key(server, encoder, tmp_path):
    first = encoder().encode_documents(["one", "two"])
    again = OpenAIEncoder(MODEL, cache=tmp_path / "vectors.sqlite")
    assert again.quote(["one", "two"]).num_cached == 0  # another server might have another model of that name
    np.testing.assert_array_equal(encoder().encode_documents(["two", "one"]), first[::-1])
    assert server.num_requests("embeddings") == 1


def test_a_changed_text_is_sent_and_the_others_are_not(server, encoder):
    encoder().encode_documents(["the pump", "the valve"])
    server.answered.clear()
    np.testing.assert_array_equal(
        encoder().encode_documents(["the pump ", "the valve"]), expected(["the pump ", "the valve"])
    )
    assert server.answered == ["the pump "]


def test_other_models_dimensions_and_prompts_have_vectors_of_their_own(server, encoder):
    assert encoder().encode_queries(["one"]).shape == (1, 64)
    assert encoder(dimensions=8).encode_queries(["one"]).shape == (1, 8)
    assert encoder("text-embedding-3-small").encode_queries(["one"]).shape == (1, 32)
    np.testing.assert_array_equal(encoder(query_prompt="query: ").encode_queries(["one"]), expected(["query: one"]))
    np.testing.assert_array_equal(
        encoder(document_prompt="passage: ").encode_documents(["one"]), expected(["passage: one"])
    )
    assert len({encoder(**options).fingerprint for options in ({}, {"dimensions": 8}, {"query_prompt": "q"})}) == 3


def test_requests_keep_to_the_number_of_texts(server, encoder):
    texts = [f"text {i}" for i in range(MAX_INPUTS + 5)]
    np.testing.assert_array_equal(encoder().encode_documents(texts), expected(texts))
    assert [len(entry["body"]["input"]) for entry in server.log] == [2048, 5]


def test_requests_keep_to_the_number_of_tokens_though_these_are_only_estimated(server, encoder):
    long = [f"{i} " + "token " * 5_000 for i in range(100)]  # 500,000 tokens
    short = [f"{i} " + "!" * 5_000 for i in range(100)]  # as many, though a fifth of the characters
    for texts in (long, short):
        np.testing.assert_array_equal(encoder().encode_documents(texts), expected(texts))
    assert len(server.answered) == 200
    assert server.num_requests("embeddings") < 20


@pytest.mark.parametrize("text", ["word " * 20_000, "!" * 20_000])
def test_texts_longer_than_the_model_reads_are_cut_and_counted(server, encoder, caplog, text):
    texts = ["one", text, "two"]
    vectors = encoder().encode_documents(texts)
    np.testing.assert_array_equal(vectors[[0, 2]], expected(["one", "two"]))
    cut = max(server.answered, key=len)
    assert text.startswith(cut)
    np.testing.assert_array_equal(vectors[1], expected([cut])[0])
    assert "1 texts exceed the limit of text-embedding-3-large" in caplog.text
    server.log.clear()
    encoder().encode_documents(texts)
    assert server.log == []


def test_the_cost_is_quoted_before_anything_is_sent_and_is_about_right(server, encoder, caplog):
    texts = [f"The pump of the ship number {i} is cleaned every other week by the crew." for i in range(200)]
    quote = encoder().quote(texts)
    assert (quote.num_texts, quote.num_cached) == (200, 0)
    assert server.log == []
    with caplog.at_level(logging.INFO, logger="embedtune"):
        encoder().encode_documents(texts)
    assert str(quote) in caplog.text
    assert quote.usd == pytest.approx(server.microdollars / 1e6, rel=0.4)
    assert encoder().quote(texts).usd == 0
    assert encoder("text-embedding-3-small").quote(texts).usd == pytest.approx(quote.usd * 2 / 13)


def test_what_costs_more_than_the_ceiling_is_not_sent(server, encoder):
    with pytest.raises(ValueError, match=r"which is more than max_usd=1e-06. Nothing was sent"):
        encoder(max_usd=1e-6).encode_documents(["the pump of the ship " * 50])
    assert server.log == []
    encoder(max_usd=0.01).encode_documents(["the pump"])
    with pytest.raises(ValueError, match="max_usd needs the price of 'some-model'"):
        OpenAIEncoder("some-model", max_usd=1)


def test_a_run_that_failed_half_way_goes_on_where_it_stopped(server, encoder):
    texts = [f"text {i}" for i in range(5000)]
    server.on_text("text 4999", Fault(status=401, message="invalid key"))
    with pytest.raises(GenerationStoppedError, match="Check the API key in OPENAI_API_KEY"):
        encoder().encode_documents(texts)
    assert len(server.answered) == 2 * MAX_INPUTS
    server.by_text.clear()
    server.answered.clear()
    np.testing.assert_array_equal(encoder().encode_documents(texts), expected(texts))
    assert server.answered == texts[2 * MAX_INPUTS :]


@pytest.mark.parametrize("fault", [Fault(status=429), Fault(status=500), Fault(drop=True), Fault(truncate=True)])
def test_what_may_pass_is_tried_again(server, encoder, fault):
    server.queue("embeddings", fault, times=2)
    np.testing.assert_array_equal(encoder().encode_documents(["one"]), expected(["one"]))
    assert server.num_requests("embeddings") == 3


def test_a_server_that_stays_away_is_given_up(server, encoder):
    server.queue("embeddings", Fault(status=500), times=100)
    with pytest.raises(TemporaryError, match="HTTP 500"):
        encoder().encode_documents(["one"])
    assert server.num_requests("embeddings") < 20


def test_a_reply_without_all_vectors_is_not_believed(server, encoder):
    for data in (b'{"object": "list", "data": [], "model": "m"}', b"<html>proxy</html>"):
        server.queue("embeddings", Fault(body=data))
    np.testing.assert_array_equal(encoder().encode_documents(["one"]), expected(["one"]))
    assert server.num_requests("embeddings") == 3


def test_what_will_never_pass_is_refused_with_the_servers_words(encoder):
    with pytest.raises(RequestError, match="does not support specifying dimensions"):
        encoder("text-embedding-ada-002", dimensions=8).encode_queries(["one"])
    with pytest.raises(GenerationStoppedError, match=r"`text-embedding-4` does not exist.*Check the model's name"):
        encoder("text-embedding-4").encode_queries(["one"])


def test_a_missing_key_is_said(tmp_path):
    with pytest.raises(GenerationStoppedError, match="set OPENAI_API_KEY, or pass a client"):
        OpenAIEncoder(MODEL, cache=tmp_path / "vectors.sqlite").encode_queries(["one"])


def test_empty_texts_are_named_and_nothing_is_sent(server, encoder):
    with pytest.raises(ValueError, match=r"texts\[1\] is empty"):
        encoder().encode_queries(["one", ""])
    assert server.log == []


def test_another_server_is_not_told_the_key(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    encoder = OpenAIEncoder(MODEL, base_url=f"{server.url}/v1", cache=tmp_path / "vectors.sqlite")
    assert encoder.price is None
    with pytest.raises(GenerationStoppedError):  # this one wants a key
        encoder.encode_queries(["one"])
    sent = {name.lower(): value for name, value in server.log[0]["headers"].items()}
    assert sent["authorization"] == "Bearer none"


def test_it_stands_in_the_table_like_any_other(server, encoder):
    data = RetrievalDataset.from_pairs([(f"chunk {i}", [f"question {i}"]) for i in range(8)], test_size=0.5, dev_size=0)
    evaluator = TopKEvaluator(data, k=(1, 3))
    first = evaluator.evaluate(encoder(), name="openai")
    assert first.model.startswith("openai(text-embedding-3-large")
    assert evaluator.evaluate(encoder()).per_query.to_dict() == first.per_query.to_dict()
    assert len(server.answered) == len(set(server.answered)) == 8 + first.num_queries
