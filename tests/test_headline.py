"""The headline weighs everything, and no advice on the same screen contradicts it."""

from __future__ import annotations

import dataclasses
import re
from itertools import product
from string import Formatter
from types import SimpleNamespace

import numpy as np
import pytest
from test_verdict import evaluate, some_ranks

from embedtune.evaluation.comparison import MetricChange
from embedtune.evaluation.headline import advise
from embedtune.evaluation.record import Forgetting
from embedtune.evaluation.summary import counts, headline
from embedtune.evaluation.verdict import compare

DECISIONS = ("better", "worse", "cannot tell")
CASES = list(product(DECISIONS, (*DECISIONS, None), ("forgets", "remembers", "cannot tell", None), (0, 2)))


@pytest.mark.parametrize(("before", "bm25", "knowledge", "num_known"), CASES)
def test_every_case_has_the_headline_that_its_worst_part_deserves(before, bm25, knowledge, num_known):
    advice = advise(before=before, bm25=bm25, knowledge=knowledge, num_known=num_known)
    is_bad = before == "worse" or bm25 == "worse" or knowledge == "forgets"
    is_good = before == "better" and bm25 in ("better", None) and knowledge in ("remembers", None) and num_known == 0
    expected = "keep what you have" if is_bad else "ship it" if is_good else "cannot tell yet"
    assert advice.headline == expected
    few = advise(before=before, bm25=bm25, knowledge=knowledge, num_known=num_known, has_few_documents=True)
    assert few.headline == expected
    assert {name for _, name, _, _ in Formatter().parse(advice.reason) if name} <= {"before", "after", "bm25"}
    says_serve = "serve it" in advice.next_step
    assert says_serve == (advice.headline == "ship it")
    assert ("{bm25}" in advice.reason) <= (bm25 is not None)


def forgetting(decision, low):
    change = MetricChange(before=0.9, after=0.89, difference=-0.01, low=low, high=0.02)
    verdict = SimpleNamespace(
        decision=decision, metrics={"ndcg@10": change}, primary_metric="ndcg@10", num_queries=100, confidence_level=0.95
    )
    return Forgetting(verdict, margin=0.05)


def as_bm25(run):
    return dataclasses.replace(run, name="BM25", model="BM25(k1=1.2, b=0.75)")


@pytest.fixture(scope="module")
def runs():
    ranks = some_ranks(120)
    return {
        "base": evaluate(ranks, name="base"),
        "tuned": evaluate(np.maximum(ranks - 3, 1), name="tuned"),
        "level": as_bm25(evaluate(np.roll(np.maximum(ranks - 3, 1), 1))),
        "ahead": as_bm25(evaluate(np.maximum(ranks - 9, 1))),
        "behind": as_bm25(evaluate(ranks + 3)),
    }


@pytest.mark.parametrize(
    ("names", "options", "line"),
    [
        (("base", "tuned"), {}, "Ship it: tuned finds more than base."),
        (("base", "tuned", "behind"), {}, "Ship it: tuned finds more than base and than BM25."),
        (("tuned", "base"), {}, "Keep what you have: tuned finds more than base."),
        (("base", "tuned", "ahead"), {}, "Keep what you have: BM25, which needs no training, finds more than tuned."),
        (
            ("base", "tuned", "level"),
            {},
            "Cannot tell yet: tuned finds more than base, but BM25, which needs no training, may be as good.",
        ),
        (("base", "base"), {}, "Cannot tell yet: base may be as good as base."),
        (
            ("base", "tuned", "behind"),
            {"forgetting": forgetting("worse", -0.2)},
            "Keep what you have: tuned finds less outside these documents than before it was trained.",
        ),
        (
            ("base", "tuned", "behind"),
            {"forgetting": forgetting("cannot tell", -0.2)},
            "Cannot tell yet: tuned finds more, but may find less outside these documents.",
        ),
        (
            ("base", "tuned", "behind"),
            {"forgetting": forgetting("worse", -0.04)},  # a loss, and none that matters
            "Ship it: tuned finds more than base and than BM25.",
        ),
        (
            ("base", "tuned", "behind"),
            {"forgetting": forgetting("cannot tell", -0.04)},
            "Ship it: tuned finds more than base and than BM25.",
        ),
        (
            ("base", "tuned", "behind"),
            {"training": ["about 7"]},
            "Cannot tell yet: some of these questions were trained on, so the gain is overestimated.",
        ),
    ],
)
def test_it_begins_text_notebook_and_report(runs, names, options, line, tmp_path):
    verdict = compare(*(runs[name] for name in names), **options, num_resamples=500)
    assert headline(verdict) == line
    assert " ".join(str(verdict).split("\n\n")[0].split("\n")) == line
    assert verdict._repr_html_().startswith(f"<p><strong>{line}</strong></p>")
    html = verdict.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.index(verdict.headline.capitalize()) < html.index(counts(verdict)) < html.index("<details")
    assert ("serve it" in str(verdict)) == line.startswith("Ship it")


def test_bm25_that_learned_from_questions_is_not_the_baseline_that_needs_no_training(runs):
    learned = dataclasses.replace(runs["ahead"], name="words", model="BM25(k1=1.2, b=0.75, 90 questions)")
    verdict = compare(runs["base"], runs["tuned"], learned, num_resamples=500)
    assert (verdict.bm25, verdict.headline) == (None, "ship it")
    assert "But       words finds more." in str(verdict)


def test_few_documents_are_the_reason_if_they_are(runs):
    few, other = (dataclasses.replace(runs[name], documents=tuple("abcde" * 24)) for name in ("base", "tuned"))
    verdict = compare(few, other, num_resamples=500)
    assert str(verdict).startswith("Cannot tell yet: questions about 5 documents say too little about others.")
    assert verdict.next_step == "Add documents with questions: it takes 6 or more."


def test_the_owner_of_a_models_repository_is_left_out_of_the_headline(runs):
    named = dataclasses.replace(runs["base"], name="sentence-transformers/all-MiniLM-L6-v2 (base)")
    verdict = compare(named, runs["tuned"], num_resamples=500)
    assert verdict.summary.startswith("Ship it: tuned finds more than all-MiniLM-L6-v2 (base).")
    assert named.name in str(verdict)


def test_the_counts_are_those_of_the_ranks():
    before, after = evaluate([1, 4, 11, 2, 20]), evaluate([1, 3, 3, 5, 9])
    verdict = compare(before, after)
    assert verdict.k == 3
    assert counts(verdict) == "Of 5 questions, 3 instead of 2 find their chunk among the first 3: 2 fixed, 1 broken."


@pytest.mark.parametrize(("k", "shown"), [((1, 3, 10), 3), ((1, 2, 10), 2), ((1, 5, 10), 1), ((5, 10), 5), ((20,), 20)])
def test_the_cut_off_that_is_shown_is_the_one_nearest_to_three(k, shown):
    run = evaluate([1, 2], k=k)
    assert compare(run, run).k == shown


@pytest.mark.parametrize(
    "name", ["tuned", "a retriever with a name that is much longer than any column of this screen"]
)
def test_the_first_screen_has_eighty_columns_and_two_dozen_lines(runs, name):
    judged = dataclasses.replace(runs["tuned"], name=name)
    verdict = compare(
        runs["base"], judged, runs["level"], forgetting=forgetting("cannot tell", -0.04), num_resamples=500
    )
    verdict = dataclasses.replace(verdict, seconds=200.0, cost_usd=1.234)
    lines = verdict.summary.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert "3.3 minutes of training and measuring, $1.23 for the questions." in verdict.summary
    assert verdict.summary.isascii()
    assert str(verdict).startswith(verdict.summary)


def test_the_bars_are_as_long_as_the_shares(runs):
    verdict = compare(runs["base"], runs["tuned"], runs["behind"], num_resamples=500)
    rows = re.findall(r"^(\w+) +(#*)(\.*) +(\d+)% \((\d+)% to (\d+)%\)$", verdict.summary, re.MULTILINE)
    assert [row[0] for row in rows] == ["base", "BM25", "tuned"]
    for (_, filled, rest, share, low, high), name in zip(rows, ("base", "behind", "tuned"), strict=True):
        value, interval = runs[name].metrics["accuracy@3"], runs[name].intervals()["accuracy@3"]
        assert len(filled) + len(rest) == 32
        assert len(filled) == round(32 * value)
        assert [int(share), int(low), int(high)] == [round(100 * x) for x in (value, *interval)]


def test_what_is_needed_counts_for_the_retriever_that_may_be_as_good(runs):
    verdict = compare(runs["base"], runs["tuned"], runs["level"], num_resamples=500)
    against_bm25 = compare(runs["level"], runs["tuned"], num_resamples=500).num_queries_needed()
    assert against_bm25 > 120
    assert f"takes about {against_bm25:,} like these, and there are 120" in verdict.next_step


def test_a_price_that_is_not_known_is_not_named(runs):
    verdict = compare(runs["base"], runs["tuned"], num_resamples=500)
    assert "Price" not in str(verdict)
    assert "45 seconds of training" in str(dataclasses.replace(verdict, seconds=45.0))
