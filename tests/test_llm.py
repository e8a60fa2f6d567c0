import importlib.util
import json
import subprocess
import sys
import traceback
from base64 import b64encode
from urllib.parse import quote

import anthropic
import openai
import pytest
from conftest import build_tokenizer
from llm_server import Fault, clean_environment, make_chunks, serving

from embedtune.errors import OptionalDependencyError
from embedtune.llms.anthropic import AnthropicLLM
from embedtune.llms.errors import GenerationStoppedError, RequestError, TemporaryError
from embedtune.llms.local import TransformersLLM
from embedtune.llms.openai import OpenAILLM
from embedtune.llms.prices import listed_price, paid
from embedtune.llms.protocol import LLM, Completion, Price, Request
from embedtune.llms.sdk import call
from embedtune.questions.generation import generate_questions
from embedtune.questions.template import SCHEMA
from embedtune.retrieval.openai import OpenAIEncoder

REQUEST = Request("Write 2 questions.", "<passage>\nThe pump restarts itself after ten seconds.\n</passage>", SCHEMA)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    clean_environment(monkeypatch, tmp_path)


@pytest.fixture
def server():
    with serving() as running:
        yield running


def claude(server, model="claude-sonnet-5-5", **options):
    return AnthropicLLM(model, client=server.anthropic_client(), **options)


def gpt(server, **options):
    return OpenAILLM("gpt-test", client=server.openai_client(), **options)


# Claude


def test_claude_answers_in_the_schema(server):
    llm = claude(server)
    completion = llm.read(llm.send(llm.body(REQUEST)))
    assert len(json.loads(completion.text)["questions"]) == 2
    assert completion.input_tokens > 0
    assert completion.output_tokens > 0
    assert completion.problem == ""


def test_the_request_has_a_schema_and_nothing_that_current_models_refuse(server):
    request = claude(server, effort="low").body(REQUEST)
    assert request["output_config"] == {"format": {"type": "json_schema", "schema": dict(SCHEMA)}, "effort": "low"}
    assert not {"temperature", "top_p", "top_k", "tool_choice", "tools"} & request.keys()
    assert [message["role"] for message in request["messages"]] == ["user"]


def test_any_client_object_will_do(server):
    class Messages:
        def create(self, **request):
            return original.messages.create(**request)

    class Cloud:
        messages = Messages()

    original = server.anthropic_client()
    llm = AnthropicLLM("claude-haiku-5-5", client=Cloud())
    llm.prepare()
    assert llm.read(llm.send(llm.body(REQUEST))).text


def test_the_sdk_is_not_allowed_to_retry_on_its_own(server):
    server.queue("messages", Fault(status=529), times=5)
    llm = claude(server)
    with pytest.raises(TemporaryError, match="HTTP 529"):
        llm.send(llm.body(REQUEST))
    assert server.num_requests("messages") == 1


@pytest.mark.parametrize("model", ["claude-sonnet-4-6", "claude-made-up-9"])
def test_a_model_that_the_api_does_not_have_is_refused_before_the_first_paid_call(server, tmp_path, model):
    message = r"(is retired|is unknown to the API).*about-claude/models"
    for mode in ("live", "batch"):
        with pytest.raises(GenerationStoppedError, match=message):
            generate_questions(make_chunks(3), claude(server, model), output_dir=tmp_path, mode=mode)
    assert {entry["route"] for entry in server.log} == {"models"}


def test_a_gateway_without_a_list_of_models_is_given_the_benefit_of_the_doubt(server, tmp_path):
    server.queue("models", Fault(status=404, message="no such route"))
    assert generate_questions(make_chunks(2), claude(server), output_dir=tmp_path).failed == {}


def test_a_missing_key_is_named_with_its_variable(tmp_path):
    with pytest.raises(GenerationStoppedError, match="ANTHROPIC_API_KEY"):
        generate_questions(make_chunks(1), AnthropicLLM("claude-haiku-5-5"), output_dir=tmp_path)
    with pytest.raises(GenerationStoppedError, match="OPENAI_API_KEY"):
        generate_questions(make_chunks(1), OpenAILLM("gpt-test"), output_dir=tmp_path)


def test_a_wrong_key_stops_the_run(server, tmp_path):
    client = anthropic.Anthropic(api_key="sk-ant-wrong", base_url=server.url)
    with pytest.raises(GenerationStoppedError, match=r"HTTP 401.*ANTHROPIC_API_KEY"):
        generate_questions(make_chunks(5), AnthropicLLM("claude-haiku-5-5", client=client), output_dir=tmp_path)
    client.close()


SECRET = "Pa55/word+of==MINE"


@pytest.mark.parametrize(
    "form", [str, str.lower, lambda key: quote(key, safe=""), lambda key: b64encode(key.encode()).decode()]
)
@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_key_that_a_proxy_sends_back_is_in_no_message_and_no_traceback(server, tmp_path, provider, form):
    server.key = SECRET
    said = f"the key {form(SECRET)} is not known here"
    server.queue("messages", Fault(status=401, message=said), times=20)
    server.queue("chat", Fault(status=401, message=said), times=20)
    llm = claude(server) if provider == "anthropic" else OpenAILLM("gpt-test", client=server.openai_client())
    with pytest.raises(GenerationStoppedError, match=r"the key \[key\] is not known here") as caught:
        generate_questions(make_chunks(3), llm, output_dir=tmp_path)
    shown = "".join(traceback.format_exception(caught.value)).lower()
    assert form(SECRET).lower() not in shown
    assert SECRET.lower() not in shown


def test_a_password_in_an_address_is_in_no_message_no_record_and_no_fingerprint(tmp_path):
    url = "http://me:s3cret-word@127.0.0.1:9/v1?api_key=s3cret-too"
    llm = OpenAILLM("gpt-test", base_url=url, price=Price(0, 0))
    encoder = OpenAIEncoder("text-embedding-3-small", base_url=url, cache=tmp_path / "vectors.sqlite", price=0.0)
    assert encoder.fingerprint.endswith("server=http://127.0.0.1:9/v1)")
    with pytest.raises(TemporaryError) as caught:
        llm.send(llm.body(Request("system", "text", {})))
    shown = "".join(traceback.format_exception(caught.value)) + repr(llm) + repr(encoder) + encoder.fingerprint
    assert "s3cret" not in shown


@pytest.mark.parametrize("package", ["anthropic", "openai"])
def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "embedtune.llms.sdk.find_spec", lambda name: None if name == package else find(name), raising=True
    )
    make = {"anthropic": lambda: AnthropicLLM("claude-haiku-5-5"), "openai": lambda: OpenAILLM("m")}[package]
    with pytest.raises(OptionalDependencyError, match=rf"pip install 'embedtune\[{package}\]'"):
        make()


def test_the_text_half_needs_neither_torch_nor_an_sdk():
    code = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "anthropic", "openai"):
    sys.modules[name] = None
import embedtune.questions.generation, embedtune.llms.anthropic, embedtune.llms.openai
import embedtune.llms.local, embedtune.questions.round_trip, embedtune.questions.judge
embedtune.llms.local.TransformersLLM("any")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# What can go wrong, and what to do about it


@pytest.mark.parametrize(
    ("fault", "error", "maybe_paid"),
    [
        (Fault(status=429), TemporaryError, False),
        (Fault(status=529), TemporaryError, False),
        (Fault(status=408), TemporaryError, False),
        (Fault(drop=True), TemporaryError, True),
        (Fault(truncate=True), TemporaryError, True),
        (Fault(body=b"<html>"), TemporaryError, True),
        (Fault(body=b"{"), TemporaryError, True),
        (Fault(body=b"{}"), TemporaryError, True),
        (Fault(status=400), RequestError, None),
        (Fault(status=413), RequestError, None),
        (Fault(status=401), GenerationStoppedError, None),
        (Fault(status=403), GenerationStoppedError, None),
        (Fault(status=429, code="enforced_spend_limit_reached"), GenerationStoppedError, None),
    ],
)
@pytest.mark.parametrize("make", [claude, gpt])
def test_what_the_sdks_raise_is_turned_into_what_to_do(server, make, fault, error, maybe_paid):
    server.queue("messages", fault)
    server.queue("chat", fault)
    llm = make(server)
    with pytest.raises(error) as caught:
        llm.send(llm.body(REQUEST))
    assert type(caught.value) is error
    if maybe_paid is not None:
        assert caught.value.maybe_paid is maybe_paid


def test_a_server_that_is_not_there_was_not_paid():
    client = anthropic.Anthropic(api_key="sk-ant-x", base_url="http://127.0.0.1:9")
    llm = AnthropicLLM("claude-haiku-5-5", client=client)
    with pytest.raises(TemporaryError) as caught:
        llm.send(llm.body(REQUEST))
    client.close()
    assert caught.value.maybe_paid is False


def test_an_error_of_ones_own_code_is_left_as_it_is():
    with pytest.raises(ZeroDivisionError):
        call("anthropic", lambda: 1 // 0)
    with pytest.raises(TypeError, match="unexpected"):
        call("anthropic", lambda: sorted([], unexpected=1))


# OpenAI, and servers like it


def test_openai_answers_in_the_schema(server, tmp_path):
    chunks = make_chunks(8)
    llm = gpt(server, price=Price(1.0, 4.0))
    questions = generate_questions(chunks, llm, output_dir=tmp_path)
    assert questions.failed == {}
    assert questions.cost_usd > 0
    request = server.log[-1]["body"]
    assert request["response_format"]["json_schema"]["strict"] is True
    assert "max_completion_tokens" in request
    before = len(server.log)
    assert generate_questions(chunks, llm, output_dir=tmp_path) == questions
    assert len(server.log) == before


def test_a_compatible_server_gets_the_old_name_of_the_limit_and_no_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-openai")
    server.key = "none"
    llm = OpenAILLM("gpt-test", base_url=f"{server.url}/v1")
    llm.prepare()
    assert llm.read(llm.send(llm.body(REQUEST))).text
    assert server.log[-1]["body"]["max_tokens"] == 4096
    assert "secret" not in json.dumps(server.log[-1]["headers"])
    llm._client.close()


def test_an_unknown_model_of_openai_is_refused_before_the_first_paid_call(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", server.key)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    llm = OpenAILLM("gpt-none")
    with pytest.raises(GenerationStoppedError, match=r"'gpt-none' is unknown.*It has: gpt-test"):
        generate_questions(make_chunks(2), llm, output_dir=tmp_path)
    assert server.num_requests("chat") == 0
    llm._client.close()


@pytest.mark.parametrize(
    ("reason", "problem"), [("length", "cut off"), ("content_filter", "refused"), ("refusal", "refused")]
)
def test_openai_says_why_a_reply_is_not_whole(server, reason, problem):
    server.queue("chat", Fault(stop_reason=reason))
    llm = gpt(server)
    assert llm.read(llm.send(llm.body(REQUEST))).problem == problem


def test_the_server_plays_embeddings_with_their_limits(server):
    client = server.openai_client()
    found = client.embeddings.create(model="text-embedding-3-large", input=["a", "b", "a"], dimensions=8)
    first, second, third = (row.embedding for row in sorted(found.data, key=lambda row: row.index))
    assert first == third != second
    for texts in ([], ["a", ""], ["a"] * 2049, ["word " * 8193], ["word " * 8000] * 40):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="text-embedding-3-large", input=texts)


# Local models


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder with a causal language model of random weights, and its tokenizer with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("local-llm")
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} [SEP] {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_local_model_answers_in_groups_and_nothing_breaks(local, tmp_path, monkeypatch):
    llm = TransformersLLM(local, batch_size=4, max_tokens=12)
    chunks = make_chunks(10, words=10)
    questions = generate_questions(chunks, llm, output_dir=tmp_path)
    assert len(questions.failed) == 10  # random weights write no JSON and do not stop
    assert set(questions.failed.values()) <= {"cut off", "malformed reply"}
    assert questions.cost_usd == 0
    monkeypatch.setattr(TransformersLLM, "send_all", None)
    assert generate_questions(chunks, llm, output_dir=tmp_path) == questions


def test_a_local_model_gets_as_many_prompts_at_once_as_it_may(local, tmp_path, monkeypatch):
    sizes, original = [], TransformersLLM.send_all

    def send_all(self, bodies):
        sizes.append(len(bodies))
        return original(self, bodies)

    monkeypatch.setattr(TransformersLLM, "send_all", send_all)
    generate_questions(
        make_chunks(10, words=5), TransformersLLM(local, batch_size=4, max_tokens=2), output_dir=tmp_path
    )
    assert sizes == [4, 4, 2]


def test_a_reply_does_not_depend_on_what_stands_beside_it(local):
    llm = TransformersLLM(local, max_tokens=8)
    bodies = [llm.body(Request("Ask.", "word " * n, SCHEMA)) for n in (1, 40, 7)]
    together = llm.send_all(bodies)
    assert [llm.send(body) for body in bodies] == together


def test_a_reply_ends_at_the_first_end_token(local):
    llm = TransformersLLM(local, max_tokens=20)
    model, tokenizer = llm._loaded
    end = tokenizer.eos_token_id
    from embedtune.llms.local import _end_tokens, _reply

    words = tokenizer("press the pump", add_special_tokens=False)["input_ids"]
    whole = _reply(tokenizer, [*words, end, *words], _end_tokens(model, tokenizer), num_read=5)
    assert (whole["text"], whole["is_whole"], whole["output_tokens"]) == ("press the pump", True, 3)
    cut = _reply(tokenizer, words, _end_tokens(model, tokenizer), num_read=5)
    assert llm.read(cut) == Completion("press the pump", 5, 3, problem="cut off")


@pytest.mark.parametrize("template", ["none", "no system"])
def test_models_without_a_template_or_a_system_role_are_asked_all_the_same(local, template):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local)
    tokenizer.chat_template = (
        None
        if template == "none"
        else "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "user : {{ messages[0]['content'] }}"
    )
    side = tokenizer.padding_side
    model = AutoModelForCausalLM.from_pretrained(local)
    llm = TransformersLLM(model, tokenizer=tokenizer, max_tokens=3)
    reply = llm.send(llm.body(REQUEST))
    assert reply["input_tokens"] > 100
    assert tokenizer.padding_side == side
    assert llm.name == local


def test_each_client_is_an_llm(server, local):
    for llm in (claude(server), gpt(server), TransformersLLM(local)):
        assert isinstance(llm, LLM)


# Prices


def test_prices_are_found_under_the_names_that_clouds_give():
    for name in ("claude-haiku-4-5", "claude-haiku-4-5-20251001", "anthropic.claude-haiku-4-5-20251001-v1:0"):
        assert listed_price(name, "anthropic") == Price(1.0, 5.0)
        assert AnthropicLLM(name).price == Price(1.0, 5.0)
    assert listed_price("us.anthropic.claude-haiku-4-5-20251001-v1:0", "anthropic") == Price(1.0, 5.0)
    for name in ("claude-haiku-4", "my-claude-haiku-4-5", "gpt-test"):
        assert listed_price(name, "anthropic") is None


def test_the_price_is_that_of_short_requests():
    assert listed_price("claude-haiku-5-5", "anthropic") == Price(0.1, 0.5)


def test_a_price_depends_on_who_sells_the_model():
    assert OpenAILLM("gpt-4o-mini").price == Price(0.15, 0.6)
    assert OpenAILLM("gpt-4o-mini", base_url="http://localhost:11434/v1").price is None
    assert OpenAILLM("gpt-4o-mini", price=Price(1, 2)).price == Price(1, 2)


def test_without_genai_prices_the_price_is_unknown(monkeypatch):
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert AnthropicLLM("claude-haiku-5-5").price is None


def test_prices_never_ask_the_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert listed_price("claude-opus-5-5", "anthropic") == Price(4.0, 20.0)


def test_costs_are_rounded_up_to_whole_microdollars():
    assert paid(Price(0.1, 0.5), Completion("", 1, 0)) == 1
    assert paid(Price(0.1, 0.5), Completion("", 10, 0)) == 1
    assert paid(Price(2.0, 10.0), Completion("", 3, 1)) == 16
    assert paid(Price(2.0, 10.0), Completion("", 3, 1), in_batch=True) == 8
    assert paid(None, Completion("", 3, 1)) == 0
