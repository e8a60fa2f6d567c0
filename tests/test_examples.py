"""The examples run, and so does what the README shows."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from llm_server import serving
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
def test_the_quickstart_saves_a_model_that_plain_sentence_transformers_loads(tmp_path, capsys):
    load("quickstart").main(str(tmp_path), documents=5, epochs=1)
    assert "documents it has never seen" in capsys.readouterr().out
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode_query("?").shape == (384,)


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
    assert len(et.Retriever.load(tmp_path / "index", current.model_path)) > 0


@pytest.mark.slow
def test_the_readmes_lines_run(tmp_path, monkeypatch, capsys):
    """The dozen lines as they stand, with a server on loopback in the place of Claude."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handbook").mkdir()
    for document in et.load_sample(num_documents=4).documents:
        (tmp_path / "handbook" / document.id).write_text(document.text)
    with serving() as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", server.key)
        exec(compile(block.replace("num_train_epochs=3", "max_steps=1"), "README.md", "exec"), {})
    assert "ndcg@10" in capsys.readouterr().out
    assert SentenceTransformer(str(tmp_path / "out/handbook/model"), device="cpu").encode_query("?").shape == (384,)
