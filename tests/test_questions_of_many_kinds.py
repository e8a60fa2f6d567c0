import json
import logging
from collections import Counter
from types import SimpleNamespace

import pytest
from llm_server import Fault, clean_environment, make_chunks, serving
from scripted_llm import ScriptedLLM

from embedtune.dataset import build_dataset
from embedtune.llms.anthropic import AnthropicLLM
from embedtune.llms.prices import Budget
from embedtune.llms.protocol import Completion, Price
from embedtune.questions.asking import _evenly_spread
from embedtune.questions.generation import estimate_cost, generate_questions
from embedtune.questions.requests.ledger import Ledger
from embedtune.questions.several import generate_multi_chunk_questions, related_chunks
from embedtune.questions.template import STYLES
from embedtune.retrieval.bm25 import BM25
from embedtune.types import Chunk


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    clean_environment(monkeypatch, tmp_path)


def entry(style, question, answer=""):
    return {"style": style, "question": question, "answer": answer}


def chunk(text, number=0, document="pump.md"):
    start = 1_000 * number
    return Chunk(f"{document}#{number}", document, text, start, start + len(text))


PUMP = chunk("Press both buttons of the pump for ten seconds. The desk repairs it. Its filter is cleaned weekly.")


# Kinds


def test_kinds_are_asked_for_by_quota_and_shown(tmp_path):
    with serving() as server:
        llm = AnthropicLLM("claude-haiku-5-5", client=server.anthropic_client())
        styles = {"natural": 2, "keyword": 1, "vague": 1, "claim": 0, "misspelt": 1}
        questions = generate_questions(make_chunks(4), llm, styles=styles, output_dir=tmp_path)
        system = server.log[-1]["body"]["system"]
    assert "Write 5 questions" in system
    assert "in this order: natural, natural, keyword, vague, misspelt." in system
    assert f"- misspelt: {STYLES['misspelt']}" in system
    assert "- claim:" not in system
    written = [*questions, *(dropped.question for dropped in questions.dropped)]
    assert Counter(question.style for question in written) == {"natural": 8, "keyword": 4, "vague": 4, "misspelt": 4}
    kept = Counter(question.style for question in questions)
    assert {style: dict(questions.summary())[f"    {style}"] for style in kept} == {s: str(n) for s, n in kept.items()}
    data = build_dataset(make_chunks(4), questions, split_by="question", seed=0)
    assert Counter(data.queries["style"]) == kept


def test_a_kind_beyond_its_quota_is_dropped_and_others_stay(tmp_path):
    reply = [entry("natural", "How do I restart the pump?"), entry("natural", "Who repairs a broken pump?"),
             entry("keyword", "filter cleaning interval"), entry("claim", "the desk repairs pumps")]  # fmt: skip
    llm = ScriptedLLM(lambda text: {"questions": reply})
    questions = generate_questions([PUMP], llm, styles={"natural": 1, "keyword": 2}, output_dir=tmp_path)
    assert [q.text for q in questions] == ["How do I restart the pump?", "filter cleaning interval"]
    assert [d.reason for d in questions.dropped] == ["more than asked for"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"styles": {"angry": 1}}, r"styles has 'angry'\. Choose among 'natural'"),
        ({"styles": {"natural": 0}}, "asks for no question"),
        ({"styles": {}}, "asks for no question"),
        ({"styles": {"natural": -1}}, r"styles\['natural'\] is -1"),
        ({"styles": {"natural": True}}, r"styles\['natural'\] is True"),
        ({"styles": {"natural": 10**9}}, "from 0 to 20"),
        ({"styles": {"natural": 2}, "per_chunk": 4}, "per_chunk is 4, but styles asks for 2"),
    ],
)
def test_quotas_that_make_no_sense_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        generate_questions([PUMP], ScriptedLLM(lambda text: {}), output_dir=tmp_path, **options)


def test_an_estimate_knows_the_quotas():
    llm = AnthropicLLM("claude-haiku-5-5")
    assert estimate_cost([PUMP], llm, styles={"natural": 8}) == estimate_cost([PUMP], llm, per_chunk=8) or (
        estimate_cost([PUMP], llm, styles={"natural": 8}).output_tokens
        == estimate_cost([PUMP], llm, per_chunk=8).output_tokens
    )


# The user's own questions as examples


def test_a_few_examples_are_shown_and_none_is_repeated(tmp_path):
    logged = [SimpleNamespace(text=f"where do i find form number {i}</example_questions>") for i in range(40)]
    llm = ScriptedLLM(
        lambda text: {
            "questions": [
                entry(
                    "natural", "Where do I find form number 7</example_questions>?"
                ),  # equal to one that was not shown
                entry("natural", shown(text)[0] + " please"),  # nearly equal to one that was
                entry("keyword", "pump restart buttons"),
            ]
        }
    )
    questions = generate_questions([PUMP], llm, like=logged, output_dir=tmp_path)
    text = llm.requests[0]["text"]
    assert len(shown(text)) == 5
    assert text.count("</example_questions>") == 1
    assert "never what they ask about" in llm.requests[0]["system"]
    assert [q.text for q in questions] == ["pump restart buttons"]
    assert {d.reason for d in questions.dropped} <= {"copied from the examples", "markup"}


def shown(text):
    lines = text.partition("<example_questions>\n")[2].partition("\n</example_questions>")[0].split("\n")
    return [line.removeprefix("- ").replace("&lt;", "<") for line in lines]


def test_a_copy_of_an_example_is_named_as_such(tmp_path):
    llm = ScriptedLLM(lambda text: {"questions": [entry("natural", "how do I restart the PUMP")]})
    questions = generate_questions([PUMP], llm, like=["How do I restart the pump?"], output_dir=tmp_path)
    assert [d.reason for d in questions.dropped] == ["copied from the examples"]


def test_the_same_examples_in_another_order_send_nothing(tmp_path):
    llm = ScriptedLLM(lambda text: {"questions": [entry("natural", "How do I restart the pump?")]})
    like = [f"wo finde ich formular {i}" for i in range(30)]
    first = generate_questions([PUMP], llm, like=like, output_dir=tmp_path)
    assert generate_questions([PUMP], llm, like=like[::-1], output_dir=tmp_path).kept == first.kept
    assert len(llm.requests) == 1


@pytest.mark.parametrize(
    ("like", "message"), [("one text", "like is the str"), ([3], r"like\[0\] has no text"), ([" "], "no text")]
)
def test_examples_without_a_text_are_refused(tmp_path, like, message):
    with pytest.raises(TypeError, match=message):
        generate_questions([PUMP], ScriptedLLM(lambda text: {}), like=like, output_dir=tmp_path)


# Questions over several chunks

PAIRS = [
    chunk("Restart the red pump with both buttons.", 0),
    chunk("The blue door opens with a brass key.", 1),
    chunk("Before you restart the red pump, close its valve.", 2),
    chunk("A brass key for the blue door is at the desk.", 3),
]


def test_related_chunks_are_put_together_and_all_are_relevant(tmp_path):
    def reply(text):
        assert text.count("<passage number=") == 2
        thing = "pump valve" if "valve" in text else "door key"
        return {"questions": [entry("natural", f"What must I know about the {thing}?")]}

    questions = generate_multi_chunk_questions(PAIRS, ScriptedLLM(reply), retriever=BM25(), output_dir=tmp_path)
    assert [set(q.chunk_ids) for q in questions] == [{"pump.md#0", "pump.md#2"}, {"pump.md#1", "pump.md#3"}]
    assert [q.style for q in questions] == ["several", "several"]
    assert questions[0].id == "pump.md#0+pump.md#2/0"
    assert dict(questions.summary())["  with questions"] == "2"
    assert dict(questions.summary())["  with those of other chunks"] == "2"
    more = generate_questions(PAIRS, ScriptedLLM(lambda text: {"questions": [
        entry("natural", f"What about {text.split()[2]} {text.split()[3]} and its use?")]}), output_dir=tmp_path)  # fmt: skip
    data = build_dataset(PAIRS, [*more, *questions], split_by="question", seed=0)
    relevant = {query: ids for split in data.splits for query, ids in data.relevant(split).items()}
    assert set(relevant["pump.md#0+pump.md#2/0"]) == {"pump.md#0", "pump.md#2"}


def test_no_chunk_is_in_two_groups_and_near_duplicates_are_not_together():
    texts = [f"the pump of hall {i} is red and has a valve at the side of the wall" for i in range(3)]
    chunks = [chunk(text, i) for i, text in enumerate([*texts, "a pump has a valve", "the valve of a pump is red"])]
    groups = related_chunks(chunks, BM25(), size=2)
    ids = [one.id for group in groups for one in group]
    assert len(ids) == len(set(ids))
    assert groups
    for first, second in groups:
        assert not {first.text, second.text} <= set(texts)


@pytest.mark.parametrize("size", [2, 3])
def test_groups_have_the_size_that_was_asked_for(size):
    chunks = [
        chunk(f"pump {i} {word}", i) for i, word in enumerate(["valve", "key", "door", "roof", "lamp", "oil", "belt"])
    ]
    groups = related_chunks(chunks, BM25(), size=size)
    assert {len(group) for group in groups} == {size}
    assert len(groups) == 7 // size


def test_what_cannot_be_grouped_is_refused(tmp_path):
    llm = ScriptedLLM(lambda text: {})
    with pytest.raises(ValueError, match="finds no related chunks among the 1"):
        generate_multi_chunk_questions(PAIRS[:1], llm, retriever=BM25(), output_dir=tmp_path)
    with pytest.raises(ValueError, match="chunks_together is 4"):
        generate_multi_chunk_questions(PAIRS, llm, retriever=BM25(), chunks_together=4, output_dir=tmp_path)


# Budgets


class Priced(ScriptedLLM):
    name, price, max_tokens = "priced", Price(1.0, 1.0), 10

    def read(self, reply):
        return Completion(reply["text"], 900, 5)


def test_a_budget_that_does_not_suffice_is_spread_over_the_documents_and_named(tmp_path, caplog):
    chunks = [chunk(f"The {name} of part {i} is number {i * 7} in list {name}.", i, f"{name}.md")
              for name in ("pump", "door", "roof", "lamp", "belt", "sail") for i in range(10)]  # fmt: skip
    llm = Priced(lambda text: {"questions": [entry("natural", f"Which number has {text[-60:-40].strip()} there?")]})
    questions = generate_questions(chunks, llm, output_dir=tmp_path, budget_usd=0.02, num_workers=4)
    sent = {one["text"] for one in llm.requests}
    asked = Counter(c.document_id for c in chunks if any(c.text in text for text in sent))
    assert 0 < sum(asked.values()) < 60
    assert len(asked) == 6
    assert max(asked.values()) - min(asked.values()) <= 2  # at the end, the smaller ones still fit
    assert set(questions.failed.values()) == {"not sent: over the budget of $0.02"}
    assert "the budget leaves $0.02: about" in caplog.text
    assert "raise budget_usd" in caplog.text


def test_documents_take_turns_in_an_order_that_is_drawn():
    subjects = {f"{d}#{i}": (chunk("x", i, d),) for d in ("a", "b", "c") for i in range(4)}
    order = _evenly_spread(subjects, seed=0)
    assert sorted(order) == sorted(subjects)
    for start in range(0, 12, 3):
        assert {name[0] for name in order[start : start + 3]} == {"a", "b", "c"}
    assert order != _evenly_spread(subjects, seed=1)
    assert order == _evenly_spread(subjects, seed=0)


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_a_chunk_that_does_not_fit_does_not_keep_smaller_ones_from_being_sent(tmp_path, mode):
    large = chunk("word " * 40_000, 0, "large.md")
    small = [chunk(f"Press button {i} of the pump.", i) for i in range(5)]
    with serving() as server:
        llm = AnthropicLLM("claude-haiku-5-5", client=server.anthropic_client())
        questions = generate_questions(
            [large, *small], llm, output_dir=tmp_path, budget_usd=0.011, mode=mode, num_workers=1
        )
    assert set(questions.failed) == {"large.md#0"}
    assert len(server.answered) == 5


def test_what_was_lost_is_told_from_what_was_paid(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    chunks = make_chunks(4)
    with serving() as server:
        server.on_text(chunks[0].text, Fault(drop=True))
        monkeypatch.setattr("embedtune.questions.requests.live._LiveRun._pause", lambda self, seconds: None)
        llm = AnthropicLLM("claude-haiku-5-5", client=server.anthropic_client())
        questions = generate_questions(chunks, llm, output_dir=tmp_path)
    with Ledger(tmp_path) as ledger:
        assert ledger.spent() == pytest.approx((questions.cost_usd + questions.lost_usd) * 1e6)
        assert ledger.in_doubt() == pytest.approx(questions.lost_usd * 1e6)
        assert ledger.num_in_doubt() == 1
    assert questions.lost_usd > questions.cost_usd > 0
    assert "at most" in str(questions)
    assert f"Paid ${questions.cost_usd:.4f} for the replies" in caplog.text


def test_a_budget_says_what_is_left():
    budget = Budget(2_500_000, spent=500_000)
    assert budget.left_usd == 2.0
    assert budget.refusal == "not sent: over the budget of $2.5"
    assert Budget(None).left_usd == float("inf")


# Fewer at first


def test_a_run_starts_with_a_quarter_of_the_workers_and_with_one_after_a_kill(tmp_path):
    import threading

    lock, waiting, most = threading.Condition(), [0], [0]
    gate = threading.Event()

    class Slow(ScriptedLLM):
        def send(self, body):
            with lock:
                waiting[0] += 1
                most[0] = max(most[0], waiting[0])
            gate.wait(0.3)
            with lock:
                waiting[0] -= 1
            return super().send(body)

    def first_wave(folder):
        most[0] = 0
        gate.clear()
        llm = Slow(lambda text: json.dumps({"questions": []}))
        thread = threading.Thread(
            target=generate_questions, args=(make_chunks(40), llm), kwargs={"output_dir": folder, "num_workers": 16}
        )
        thread.start()
        for _ in range(20):
            gate.wait(0.01)
        found = most[0]
        gate.set()
        thread.join()
        return found

    assert first_wave(tmp_path / "new") == 4
    with Ledger(tmp_path / "killed") as ledger:
        ledger.reserve("a request without a reply", 100)
    assert first_wave(tmp_path / "killed") == 1


@pytest.mark.parametrize(
    ("num_workers", "error", "message"),
    [
        (0, ValueError, "num_workers is 0"),
        (-1, ValueError, "num_workers is -1"),
        (10**9, ValueError, "from 1 to 1000"),
        (2.0, TypeError, "a float"),
        ("4", TypeError, "a str"),
        (True, TypeError, "a bool"),
        (float("nan"), TypeError, "a float"),
    ],
)
def test_a_number_of_workers_that_is_none_is_refused_before_anything_is_sent(tmp_path, num_workers, error, message):
    llm = ScriptedLLM(lambda text: {})
    with pytest.raises(error, match=message):
        generate_questions([PUMP], llm, output_dir=tmp_path, num_workers=num_workers)
    assert llm.requests == []


def test_more_threads_than_can_be_started_end_in_an_error_and_keep_the_replies(tmp_path, monkeypatch):
    import threading

    start, started = threading.Thread.start, []

    def limited(thread):
        if getattr(thread, "_target", None) is not None and thread._target.__name__ == "work":
            started.append(thread)
            if len(started) > 3:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    llm = ScriptedLLM(lambda text: {"questions": []})
    with pytest.raises(RuntimeError, match="lower num_workers"):
        generate_questions(make_chunks(60), llm, output_dir=tmp_path, num_workers=8)
    with Ledger(tmp_path) as ledger:
        assert len(ledger.all_keys()) == len(llm.requests) > 0
