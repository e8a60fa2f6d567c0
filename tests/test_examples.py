"""The examples run."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

import embedtune as et

ROOT = Path(__file__).parent.parent
THINGS = ["pump", "valve", "sensor", "door", "filter", "battery", "cable", "crane", "lamp", "clock", "engine", "roof"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A folder in the form that benchmark_dataset.py takes, with a document of two chunks and a question of two."""
    chunks = [{"chunk_id": f"c{i}", "text": f"press {i} to open the {t}", "doc_id": t} for i, t in enumerate(THINGS)]
    chunks.append({"chunk_id": "c12", "text": "then close the roof", "doc_id": "roof"})
    questions = [
        {
            "question_id": f"{thing}-{n}",
            "question": f"{words} the {thing}",
            "chunk_id": f"c{i}" if thing != "roof" else ["c11", "c12"],
            "split": "test_unseen_doc" if i > 8 else "test_seen_chunk" if n == 0 else "train",
        }
        for i, thing in enumerate(THINGS)
        for n, words in enumerate(("how to open", "what to press for", "where is"))
    ]
    for name, rows in (("chunks", chunks), ("questions", questions)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return tmp_path


def test_benchmark_dataset_compares_each_split_on_its_own(folder, tiny_model_folder, tmp_path, capsys):
    verdicts = load("benchmark_dataset").main(
        str(folder),
        model_name=str(tiny_model_folder),
        epochs=2,
        batch_size=8,
        dev_size=0.2,
        output=str(tmp_path / "out"),
    )
    assert set(verdicts) == {"test_seen_chunk", "test_unseen_doc"}
    assert all(verdict.decision in ("better", "worse", "cannot tell") for verdict in verdicts.values())
    assert "BM25" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_recipes_runs_every_recipe(folder, tiny_model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = load("compare_recipes")
    options = {"model_name": str(tiny_model_folder), "epochs": 1, "output": str(tmp_path / "out")}
    example.main(str(folder), list(example.RECIPES), **options)
    output = capsys.readouterr().out
    assert all(f"\n{recipe} " in output for recipe in example.RECIPES)


@pytest.mark.slow
def test_a_half_of_a_model_learns_from_pairs_and_from_the_whole(
    folder, tiny_model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(ROOT / "examples")
    load("distill").main(
        str(folder), model_name=str(tiny_model_folder), epochs=1, num_candidates=3, output=str(tmp_path / "out")
    )
    assert "\ndistilled " in capsys.readouterr().out


@pytest.mark.slow
def test_which_loss_compares_losses_and_draws_the_curve(folder, tiny_model_folder, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    options = {"model_name": str(tiny_model_folder), "epochs": 1, "test_split": "test_unseen_doc"}
    comparison, curve = load("which_loss").main(str(folder), **options)
    assert len(comparison.runs) == 3
    assert curve.split == "test_unseen_doc"


@pytest.mark.slow
def test_the_quickstart_tunes_a_retriever_shows_what_its_scores_are_made_of_and_saves_it(tmp_path, capsys):
    load("quickstart").main(str(tmp_path), documents=5, epochs=1)
    out = capsys.readouterr().out
    assert "tuned retriever" in out
    rows = re.findall(r"^ +(\d\.\d\d) = (\d\.\d\d) vectors \+ (\d\.\d\d) words  \S", out, re.MULTILINE)
    assert len(rows) == 1
    assert all(abs(float(score) - float(vectors) - float(words)) < 0.016 for score, vectors, words in rows)
    assert SentenceTransformer(str(tmp_path / "retriever"), device="cpu").encode_query("?").shape == (384,)
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "accuracy.svg").exists()
    screen = out.replace(str(tmp_path), "out/quickstart").splitlines()
    screen = screen[next(i for i, line in enumerate(screen) if re.match("Ship it|Keep what|Cannot tell yet", line)) :]
    assert len(screen) <= 26
    assert max(map(len, screen)) <= 80


def test_the_loop_ends_with_a_model_and_an_index_that_belong_together(tiny_model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    round_ = load("continuous_improvement").main(
        str(tmp_path), documents=9, model_name=str(tiny_model_folder), epochs=1, learning_rate=1e-3
    )
    out = capsys.readouterr().out
    assert "a script that knows the sample's answers" in out
    assert round_.counts["trained on"] > 0
    current = et.Rounds(tmp_path / "rounds").current
    assert (current.number == round_.number) == round_.accepted
    assert len(et.Retriever.load(tmp_path / "retriever")) > 0
