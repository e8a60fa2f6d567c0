from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from scripted_llm import ScriptedLLM
from test_retriever import QUESTIONS, TEXTS, chunks_of

import embedtune as et
from embedtune.retrieval.hits import Hit
from embedtune.retrieval.retriever import Retriever
from embedtune.serving.feedback import FeedbackLog, LoggedQuestion, distinct_questions
from embedtune.text import text_hash

torch.set_num_threads(1)

FOUND = [Hit(f"c{i}", 1 - i / 20, f"text {i}") for i in range(12)]


@pytest.fixture
def log(tmp_path):
    return FeedbackLog(tmp_path / "log.sqlite")


def test_what_was_recorded_is_read_back(log):
    number = log.record("where is it", FOUND[:2], model="abc", outcome="answered", cited=["c1"])
    (question,) = log.questions()
    assert question.number == number
    assert (question.text, question.retrieved, question.model) == ("where is it", (("c0", 1.0), ("c1", 0.95)), "abc")
    assert (question.outcome, question.cited, question.chunk_ids) == ("answered", ("c1",), ("c1",))
    assert (question.thumbs_up, question.named, question.named_by) == (None, None, "")
    assert len(log) == 1


def test_the_last_opinion_counts_and_earlier_ones_stay(log):
    number = log.record("where is it", FOUND)
    log.name_chunks(number, ["c3"], by="scripted")
    log.name_chunks(number, ["c11", "c4"], by="Ada")
    log.rate(number, thumbs_up=True)
    log.rate(number, thumbs_up=False)
    (question,) = log.questions()
    assert (question.named, question.named_by, question.thumbs_up) == (("c11", "c4"), "Ada", False)
    with sqlite3.connect(log.path) as file:
        assert file.execute("SELECT COUNT(*) FROM opinion").fetchone() == (4,)


@pytest.mark.parametrize(
    ("outcome", "thumbs_up", "cited", "named", "is_miss"),
    [
        ("answered", None, ["c0"], None, False),
        ("answered", True, ["c0"], None, False),
        ("answered", False, ["c0"], None, True),
        ("answered", False, ["c0"], ["c1"], False),  # found, and not used
        ("answered", None, ["c0"], ["c10"], True),
        ("not in the documents", None, [], None, True),
        ("not in the documents", None, [], [], False),  # and that is so
        ("not in the documents", None, [], ["c10"], True),
        ("not in the documents", None, [], ["c10", "c9"], False),
        ("failed", None, [], None, False),
        ("", None, [], None, False),
        ("", None, [], ["c11"], True),
    ],
)
def test_a_miss_is_a_question_whose_right_chunk_was_not_among_the_first_ten(
    log, outcome, thumbs_up, cited, named, is_miss
):
    number = log.record("where is it", FOUND, outcome=outcome, cited=cited)
    if thumbs_up is not None:
        log.rate(number, thumbs_up=thumbs_up)
    if named is not None:
        log.name_chunks(number, named, by="Ada")
    assert [miss.number for miss in log.misses()] == [number] * is_miss


def test_how_far_down_a_chunk_may_stand_is_chosen(log):
    log.name_chunks(log.record("where is it", FOUND), ["c4"], by="Ada")
    assert len(log.misses(k=4)) == 1
    assert len(log.misses(k=5)) == 0


def test_questions_to_train_on_are_the_confirmed_ones_each_once(log):
    log.record("cited only", FOUND, outcome="answered", cited=["c0"])
    log.rate(log.record("cited and disliked", FOUND, outcome="answered", cited=["c0"]), thumbs_up=False)
    log.name_chunks(log.record("no chunk answers it", FOUND), [], by="Ada")
    log.name_chunks(log.record("Where is it?", FOUND), ["c3"], by="Ada")
    log.name_chunks(log.record("where IS it", FOUND), ["c5", "c6"], by="Ada")
    log.rate(log.record("liked", FOUND, outcome="answered", cited=["c0"]), thumbs_up=True)
    assert [(q.text, q.chunk_ids) for q in log.to_questions()] == [("where IS it", ("c5", "c6")), ("liked", ("c0",))]
    assert log.to_questions() == log.to_questions()


def test_a_cut_off_beyond_what_was_logged_is_refused_unless_the_chunk_was_found(log):
    log.record("where is it", FOUND, outcome="not in the documents")
    log.name_chunks(log.record("what is it", FOUND), ["c4"], by="Ada")
    assert [miss.text for miss in log.misses(k=20)] == ["where is it"]
    log.name_chunks(log.record("who is it", FOUND), ["c19"], by="Ada")
    assert [miss.text for miss in log.misses(k=12)] == ["where is it", "who is it"]
    with pytest.raises(ValueError, match=r"Only 12 chunks were logged for question 3.*among the first 13"):
        log.misses(k=13)


def test_by_default_a_miss_is_judged_by_as_many_chunks_as_were_logged(log):
    log.name_chunks(log.record("where is it", FOUND[:3]), ["c9"], by="Ada")
    assert len(log.misses()) == 1


@pytest.mark.parametrize("later", [None, True, False])
def test_named_chunks_outlive_what_later_answers_to_the_same_question_cite(log, later):
    log.name_chunks(log.record("How do I open it?", FOUND, outcome="answered", cited=["c1"]), ["c0"], by="Ada")
    number = log.record("how do I open it", FOUND, outcome="answered", cited=["c1"])
    if later is not None:
        log.rate(number, thumbs_up=later)
    assert [question.chunk_ids for question in log.to_questions()] == [("c0",)]


def test_that_no_chunk_answers_a_question_outlives_later_citations(log):
    log.name_chunks(log.record("How do I open it?", FOUND), ["c0"], by="Ada")
    log.name_chunks(log.record("how do I open it", FOUND), [], by="Ada")
    log.record("how do I open it", FOUND, outcome="answered", cited=["c1"])
    assert distinct_questions(log.questions()) == []


def test_the_last_rating_counts_and_a_citation_is_not_confirmed_by_another_answer(log):
    log.rate(log.record("where", FOUND, outcome="answered", cited=["c1"]), thumbs_up=True)
    log.record("where", FOUND, outcome="answered", cited=["c2"])
    assert [question.chunk_ids for question in log.to_questions()] == [("c1",)]
    log.rate(log.record("where", FOUND, outcome="answered", cited=["c1"]), thumbs_up=False)
    assert log.to_questions() == []


def test_a_string_in_the_place_of_a_list_of_chunks_is_refused(log):
    with pytest.raises(TypeError, match=r"cited='c0' is a string. Pass a list: \['c0'\]"):
        log.record("where is it", FOUND, cited="c0")
    with pytest.raises(TypeError, match=r"chunks='c0' is a string"):
        log.name_chunks(log.record("where is it", FOUND), "c0", by="Ada")
    assert [question.named for question in log.questions()] == [None]


def test_texts_are_recognised_by_their_hash_and_not_stored(log):
    hits = [Hit("c0", 0.9, "press both"), Hit("c1", 0.8, "turn left")]
    log.name_chunks(log.record("where is it", hits), [Hit("c7", 0.1, "turn left")], by="Ada")
    (question,) = log.questions()
    assert question.digests == {
        "c0": text_hash("press both"),
        "c1": text_hash("turn left"),
        "c7": text_hash("turn left"),
    }
    assert not question.is_miss(2)
    assert question.is_miss(1)
    log.close()
    assert b"turn left" not in log.path.read_bytes()


def test_threads_that_record_at_once_lose_nothing(log):
    def work(name):
        for i in range(4):
            log.rate(log.record(f"{name} {i}", FOUND), thumbs_up=bool(i % 2))

    threads = [threading.Thread(target=work, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(q.text for q in log.questions()) == sorted(f"{name} {i}" for name in "abcd" for i in range(4))
    assert all(question.thumbs_up == bool(int(question.text.split()[1]) % 2) for question in log.questions())


def test_an_opinion_on_an_unknown_question_is_refused(log):
    with pytest.raises(ValueError, match="no question 7"):
        log.rate(7, thumbs_up=True)
    with pytest.raises(ValueError, match="no question 7"):
        log.name_chunks(7, ["c0"], by="Ada")


def test_what_is_taken_out_by_redaction_is_nowhere_in_the_file(tmp_path):
    log = FeedbackLog(tmp_path / "log.sqlite", redact=lambda text: text.replace("Turing", "[name]"))
    log.record("where does Turing sit", FOUND)
    assert log.questions()[0].text == "where does [name] sit"
    log.close()
    assert b"Turing" not in log.path.read_bytes()


def test_half_a_character_and_numpys_numbers_are_no_reason_to_lose_a_question(log):
    log.record("where is \ud83d it", [("c0", np.float32(0.5))])
    assert (log.questions()[0].text, log.questions()[0].retrieved) == ("where is ? it", (("c0", 0.5),))


def test_a_question_that_cannot_be_redacted_is_not_stored(tmp_path):
    def fails(text):
        raise RuntimeError("no names today")

    log = FeedbackLog(tmp_path / "log.sqlite", redact=fails)
    with pytest.raises(RuntimeError, match="no names today"):
        log.record("where does Turing sit", FOUND)
    assert len(log) == 0


def test_old_questions_are_forgotten_with_their_opinions_and_their_text(log, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 31 * 24 * 3600)
    old = log.record("an old secret", FOUND)
    log.name_chunks(old, ["c-old"], by="Ada")
    monkeypatch.setattr(time, "time", lambda: now)
    kept = log.record("a new question", FOUND)
    assert log.forget(older_than=timedelta(days=30)) == 1
    assert [question.number for question in log.questions()] == [kept]
    for path in log.path.parent.iterdir():  # while the file is open, and its log is beside it
        assert b"an old secret" not in path.read_bytes()
        assert b"c-old" not in path.read_bytes()
    log.close()
    content = log.path.read_bytes()
    assert b"an old secret" not in content
    assert b"c-old" not in content
    assert log.record("another", FOUND) > kept  # numbers are not used again


def test_rows_cannot_be_changed(log):
    log.rate(log.record("where is it", FOUND), thumbs_up=True)
    with sqlite3.connect(log.path) as file:
        for table, column in (("asked", "question"), ("opinion", "source")):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                file.execute(f"UPDATE {table} SET {column} = 'x'")


def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear Ada, " * 100)
    with pytest.raises(ValueError, match="is not a feedback log"):
        FeedbackLog(path)
    assert path.read_text().startswith("Dear Ada")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Cannot open"):
        FeedbackLog(tmp_path / "log.sqlite")


def test_a_full_disk_is_an_oserror_that_names_the_file_and_loses_nothing_before(log):
    number = log.record("where is it", FOUND)
    log._file._database().execute("PRAGMA max_page_count = 1")  # as if nothing were left
    with pytest.raises(OSError, match=r"Cannot open or write .*log.sqlite: .*full"):
        log.record("where is it " * 2000, FOUND)
    log.close()
    assert log.questions()[0].number == number
    log.record("and on it goes", FOUND)


@pytest.mark.parametrize("age", [timedelta(days=-1), 5, None])
def test_forgetting_the_future_is_refused(log, age):
    log.record("where is it", FOUND)
    with pytest.raises(ValueError, match=r"older_than=.* must be a timedelta of 0 or more"):
        log.forget(older_than=age)
    assert len(log) == 1


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "x", None, True])
def test_a_score_that_is_no_number_is_refused(log, score):
    with pytest.raises((ValueError, TypeError), match=r"score=.* must be a finite number"):
        log.record("where is it", [("c0", score)])
    assert len(log) == 0


@pytest.mark.parametrize("number", [0, -1, float("nan"), 10**30, "1", True])
def test_a_number_that_no_question_can_have_is_refused(log, number):
    with pytest.raises((ValueError, TypeError), match=r"number=.* must be"):
        log.rate(number, thumbs_up=True)


@pytest.mark.parametrize("k", [0, -1, 2.5, float("nan"), True])
def test_a_cut_off_that_is_no_count_is_refused(log, k):
    log.name_chunks(log.record("where is it", FOUND), ["c0"], by="Ada")
    with pytest.raises((ValueError, TypeError), match=r"k=.* must be"):
        log.misses(k=k)


def test_half_a_character_in_a_name_is_no_reason_to_lose_an_opinion(log):
    log.name_chunks(log.record("where is it", FOUND, outcome="\ud800"), ["c0"], by="A\ud800")
    assert (log.questions()[0].named_by, log.questions()[0].outcome) == ("A?", "?")


def test_what_threads_write_at_once_is_one_transaction_and_a_refused_row_is_one_threads_own(log):
    errors = []

    def work(i):
        try:
            log.record(f"question {i}", FOUND)
            log.rate(10_000 if i == 3 else 1, thumbs_up=True)
        except ValueError as err:
            errors.append(str(err))

    with log._file._writing:  # nobody writes until all wait
        threads = [threading.Thread(target=work, args=[i]) for i in range(8)]
        for thread in threads:
            thread.start()
        while len(log._file._waiting) < 8:
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert len(errors) == 1
    assert "no question 10000" in errors[0]
    assert {q.text for q in log.questions()} == {f"question {i}" for i in range(8)}
    assert [q.number for q in log.questions()] == list(range(1, 9))


# Labels and texts


def test_an_id_that_is_made_of_the_text_is_a_label_of_that_text(log, caplog):
    def data(*texts):
        rows = [(text, [f"{text} {number}" for number in range(2)]) for text in texts]
        return et.RetrievalDataset.from_pairs(rows, test_size=0, dev_size=0)

    before = data("press both", "turn left", "pull it")
    id_of = {text: chunk for chunk, text in before.corpus_texts.items()}
    for text in ("press both", "pull it"):
        log.name_chunks(log.record(f"how to {text}", [(id_of["turn left"], 0.5)]), [id_of[text]], by="Ada")
    log.record("how to turn it", [(id_of["turn left"], 0.5)], outcome="answered", cited=[id_of["turn left"]])
    log.rate(3, thumbs_up=True)
    asked = log.to_questions()
    assert not caplog.text
    assert [one.chunk_hashes for one in asked] == [(text_hash(t),) for t in ("press both", "pull it", "turn left")]
    chunks = cut("turn left", "press both", "wait")
    now = et.build_dataset(chunks, asked, test_size=0, dev_size=0)
    assert sorted(map(tuple, now.relevant("train").values())) == [("a#0",), ("a#1",)]
    assert "1 were set aside" in caplog.text


def cut(*texts):
    return [et.Chunk(f"a#{i}", "a", text, 40 * i, 40 * i + len(text)) for i, text in enumerate(texts)]


def test_labels_follow_their_text_when_documents_are_read_again_and_the_others_are_counted(log, caplog):
    before = cut("press both", "turn left", "pull it", "wait")
    hits = [Hit(chunk.id, 0.5, chunk.text) for chunk in before]
    log.name_chunks(log.record("how to turn it", hits), ["a#1"], by="Ada")  # its text is known from the hits
    log.name_chunks(log.record("how to pull it", hits[:1]), [hits[2]], by="Ada")
    log.name_chunks(log.record("how to press it", []), [before[0]], by="Ada")
    log.name_chunks(log.record("how to wait", hits), ["a#3"], by="Ada")
    assert not caplog.text
    log.name_chunks(log.record("who knows", [("a#0", 0.5)]), ["a#0"], by="Ada")
    assert "question 5 was named by its id alone" in caplog.text
    questions = log.to_questions()
    assert "1 of 5 labelled questions were left out" in caplog.text
    assert {q.chunk_ids for q in questions} == {("a#0",), ("a#1",), ("a#2",), ("a#3",)}
    now = cut("a notice", "press both", "turn left", "pull it")
    data = et.build_dataset(now, questions, test_size=0, dev_size=0)
    assert {data.query_texts[query]: chunks for query, chunks in data.relevant("train").items()} == {
        "how to press it": ["a#1"],
        "how to turn it": ["a#2"],
        "how to pull it": ["a#3"],
    }
    assert "3 of 4 questions were moved to the chunk that has their text now, and 1 were set aside" in caplog.text


def test_a_label_of_a_text_that_two_chunks_have_stays_where_it_is(log):
    log.name_chunks(log.record("how to turn it", []), [Hit("a#1", 0.5, "turn left")], by="Ada")
    for texts, place in (
        (("turn left", "turn left"), "a#1"),
        (("pull", "turn left", "turn left"), "a#1"),
        (("turn left", "wait", "turn left"), "a#0"),
    ):
        data = et.build_dataset(cut(*texts), log.to_questions(), test_size=0, dev_size=0)
        assert list(data.relevant("train").values()) == [[place]]


WRITER = """
import sys
from embedtune.serving.feedback import FeedbackLog
log = FeedbackLog(sys.argv[1])
for i in range(int(sys.argv[3])):
    number = log.record(f"{sys.argv[2]} {i}", [("c0", 0.5)])
    if i % 10 == 0:
        log.rate(number, thumbs_up=True)
    print(number, flush=True)
"""


def writers(path, *, num_processes, num_questions):
    return [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), f"writer-{i}", str(num_questions)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(num_processes)
    ]


@pytest.mark.parametrize("num_questions", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_two_processes_lose_no_question(tmp_path, num_questions):
    path = tmp_path / "log.sqlite"
    processes = writers(path, num_processes=2, num_questions=num_questions)
    numbers = [int(line) for process in processes for line in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    questions = FeedbackLog(path).questions()
    assert sorted(question.number for question in questions) == sorted(numbers)
    assert {q.text for q in questions} == {f"writer-{i} {n}" for i in range(2) for n in range(num_questions)}
    assert sum(question.thumbs_up is True for question in questions) == 2 * -(-num_questions // 10)


def test_a_killed_process_loses_nothing_that_was_recorded(tmp_path):
    path = tmp_path / "log.sqlite"
    (process,) = writers(path, num_processes=1, num_questions=100_000)
    numbers = [int(process.stdout.readline()) for _ in range(40)]
    process.kill()
    numbers += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    process.stdout.close()
    log = FeedbackLog(path)
    assert set(numbers) <= {question.number for question in log.questions()}
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    log.record("and on it goes", FOUND)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_log_that_was_opened_before_a_fork_is_opened_anew_behind_it(log, recwarn):
    log.record("before", FOUND)
    child = multiprocessing.get_context("fork").Process(target=log.record, args=("in the child", FOUND))
    child.start()
    child.join()
    assert child.exitcode == 0
    log.record("behind", FOUND)
    assert [question.text for question in log.questions()] == ["before", "in the child", "behind"]


# Suggestions


@pytest.fixture
def retriever(tiny_model):
    return Retriever.from_chunks(tiny_model, chunks_of(TEXTS))


def test_a_chunk_that_only_words_find_is_suggested(retriever, monkeypatch):
    question = "who may check the warm window"  # a random model does not know what is about what
    suggestion = et.suggest_chunk(question, retriever, k=10)
    right = next(i for i, text in TEXTS.items() if text == "check the warm window")
    assert right in [hit.id for hit in suggestion.candidates[:3]]
    assert suggestion.chunk_ids is None
    assert f"[{right}] check the warm window" in repr(suggestion)


def test_no_document_commands_the_terminal_on_which_a_suggestion_is_printed(tiny_model):
    retriever = Retriever.from_chunks(tiny_model, chunks_of({"a\x1b[2J": "\x1b]52;c;cHduZWQ=\x07the pump\x9b2J"}))
    shown = repr(et.suggest_chunk("where\x1b[31m", retriever, k=1))
    assert "the pump" in shown
    assert [c for c in shown if not c.isprintable()] == ["\n"]


def test_a_judge_chooses_among_the_candidates(retriever):
    llm = ScriptedLLM(lambda _: {"passages": [3, "1"]})
    suggestion = et.suggest_chunk(QUESTIONS[0], retriever, llm=llm, k=5)
    assert suggestion.chunk_ids == (suggestion.candidates[2].id, suggestion.candidates[0].id)
    assert suggestion.judge == "scripted"
    assert llm.requests[0]["text"].count("<passage ") == 5
    assert "chosen" in suggestion._repr_html_()


def test_an_unusable_verdict_is_none_and_not_an_empty_choice(retriever):
    assert et.suggest_chunk(QUESTIONS[0], retriever, llm=ScriptedLLM(lambda _: "well")).chunk_ids is None
    assert et.suggest_chunk(QUESTIONS[0], retriever, llm=ScriptedLLM(lambda _: {"passages": []})).chunk_ids == ()


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ({"passages": "1"}, "malformed"),
        ({"passages": None}, "malformed"),
        ({"passages": [True]}, "malformed"),
        ({"passages": [1, 99]}, "names passage 99, which was not shown"),
        ({"passage_numbers": [1]}, "malformed"),
        ({"error": "model is loading"}, "malformed"),
    ],
)
def test_an_unreadable_verdict_is_never_recorded_as_no_chunk(retriever, log, caplog, tmp_path, reply, problem):
    log.record("where is the pump", [("c0", 0.1)], outcome="not in the documents")
    assert (
        et.label_misses(log, retriever, llm=ScriptedLLM(lambda _: reply), output_dir=tmp_path, show_progress_bar=False)
        == 0
    )
    assert log.questions()[0].named is None
    assert len(log.misses()) == 1
    assert f"no usable reply for 1 of 1 questions: 1 {problem}." in caplog.text
    mended = ScriptedLLM(lambda _: {"passages": [1]})
    for num_found in (1, 0):
        assert et.label_misses(log, retriever, llm=mended, output_dir=tmp_path, show_progress_bar=False) == num_found
    assert len(mended.requests) == 1


def test_a_draft_in_think_is_not_the_verdict(retriever):
    llm = ScriptedLLM(lambda _: '<think>{"passages": []}?</think>{"passages": [1]}')
    suggestion = et.suggest_chunk(QUESTIONS[0], retriever, llm=llm)
    assert suggestion.chunk_ids == (suggestion.candidates[0].id,)


def test_misses_are_labelled_once_and_no_label_is_one_too(retriever, log, tmp_path):
    def reply(text):
        return {"passages": []} if "king" in text else {"passages": [1]}

    for question in ("where is the pump", "where is the pump", "who is the king"):
        log.record(question, [("c0", 0.1)], outcome="not in the documents")
    log.record("how to open it", [("c0", 0.1)], outcome="answered", cited=["c0"])
    llm = ScriptedLLM(reply)
    assert et.label_misses(log, retriever, llm=llm, output_dir=tmp_path, show_progress_bar=False) == 2
    assert len(llm.requests) == 2
    assert [question.named_by for question in log.questions()] == ["scripted"] * 3 + [""]
    assert et.label_misses(log, retriever, llm=llm, output_dir=tmp_path, show_progress_bar=False) == 0
    assert len(llm.requests) == 2
    assert [question.text for question in log.to_questions()] == ["where is the pump"]


def test_the_ledger_of_a_log_is_beside_it(retriever, tmp_path):
    for name, reply, named in (("one", {"passages": []}, ()), ("two", {}, None)):
        log = FeedbackLog(tmp_path / name / "log.sqlite")
        log.record("where is the pump", [("c0", 0.1)], outcome="not in the documents")
        et.label_misses(log, retriever, llm=ScriptedLLM(lambda _, reply=reply: reply), show_progress_bar=False)
        assert log.questions()[0].named == named
        assert (tmp_path / name / ".embedtune" / "ledger.sqlite").exists()


def test_verdicts_are_stored_before_they_are_recorded_and_several_are_asked_at_once(retriever, log, tmp_path):
    for question in ("where is the pump", "who cleans the filter", "how to open the door", "which lamp is red"):
        log.record(question, [("c0", 0.1)], outcome="not in the documents")
    meeting = threading.Barrier(2)

    def reply(_text):
        meeting.wait(timeout=10)  # broken unless two requests are under way together
        return {"passages": [1]}

    llm = ScriptedLLM(reply)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedbackLog, "name_chunks", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            et.label_misses(log, retriever, llm=llm, output_dir=tmp_path, num_workers=8, show_progress_bar=False)
    assert et.label_misses(log, retriever, llm=llm, output_dir=tmp_path, show_progress_bar=False) == 4
    assert len(llm.requests) == 4


def test_a_judge_that_says_nothing_usable_is_reported(retriever, log, caplog, tmp_path):
    log.record("where is the pump", [("c0", 0.1)], outcome="not in the documents")
    assert (
        et.label_misses(log, retriever, llm=ScriptedLLM(lambda _: "hm"), output_dir=tmp_path, show_progress_bar=False)
        == 0
    )
    assert "no usable reply for 1 of 1" in caplog.text
    assert log.questions()[0].named is None


def test_a_question_that_was_asked_and_cited_answers_for_itself():
    question = LoggedQuestion(1, None, "x", "answered", "", (("c0", 0.5),), ("c0",))
    assert question.chunk_ids == ("c0",)
