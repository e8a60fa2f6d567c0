"""Replies whatever they look like: read or dropped, never a crash, never slow."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llm_server import clean_environment
from scripted_llm import ScriptedLLM

from embedtune.llms.protocol import Completion
from embedtune.llms.structured import escaped, object_in, whole_number, without_thinking
from embedtune.questions.descriptions import _description
from embedtune.questions.generation import generate_questions
from embedtune.questions.judge import _verdicts
from embedtune.questions.parsing import parse_questions
from embedtune.text import same_question, storage_problem
from embedtune.types import Chunk, Question

CHUNK = Chunk("a#0", "a", "Press both buttons of the pump for ten seconds to restart it.", 0, 61)

PIECES = [
    '{"questions": [', '{"question": "', '"answer": "', '"style": ["natural"], ', '"style": "keyword", ', '"', "\\", '\\"',
    "{", "}", "[", "]", ",", ":", "<think>", "</think>", "```json\n", "1. ", "(1) ", "a) ", "① ", "- ", "**", "Q1: ",
    "Answer: ", "Pregunta 1: ", "How do I restart it?", "¿Cómo?", "如何重启\uff1f", "\ud83d", "\\ud83d", "\n", "\r\n", "\t", " ",
    "\u2028", "null", "1e999", "9" * 50, "NaN", "true", "?", "Would you like more?", "> ", "</passage>",
]  # fmt: skip
REPLIES = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=40).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["questions", "question", "answer", "style", "verdicts", "number"]) | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(REPLIES | VALUES.map(json.dumps))
@example('{"questions": [{"question": "How \\ud83d?", "style": ["natural"], "answer": {}}]}')
@example('{"questions": [{"question": "How?", "style": {"a": 1}}]}')
@example('{"verdicts": [{"number": 1' + "0" * 400 + ', "answerable": false}]}')
def test_any_reply_is_read_or_dropped_and_what_is_read_can_be_stored(reply):
    for candidate in parse_questions(reply) or []:
        for text in (candidate.text, candidate.answer, candidate.style):
            assert not storage_problem(text)
            assert text == " ".join(text.split())
        assert "<think>" not in candidate.text or "<think>" in without_thinking(reply)
    assert not storage_problem(_description(Completion(reply)))
    _verdicts(Completion(reply), [Question("q", "x", ("a#0",))])
    object_in(Completion(reply))


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_any_value_is_a_whole_number_or_none(value):
    number = whole_number(value)
    assert number is None or (isinstance(number, int) and number == float(value))


@settings(max_examples=25, deadline=None)
@given(reply=REPLIES)
def test_every_question_in_a_reply_is_kept_or_dropped_with_a_reason(tmp_path_factory, reply):
    folder = tmp_path_factory.mktemp("ledger")
    questions = generate_questions([CHUNK], ScriptedLLM(lambda text: reply), output_dir=folder, show_progress_bar=False)
    found = parse_questions(reply.encode("utf-8", "replace").decode())
    assert (found is None) == (list(questions.failed) == ["a#0"])
    assert len(questions) + len(questions.dropped) == len(found or [])
    assert all(question.text and not storage_problem(question.text) for question in questions)


SLOW = {
    "spaces in JSON": lambda n: '{"questions": [\n' + " " * n + "oops",
    "quotes that are escaped and never closed": lambda n: '"' + '\\"' * (n // 2) + "\\",
    "openings": lambda n: '{"a": [' * (n // 7),
    "commas and spaces": lambda n: (", " * (n // 2)) + "x",
    "a draft that never ends": lambda n: "<think>" * (n // 7),
    "drafts": lambda n: "<think></think>" * (n // 15) + "1. How?",
    "numbers": lambda n: "1. " * (n // 3),
    "stars": lambda n: "*" * n + "1. How?",
    "question marks": lambda n: "1. " + "?" * n + "a",
    "lines": lambda n: "How?\n" * (n // 5),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_reply_is_read_in_time_that_grows_with_its_length(kind):
    def seconds(function, text):
        start = time.process_time()
        function(text)
        return time.process_time() - start

    short, long = SLOW[kind](20_000), SLOW[kind](160_000)
    for function in (parse_questions, escaped, same_question):
        best = min(seconds(function, short) for _ in range(3))
        assert min(seconds(function, long) for _ in range(2)) < 0.1 + 24 * best, function.__name__


def test_a_document_of_angle_brackets_and_spaces_is_escaped_in_no_time():
    start = time.process_time()
    assert escaped("<" + " " * 200_000 + "x") == "<" + " " * 200_000 + "x"
    assert escaped("<  /  passage>") == "&lt;  /  passage>"
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("So: 1. Is it a draft?\n</think>\n1. How do I restart it?", ["How do I restart it?"]),
        ("<THINK>1. A draft?</THINK>1. How do I restart it?", ["How do I restart it?"]),
        ("<think>1. A draft that never ends?", None),
        ('{"questions": [{"question": "What does </think> end?"}]}', ["What does </think> end?"]),
        ('{"questions": [{"question": "A \\ud83d pump?"}]}', ["A \ufffd pump?"]),
        ("1. A \ud83d pump?", ["A \ufffd pump?"]),
        ("I cannot do this.\nWould you like me to try something else?", None),
    ],
)
def test_drafts_offers_and_halves_of_characters_are_no_questions(reply, expected):
    found = parse_questions(reply)
    assert (found and [candidate.text for candidate in found]) == expected


@pytest.fixture(autouse=True, scope="module")
def _environment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch, tmp_path_factory.mktemp("environment"))
        yield
