"""What a notebook shows: a table of each result, holding what its text holds, with everything escaped."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from bs4 import BeautifulSoup
from datasets import Dataset

import embedtune as et
from embedtune.corpus.chunking import Chunks
from embedtune.evaluation.record import Forgetting
from embedtune.models.selfcheck import Check, ModelReport
from embedtune.questions.records import Questions, Review
from embedtune.retrieval.hits import Hit, Hits
from embedtune.serving.answer import Answer
from embedtune.serving.feedback import LoggedQuestion, LoggedQuestions
from embedtune.tables import html_table
from embedtune.training.experiments.merging import Merge

HOSTILE = "<script>alert(1)</script>"


def cells(html):
    return [
        [cell.text for cell in row.find_all(["td", "th"])] for row in BeautifulSoup(html, "html.parser").find_all("tr")
    ]


def chunk(name, text):
    return et.Chunk(f"{name}#0", name, text, 0, len(text))


def question(name, text):
    return et.Question(f"{name}#0/0", text, (f"{name}#0",), style="literal", answer=HOSTILE)


def logged(text, **said):
    time = datetime(2026, 5, 1, 12, 30, tzinfo=timezone.utc)
    return LoggedQuestion(1, time, text, said.pop("outcome", ""), "f", (("a#0", 0.5),), said.pop("cited", ()), **said)


def dataset():
    pairs = [(f"press {i}", [f"how to press {i}", f"what is {i}"]) for i in ("pump", "door", "lamp", "roof")]
    return et.RetrievalDataset.from_pairs(pairs, test_size=0.5, dev_size=0)


def everything():
    data = dataset()
    found = Hits([Hit("a#0", 0.5, HOSTILE, headings=("Pump", "Restart"), similarity=0.25, words=0.25)])
    evaluation = et.TopKEvaluator(data, k=(1, 2)).evaluate(et.BM25(), name=HOSTILE)
    kept = Questions((question("a", HOSTILE),), (), {"b#0": HOSTILE}, (chunk("a", HOSTILE), chunk("b", "b")), None)
    return {
        "Evaluation": evaluation,
        "Verdict": et.compare(evaluation, evaluation, num_resamples=10),
        "Forgetting": Forgetting(et.compare(evaluation, evaluation, num_resamples=10), margin=0.05),
        "Documents": et.read_documents(Dataset.from_list([{"text": HOSTILE}])),
        "Chunks": Chunks([chunk("a", HOSTILE)]),
        "Hits": found,
        "LoggedQuestions": LoggedQuestions([logged(HOSTILE)]),
        "RetrievalDataset": data,
        "Questions": kept,
        "Review": Review(((question("a", HOSTILE), chunk("a", "two\nlines")),)),
        "ModelReport": ModelReport(
            (Check("pooling", False, HOSTILE, "Load it again."), Check("prompts", True, "none"))
        ),
    }


@pytest.fixture(scope="module")
def objects():
    return everything()


@pytest.mark.parametrize("name", everything())
def test_every_result_shows_as_a_table_and_runs_nothing(name, objects):
    html = objects[name]._repr_html_()
    soup = BeautifulSoup(html, "html.parser")
    assert soup.find("table")
    assert not soup.find("script")
    assert name in ("RetrievalDataset", "Forgetting") or HOSTILE in soup.text


def test_hits_show_what_their_scores_are_made_of():
    rows = cells(everything()["Hits"]._repr_html_())
    assert rows == [["score", "vectors", "words", "chunk", "text"], ["0.50", "0.25", "0.25", "Pump > Restart", HOSTILE]]


def test_a_log_shows_what_people_said_about_each_question():
    asked = [
        logged("one", outcome="answered", cited=("a#0", "b#0"), thumbs_up=True),
        logged("two", thumbs_up=False, named=()),
        logged("three"),
    ]
    assert [row[1:] for row in cells(LoggedQuestions(asked)._repr_html_())[1:]] == [
        ["one", "answered", "yes", "a#0, b#0"],
        ["two", "", "no", "none answers it"],
        ["three", "", "", ""],
    ]


def test_what_has_no_table_prints_on_a_few_short_lines(tmp_path):
    log = et.FeedbackLog(tmp_path / "log.sqlite")
    log.record("Who?", [])
    assert repr(log) == f"FeedbackLog: 1 questions in {log.path}"
    assert isinstance(log.misses(), LoggedQuestions)
    log.close()
    assert repr(et.load_sample(num_documents=2)).startswith("Sample: 2 documents, ")
    evaluation = et.TopKEvaluator(dataset(), k=(1, 2)).evaluate(et.BM25())
    assert repr(Merge(None, 0.5, {0.5: evaluation})).splitlines()[1].split()[:2] == ["0.5", "ndcg@2"]
    assert repr(et.Rounds(tmp_path / "rounds")) == f"Rounds in {tmp_path / 'rounds'}: 0"
    said = Answer("Who?", "answered", "Ada does.", ("a#0",), (), None, None)
    assert repr(said) == "Ada does.\n  cites a#0"
    assert repr(replace(said, outcome="failed", text="", cited=(), problem="refused")) == "(failed: refused)"


def test_a_long_list_shows_its_first_rows_and_how_many_more_there_are():
    many = Chunks([chunk(str(i), "word " * 100) for i in range(1025)])
    html = many._repr_html_()
    assert len(cells(html)) == 21
    assert html.endswith("<p>and 1,005 more</p>")
    assert len(html) < 8_000
    assert many == list(many)


def test_a_dataset_shows_the_size_of_each_split():
    data = dataset()
    rows = cells(data._repr_html_())
    assert rows == [
        ["split", "questions", "chunks asked about"],
        ["train", "4", "2"],
        ["test", "4", "2"],
    ]  # half of them, as asked for
    assert "4 chunks of 4 documents, 8 questions, split by document" in data._repr_html_()
    assert str(data).splitlines()[1].split() == ["train", "4", "questions", "about", "2", "chunks"]


def test_a_model_report_shows_the_remedy_of_what_fails_alone():
    rows = cells(everything()["ModelReport"]._repr_html_())
    assert rows[1:] == [["FAIL", "pooling", HOSTILE, "Load it again."], ["ok", "prompts", "none", ""]]


def test_a_model_report_prints_as_a_table_without_print():
    report = everything()["ModelReport"]
    assert repr(report) == str(report)


def test_a_review_keeps_the_line_breaks_of_a_chunk():
    html = everything()["Review"]._repr_html_()
    assert "white-space:pre-wrap" in html
    assert "two\nlines" in html


def test_numbers_keep_to_the_right_and_texts_to_the_left():
    numbers = BeautifulSoup(html_table(["metric", "value"], [["a", "1"]]), "html.parser").find_all("td")
    assert [cell.get("style") for cell in numbers] == ["text-align:left", None]
    texts = BeautifulSoup(html_table(["metric", "value"], [["a", "b"]], texts=True), "html.parser").find_all("td")
    assert {cell.get("style") for cell in texts} == {"text-align:left;white-space:pre-wrap"}
