"""The report says what the evaluations say, needs nothing from outside, runs nothing that it shows, and works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from urllib.parse import urlencode
from xml.etree import ElementTree

import numpy as np
import pytest
from bs4 import BeautifulSoup
from datasets import Dataset

import embedtune as et
from embedtune.evaluation.report import questions as questions_module
from embedtune.evaluation.report.curve import panels_of
from embedtune.evaluation.report.page import render
from embedtune.evaluation.report.results import rank_histogram, runs_of
from embedtune.evaluation.summary import counts, facts

KS = (1, 3, 10)
NUM_CHUNKS = 40
HOSTILE = [
    "</script><script>document.title = 'run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "<!--<script>",
    "]]> &amp; &lt;b&gt; \u2028\u2029 \x00 \x1b \ufeff",
    "السلام عليكم \u202e backwards",
    "東京の冷凍庫 👩‍🔬 e\u0301",
    "' onload='x' \" onclick=\"x\"",
    "a" * 5000,
]


class Placed:
    """Puts each question's right chunk (the number it ends with) at the rank it is told, before the chunks as they are."""

    def __init__(self, ranks):
        self.ranks = ranks

    def rank(self, queries, documents, k):
        positions = []
        for query, rank in zip(queries, self.ranks, strict=True):
            right = int(query.split()[-1])
            others = [i for i in range(len(documents)) if i != right]
            positions.append([*others[: rank - 1], right, *others[rank - 1 :]][:k])
        return np.array(positions), np.tile(np.linspace(1, 0, k, dtype=np.float32), (len(queries), 1))


def dataset(num_questions, *, texts=None, num_chunks=NUM_CHUNKS):
    texts = texts or [f"chunk number {i}" for i in range(num_chunks)]
    ids = [f"q{i:05}" for i in range(num_questions)]
    rights = [i % num_chunks for i in range(num_questions)]
    return et.RetrievalDataset(
        corpus=Dataset.from_dict(
            {"_id": [f"c{i:05}" for i in range(num_chunks)], "text": texts, "document_id": ["d"] * num_chunks}
        ),
        queries=Dataset.from_dict({"_id": ids, "text": [f"question about {right}" for right in rights]}),
        qrels={
            "test": Dataset.from_dict(
                {"query-id": ids, "corpus-id": [f"c{r:05}" for r in rights], "score": [1] * num_questions}
            )
        },
    )


def verdict_of(data, *rankings, names=("base", "tuned", "BM25", "hybrid", "closed"), k=KS):
    evaluator = et.TopKEvaluator(data, k=k)
    results = [evaluator.evaluate(Placed(ranks), name=name) for ranks, name in zip(rankings, names, strict=False)]
    return et.compare(*results, num_resamples=200)


def some_ranks(num, *, seed=0):
    return np.random.default_rng(seed).integers(1, 25, size=num)


@pytest.fixture(scope="module")
def data():
    return dataset(60)


@pytest.fixture(scope="module")
def verdict(data):
    return verdict_of(data, some_ranks(60), some_ranks(60, seed=1), some_ranks(60, seed=2))


@pytest.fixture(scope="module")
def hostile():
    """A dataset and a verdict in which everything that a user can name is hostile."""
    texts = [*HOSTILE, *(f"chunk {i}" for i in range(NUM_CHUNKS - len(HOSTILE)))]
    ids = [*HOSTILE[:-1], *(f"c{i}" for i in range(NUM_CHUNKS - len(HOSTILE) + 1))]
    questions = [f"q{text[:50]}" for text in HOSTILE]
    data = et.RetrievalDataset(
        corpus=Dataset.from_dict({"_id": ids, "text": texts}),
        queries=Dataset.from_dict({"_id": questions, "text": [f"{text} {i}" for i, text in enumerate(HOSTILE)]}),
        qrels={"test": Dataset.from_dict({"query-id": questions, "corpus-id": ids[:8], "score": [1] * 8})},
        split_by=HOSTILE[0],
    )
    retrievers = {HOSTILE[0]: [9] * 8, HOSTILE[1]: [2] * 8, HOSTILE[3]: [12] * 8}
    evaluator = et.TopKEvaluator(data, k=KS)
    results = [evaluator.evaluate(Placed(ranks), name=name) for name, ranks in retrievers.items()]
    return data, et.compare(*results, num_resamples=50)


def soup_of(html):
    return BeautifulSoup(html, "html.parser")


def material_of(html):
    return json.loads(soup_of(html).find(id="material").string)


def test_the_file_is_written_whole_and_its_path_returned(verdict, data, tmp_path):
    path = verdict.to_html(tmp_path / "new" / "report.html", data=data)
    assert path == tmp_path / "new" / "report.html"
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_the_same_verdict_gives_the_same_bytes(verdict, data):
    assert render(verdict, data=data) == render(verdict, data=data)


def test_it_shows_the_mix_of_the_questions(verdict, data):
    styles = ["keyword" if i % 3 else "" for i in range(len(data.queries))]
    styled = replace(data, queries=data.queries.add_column("style", styles))
    asked = styled.styles_of(verdict.before.per_query["query-id"][:])
    shown = soup_of(render(verdict, data=styled)).find(id="data").text
    assert f"{asked['keyword']} keyword, {asked['']} without a style" in " ".join(shown.split())
    assert "without a style" not in render(verdict, data=data)


def test_it_begins_with_the_headline_and_folds_the_statistics(verdict):
    soup = soup_of(render(verdict))
    assert verdict.headline.capitalize() in soup.h1.text
    assert soup.find(class_="sentence").text.lower() == verdict.reason.lower()
    assert soup.find(class_="counts").text == counts(verdict)
    shown = [(row.dt.text, row.dd.text) for row in soup.select(".decide div")]
    assert shown == list(facts(verdict))
    assert [note.text for note in soup.select(".notes li")] == verdict.notes
    folded = [element.find_parent("details") is not None for element in soup.select("#changes, #ranks, #data, #repeat")]
    assert folded == [True] * 4
    assert soup.select_one(".decide").find_parent("details") is None


def test_the_chart_and_the_table_hold_the_numbers_of_every_evaluation(verdict):
    soup = soup_of(render(verdict))
    evaluations = [verdict.before, verdict.after, *verdict.baselines]
    rows = soup.select(".chart tr[data-run]")
    assert len(rows) == len(KS) * len(evaluations)
    for row in rows:
        expected = evaluations[int(row["data-run"])].metrics[f"accuracy@{row['data-k']}"]
        assert row.find("b").text == f"{100 * expected:.1f}%"
        mark = row.select_one("svg > svg")
        low, high = row.select_one(".whisker")["x1"], row.select_one(".whisker")["x2"]
        assert mark["x"] == f"{100 * expected:.2f}%"
        assert float(low[:-1]) <= float(mark["x"][:-1]) <= float(high[:-1])
    for row in soup.select(".metrics tbody tr"):
        shown = [cell.text.split()[0] for cell in row.find_all("td")]
        assert shown == [f"{evaluation.metrics[row.th.text]:.3f}" for evaluation in evaluations]


def test_changes_are_those_of_the_verdict(verdict):
    for row in soup_of(render(verdict)).select(".changes tbody tr"):
        change = verdict.metrics[row.th.text]
        before, after, difference, counts = (cell.text for cell in row.find_all("td"))
        assert (before, after) == (f"{change.before:.3f}", f"{change.after:.3f}")
        assert difference.split() == [
            f"{x:+.3f}" if x != "to" else x for x in (change.difference, change.low, "to", change.high)
        ]
        if row.th.text.startswith("accuracy"):
            k = int(row.th.text.partition("@")[2])
            assert counts == f"{len(verdict.fixed[k])} / {len(verdict.broken[k])}"


def test_intervals_are_those_of_the_evaluations(verdict):
    for run in runs_of(verdict):
        for metric, interval in run.evaluation.intervals(confidence_level=verdict.confidence_level).items():
            assert (run.scores[metric].low, run.scores[metric].high) == interval


def test_every_other_result_is_compared_with_the_one_after(verdict, data):
    rows = soup_of(render(verdict)).select(".against tbody tr")
    for row, comparison in zip(rows, verdict.comparisons, strict=True):
        change = comparison.metrics["ndcg@10"]
        before, difference, p, decision = (cell.text for cell in row.find_all("td"))
        assert (row.th.text, before, decision) == (comparison.other.name, f"{change.before:.3f}", comparison.decision)
        assert difference.split()[:2] == [f"{change.difference:+.3f}", f"{change.low:+.3f}"]
        assert p == f"{comparison.p_value:.4f}"
    assert not soup_of(render(verdict_of(data, some_ranks(60), some_ranks(60)))).select(".against")


def test_the_hash_of_each_model_is_there(verdict):
    facts = {row.th.text: row.td.text for row in soup_of(render(verdict)).select("#repeat .facts tr")}
    assert facts["questions and corpus"] == verdict.before.fingerprint
    assert facts["tuned"] == verdict.after.model != ""


def test_the_histogram_counts_every_question_once(verdict):
    runs = runs_of(verdict)
    histogram = rank_histogram(runs)
    assert [bin.label for bin in histogram] == ["1", "2 to 3", "4 to 10", "11 to 20", "21 to 40"]
    for i, run in enumerate(runs):
        ranks = run.evaluation.per_query["rank"][:]
        assert sum(bin.counts[i] for bin in histogram) == 60
        assert histogram[2].counts[i] == sum(4 <= rank <= 10 for rank in ranks)


def test_ranks_beyond_the_search_have_a_bin_of_their_own():
    data = dataset(30, num_chunks=150)
    runs = runs_of(verdict_of(data, [150] * 30, [2] * 30))
    assert rank_histogram(runs)[-1] == ("beyond 100", [30, 0])


def test_the_browser_holds_what_each_run_put_above_the_right_chunk(verdict, data):
    material = material_of(render(verdict, data=data))
    ids = [chunk["id"] for chunk in material["chunks"]]
    assert material["runs"] == ["base", "tuned", "BM25"]
    assert material["k"] == verdict.k == 3  # the counts of the filters are those of the headline
    assert len(material["questions"]) == 60
    for question, row in zip(material["questions"], verdict.after.per_query, strict=True):
        assert (question["id"], question["text"]) == (row["query-id"], row["query"])
        assert [ids[i] for i in question["relevant"]] == row["relevant"]
        assert question["ranks"][1] == row["rank"]
        assert [ids[i] for i in question["above"][1]] == row["retrieved"][: min(row["rank"] - 1, 5)]
        scores = [score for score, _ in question["scores"][1]]
        assert scores == pytest.approx(row["scores"][: min(row["rank"] - 1, 5)], abs=1e-4)
    assert all(chunk["text"] == data.corpus_texts[chunk["id"]] for chunk in material["chunks"])


@pytest.fixture(scope="module")
def adding(_shared_tiny_model):
    """A dataset and a verdict on a retriever that adds vectors and words."""
    data = dataset(12)
    evaluator = et.TopKEvaluator(data, k=KS)
    retriever = et.Retriever.from_dataset(_shared_tiny_model, data)
    results = [evaluator.evaluate(Placed([4] * 12), name="base"), evaluator.evaluate(retriever, name="tuned")]
    return data, et.compare(*results, num_resamples=50)


def test_what_vectors_and_words_contribute_is_shown_where_a_retriever_says_it(adding):
    data, verdict = adding
    html = render(verdict, data=data)
    assert "both parts of each score are shown" in html
    listed = 0
    for question, row in zip(material_of(html)["questions"], verdict.after.per_query, strict=True):
        scores = list(zip(row["scores"], row["word_scores"], strict=True))
        expected = [*scores[: min(row["rank"] - 1, 5)], *scores[row["rank"] - 1 : row["rank"]]]
        shown = [one for one in [*question["scores"][1], question["found"][1]] if one is not None]
        assert [tuple(one) for one in shown] == [pytest.approx(one, abs=1e-4) for one in expected]
        assert [words for _, words in question["scores"][0]] == [None] * 3  # the first ranker says nothing of words
        listed += len(shown)
    assert listed > 12


def test_nothing_is_said_of_words_where_no_retriever_adds_them(verdict, data):
    assert "both parts of each score" not in render(verdict, data=data)


def test_without_data_chunks_are_shown_by_id(verdict):
    html = render(verdict)
    assert not any("text" in chunk for chunk in material_of(html)["chunks"])
    assert "to_html(path, data=data)" in html


def test_other_data_are_refused(verdict, tmp_path):
    changed = dataset(60, texts=["another", *(f"chunk number {i}" for i in range(1, NUM_CHUNKS))])
    with pytest.raises(ValueError, match=r"data is not the dataset that was evaluated.*'test' differ"):
        verdict.to_html(tmp_path / "report.html", data=changed)
    assert not list(tmp_path.iterdir())


def test_a_label_is_suspicious_where_all_runs_agree_on_another_chunk_with_as_many_of_the_words():
    # Placed puts c00000 first wherever the right chunk is not; question 0 asks about it, 1 and 2 about others.
    texts = ["question about anything", "question about 1", "2"]
    data = dataset(3, texts=[*texts, *map(str, range(37))])
    html = render(verdict_of(data, [1, 2, 2], [1, 3, 2]), data=data)
    material = material_of(html)
    suspects = [question["suspect"] for question in material["questions"]]
    assert [None if i is None else material["chunks"][i]["id"] for i in suspects] == [None, None, "c00000"]
    disagreed = verdict_of(data, [1, 2, 2], [1, 3, 1])
    assert all(question["suspect"] is None for question in material_of(render(disagreed, data=data))["questions"])


def test_the_share_of_words_is_that_of_the_questions_distinct_words():
    texts = ["The pump, the PUMP!", "...", *map(str, range(38))]
    data = dataset(1, texts=["question 0 and others", *texts[1:]])
    material = material_of(render(verdict_of(data, [1], [2]), data=data))
    assert material["questions"][0]["shared"] == pytest.approx(2 / 3, abs=1e-3)


def test_hostile_text_is_data_and_never_markup(hostile):
    data, verdict = hostile
    html = render(verdict, data=data, log_history=[{"epoch": 1, f"eval_{HOSTILE[0]}_ndcg@10": 0.5}])
    assert len(re.findall("<script", html)) == len(re.findall("</script", html)) == 2
    soup = soup_of(html)
    assert not soup.find_all("img")
    assert not [tag for tag in soup.find_all(True) for name in tag.attrs if name.startswith("on")]
    chunks = {chunk["id"]: chunk for chunk in material_of(html)["chunks"]}
    assert all(chunks[text]["text"] == text for text in HOSTILE[:4])
    assert HOSTILE[1] in soup.find("title").text


def test_half_a_surrogate_pair_in_a_name_does_not_keep_the_report_from_being_written(tmp_path):
    data = dataset(3)
    verdict = verdict_of(data, [1, 2, 3], [1, 1, 1], names=("base", "tuned \ud800"))
    assert "tuned ?" in verdict.to_html(tmp_path / "report.html").read_text(encoding="utf-8")


def test_nothing_is_loaded_and_only_our_own_script_may_run(hostile):
    data, verdict = hostile
    html = render(verdict, data=data)
    soup = soup_of(html)
    policy = soup.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not soup.find_all(["link", "iframe", "img", "object", "embed", "base"])
    assert not soup.find_all(src=True)
    assert not [tag for tag in soup.find_all(href=True) if not tag["href"].startswith("#")]
    css = soup.find("style").string
    assert "url(" not in css
    assert "@import" not in css


@pytest.mark.parametrize("num_runs", [2, 5])
@pytest.mark.parametrize("num_questions", [1, 20])
def test_any_number_of_runs_and_few_questions_work(num_runs, num_questions):
    data = dataset(num_questions)
    rankings = [some_ranks(num_questions, seed=i) for i in range(num_runs)]
    soup = soup_of(render(verdict_of(data, *rankings), data=data))
    assert len(soup.select(".chart tr[data-k='3']")) == num_runs
    assert len(soup.select(".bars thead th")) == 1 + num_runs


def test_runs_of_one_name_are_told_apart(data):
    verdict = verdict_of(data, some_ranks(60), some_ranks(60), some_ranks(60), names=("minilm", "minilm", "minilm"))
    assert [run.name for run in runs_of(verdict)] == ["minilm", "minilm (2)", "minilm (3)"]


def test_a_large_result_keeps_the_telling_questions_and_says_so(monkeypatch):
    monkeypatch.setattr(questions_module, "_MAX_BYTES", 40_000)
    data = dataset(300)
    before, after = np.full(300, 1), np.full(300, 1)
    after[[7, 250]], before[40] = 9, 9
    verdict = verdict_of(data, before, after)
    html = render(verdict, data=data)
    kept = [question["id"] for question in material_of(html)["questions"]]
    assert {"q00007", "q00040", "q00250"} < set(kept)
    assert f"contains {len(kept)} of the 300 questions" in html
    assert kept == sorted(kept)
    assert len(html) < 140_000
    monkeypatch.setattr(questions_module, "_MAX_BYTES", 6_000_000)
    assert "of the 300 questions" not in render(verdict, data=data)


@pytest.mark.slow
def test_twenty_thousand_questions_and_five_runs_give_a_file_of_sane_size(tmp_path):
    data = dataset(20_000, texts=[f"{i} {'words ' * 300}" for i in range(4000)], num_chunks=4000)
    verdict = verdict_of(data, *(some_ranks(20_000, seed=i) for i in range(5)))
    assert verdict.to_html(tmp_path / "report.html", data=data).stat().st_size < 12_000_000


def test_a_long_chunk_is_cut_and_the_cut_is_told():
    data = dataset(1, texts=["é" * 5000, *map(str, range(39))])
    chunk = material_of(render(verdict_of(data, [1], [1]), data=data))["chunks"][0]
    assert chunk == {"id": "c00000", "text": "é" * 3000, "cut": True}


def test_everything_needed_to_repeat_it_is_there(verdict):
    soup = soup_of(render(verdict))
    recipe = soup.find("pre").text
    assert verdict.before.fingerprint in recipe
    assert f"pip install embedtune=={et.__version__} sentence-transformers==" in recipe
    compile(recipe.replace('"..."', '"data"'), "recipe", "exec")


def test_the_evaluator_tells_its_fingerprint(verdict, data):
    assert et.TopKEvaluator(data, k=KS).fingerprint == verdict.before.fingerprint


LOG = [
    {"epoch": 0.0, "eval_dev_ndcg@10": 0.5, "eval_dev_ndcg@1": 0.2, "step": 0},
    {"epoch": 0.5, "loss": 2.0, "step": 5},
    {"epoch": 1.0, "loss": float("nan"), "step": 10},
    {"epoch": 1.0, "eval_dev_ndcg@10": 0.7, "eval_loss": 1.5, "step": 10},
    {"epoch": 1.5, "loss": 1.0, "step": 15},
    {"epoch": 2.0, "eval_dev_ndcg@10": 0.6, "step": 20},
    {"epoch": 2.0, "train_runtime": 3.0, "train_loss": 1.5, "step": 20},
]


def test_the_curve_is_drawn_to_scale_and_leaves_out_what_is_no_number():
    loss, metric = panels_of(LOG, "ndcg@10")
    assert [(line.name, line.values) for line in loss.lines] == [
        ("training", [(0.5, 2.0), (1.5, 1.0)]),
        ("evaluation", [(1.0, 1.5)]),
    ]
    assert [line.name for line in metric.lines] == ["dev"]
    for panel in (loss, metric):
        places = np.array([point for line in panel.lines for point in line.points])
        values = np.array([value for line in panel.lines for value in line.values])
        assert (places >= 0).all()
        assert (places <= 100).all()
        assert abs(np.corrcoef(places[:, 0], values[:, 0])[0, 1]) == pytest.approx(1)
        assert np.corrcoef(places[:, 1], values[:, 1])[0, 1] == pytest.approx(-1)
        for position, label in panel.y_ticks:
            slope, offset = np.polyfit(values[:, 1], places[:, 1], 1)
            assert position == pytest.approx(slope * float(label) + offset, abs=0.1)


@pytest.mark.parametrize("log", [[], [{"epoch": 1.0}], [{"loss": 1.0}], [{"loss": float("inf"), "epoch": 1.0}]])
def test_a_log_with_nothing_to_draw_leaves_the_section_out(log, verdict):
    assert panels_of(log, "ndcg@10") == []
    assert soup_of(render(verdict, log_history=log)).find(id="training") is None


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [-3.0, 5.0], [1e-9, 2e-9], [1e6, 3e6]])
def test_ticks_enclose_the_values_and_are_few(values):
    (panel,) = panels_of([{"epoch": i + 1.0, "loss": value} for i, value in enumerate(values)], "ndcg@10")
    labels = [float(label) for _, label in panel.y_ticks]
    assert 2 <= len(labels) <= 6
    assert labels[0] <= min(values) <= max(values) <= labels[-1]


def test_a_trainer_gives_the_curve_the_settings_and_the_cut_tokens(tiny_model, tmp_path):
    data = et.RetrievalDataset.from_pairs(
        [
            ("press the pump " * 30, ["how to press the pump"]),
            ("open the door", ["how to open"]),
            ("call", ["who to call"]),
        ],
        test_size=0.3,
        dev_size=0.3,
    )
    evaluator = et.TopKEvaluator(data, k=(1, 2))
    before = evaluator.evaluate(tiny_model)
    args = et.TuningArguments(str(tmp_path / "out"), num_train_epochs=1, seed=7, disable_tqdm=True, use_cpu=True)
    trainer = et.EmbeddingTrainer(tiny_model, args, data=data)
    trainer.train()
    verdict = et.compare(before, evaluator.evaluate(trainer.model), num_resamples=50)
    html = verdict.to_html(tmp_path / "report.html", data=data, trainer=trainer).read_text(encoding="utf-8")
    soup = soup_of(html)
    facts = {row.th.text: row.td.text for row in soup.select(".facts tr")}
    assert (facts["seed"], facts["loss"]) == ("7", "in-batch")
    assert facts["maximum sequence length"].startswith("64 tokens")
    lengths = [len(ids) for ids in tiny_model.tokenizer(list(data.corpus_texts.values()))["input_ids"]]
    assert facts["truncated tokens"].startswith(
        f"{sum(max(n - 64, 0) for n in lengths) / sum(lengths):.1%} of all tokens, in 1 "
    )
    assert soup.find(id="training") is not None


def shown_in(svg):
    """Return the name, share and interval of each row of a picture, read from where its marks are."""
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    ticks = {tick.text: float(tick.get("x")) for tick in root.iter(f"{space}text") if tick.text in ("0%", "100%")}

    def share(x):
        return (float(x) - ticks["0%"]) / (ticks["100%"] - ticks["0%"])

    places = [re.match(r"translate\(([\d.]+)", path.get("transform"))[1] for path in root.iter(f"{space}path")]
    whiskers = [line for line in root.iter(f"{space}line") if line.get("stroke-width") == "3"]
    names = [
        text.text for text in root.iter(f"{space}text") if text.get("text-anchor") == "end" and text.get("font-weight")
    ]
    return [
        (name, share(place), share(whisker.get("x1")), share(whisker.get("x2")))
        for name, place, whisker in zip(names, places, whiskers, strict=True)
    ]


def test_the_picture_shows_every_accuracy_with_its_interval(verdict, tmp_path):
    svg = verdict.plot(tmp_path / "accuracy.svg").read_text(encoding="utf-8")
    base, tuned, bm25 = runs_of(verdict)
    expected = [(run.name, run.scores[f"accuracy@{k}"]) for k in KS for run in (base, bm25, tuned)]
    rows = shown_in(svg)
    assert [row[0] for row in rows] == [name for name, _ in expected]
    for row, (_, score) in zip(rows, expected, strict=True):
        assert row[1:] == pytest.approx(score, abs=0.001)
    assert len(set(re.findall(r' d="([^"]+)"', svg))) == 3


def test_the_picture_is_xml_whatever_the_names_are(hostile, tmp_path):
    _, verdict = hostile
    svg = verdict.plot(tmp_path / "accuracy.svg").read_text(encoding="utf-8")
    assert len(shown_in(svg)) == 9
    assert "<script" not in svg
    assert "<img" not in svg


def test_the_picture_has_one_format(verdict, tmp_path):
    with pytest.raises(ValueError, match=r"accuracy.png' does not end in .svg"):
        verdict.plot(tmp_path / "accuracy.png")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


def browse(path, folder, **state):
    """Open a page at a state of its hash, and return the page as it is then and what the console says."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom"]
    url = f"{path.as_uri()}#{urlencode(state)}"
    done = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=60)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return soup_of(done.stdout), console


@in_a_browser
def test_the_filters_show_what_the_verdict_lists(verdict, data, tmp_path):
    path = verdict.to_html(tmp_path / "report.html", data=data, log_history=LOG)
    for name, expected in (("fixed", verdict.fixed[3]), ("broken", verdict.broken[3])):
        soup, console = browse(path, tmp_path, filter=name, k=3)
        assert console == []
        assert {case["data-id"] for case in soup.select(".case")} == set(expected[:20])
        assert soup.select_one("[aria-pressed=true]").text == f"{name} {len(expected)}"
        assert soup.find(id="count").text == f"{len(expected)} of 60 questions"


@in_a_browser
def test_a_search_finds_one_question_and_opens_it(verdict, data, tmp_path):
    path = verdict.to_html(tmp_path / "report.html", data=data)
    rank = verdict.before.per_query["rank"][17]
    soup, console = browse(path, tmp_path, search="Q00017", k=1)
    assert console == []
    (case,) = soup.select(".case")
    assert case.find(class_="question").text == "question about 17"
    assert case.select_one(".chunk.relevant .text").text == "chunk number 17"
    above = [chunk.text for chunk in case.select(".body h4:nth-of-type(2) ~ .chunk .id")][: min(rank - 1, 5)]
    assert [text.rpartition("· ")[2] for text in above] == [
        chunk for chunk in verdict.before.per_query["retrieved"][17] if chunk != "c00017"
    ][: min(rank - 1, 5)]


@in_a_browser
def test_the_two_parts_of_a_score_are_shown_as_bars(adding, tmp_path):
    data, verdict = adding
    path = verdict.to_html(tmp_path / "report.html", data=data)
    row = verdict.after.per_query[5]
    soup, console = browse(path, tmp_path, search=row["query-id"], k=10)
    assert console == []
    parts = soup.select(".case .parts")
    assert len(parts) == (row["rank"] <= 10) + min(row["rank"] - 1, 5)
    words = row["word_scores"][row["rank"] - 1]
    vectors = row["scores"][row["rank"] - 1] - words
    assert [span.text for span in parts[0].find_all("span")] == [f"vectors {vectors:.3f}", "", f"words {words:.3f}", ""]
    widths = [float(re.search(r"width: ([0-9.e-]+)em", bar["style"])[1]) for bar in parts[0].select(".part")]
    assert widths[0] / widths[1] == pytest.approx(vectors / words, rel=0.02)


@in_a_browser
def test_hostile_text_is_shown_and_not_run(hostile, tmp_path):
    data, verdict = hostile
    path = verdict.to_html(tmp_path / "report.html", data=data)
    soup, console = browse(
        path, tmp_path, search="</script>", k="3", sort="id", filter="__proto__", page="-1", to="length"
    )
    assert console == []
    assert soup.title.text.startswith(f"{verdict.headline.capitalize()}: </script>")
    assert not soup.find_all("img")
    shown = {element.text for element in soup.select(".question")}
    assert f"{HOSTILE[0]} 0" in shown


@in_a_browser
def test_a_narrow_screen_scrolls_wide_tables_and_never_the_page(tmp_path):
    data = dataset(60)
    names = ("base", "tuned", "BM25", "hybrid of BM25 and tuned by reciprocal rank fusion", "text-embedding-3-large")
    rankings = [some_ranks(60, seed=i) for i in range(5)]
    verdict_of(data, *rankings, names=names).to_html(tmp_path / "report.html", data=data, log_history=LOG)
    # In a frame, because chromium's window is never narrower than 500 pixels; as srcdoc, for its size to be readable.
    page = json.dumps((tmp_path / "report.html").read_text(encoding="utf-8")).replace("<", "\\u003c")
    (tmp_path / "frame.html").write_text(
        "<iframe id=frame style='width:390px;height:800px'></iframe><script>frame.onload = () => {"
        "const root = frame.contentDocument.documentElement;"
        "document.title = root.scrollWidth + ' of ' + root.clientWidth; };"
        f"frame.srcdoc = {page};</script>"
    )
    soup, console = browse(tmp_path / "frame.html", tmp_path)
    assert console == []
    inner, outer = soup.title.text.split(" of ")
    assert int(inner) <= int(outer) <= 390
