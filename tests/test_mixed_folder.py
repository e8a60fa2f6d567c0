"""A folder as people have them goes through the README's lines without a hand on it."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from mixed_folder import BROKEN, make, written
from scripted_llm import ScriptedLLM

import embedtune as et
from embedtune.corpus.chunking import questions_of

torch.set_num_threads(1)

STYLES = {"natural": 1, "keyword": 1}


@pytest.mark.parametrize("num_files", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_a_mixed_folder_becomes_a_retriever_with_evidence(tiny_model, tmp_path, caplog, num_files):
    expected = make(tmp_path / "drive", num_files=num_files)
    caplog.set_level(logging.WARNING)
    documents = et.read_documents(tmp_path / "drive", question_column="question")
    for name in {*BROKEN, "pipe.txt", "outside.md"}:
        assert str(tmp_path / "drive" / name) in caplog.text
    read = {document.id.rpartition(":")[0] or document.id for document in documents}
    assert expected.keys() <= read
    chunks = et.chunk_documents(documents, max_tokens=120)
    llm = ScriptedLLM(written)
    generated = et.generate_questions(
        chunks, llm, styles=STYLES, output_dir=tmp_path / "ledger", show_progress_bar=False
    )
    assert 0 < len(generated.failed) < len(chunks) / 2
    assert set(generated.failed.values()) == {"malformed reply"}
    questions = [*generated, *questions_of(documents, chunks)]
    data = et.build_dataset(chunks, questions, dev_size=0)
    assert len(data.corpus) == len(chunks)
    style_of = {question.id: question.style for question in questions}
    assert data.styles_of(data.query_texts) == Counter(style_of[query] for query in data.query_texts)
    args = et.TuningArguments("unused", max_steps=2, use_cpu=True, disable_tqdm=True, report_to=[])
    run = et.tune(tiny_model, data, output_dir=tmp_path / "out", args=args, num_folds=2, k=(1, 10))
    assert run.verdict.num_queries == len(data.queries)
    assert str(run).startswith(run.verdict.headline.capitalize())
    report = (run.output_dir / "report.html").read_text(encoding="utf-8")
    assert f"{sum(style_of[query] == 'keyword' for query in data.query_texts)} keyword" in report
    found = run.retriever.search(generated[0].text, k=10)
    assert generated[0].chunk_ids[0] in [hit.id for hit in found]
    asked = len(llm.requests)
    again = et.generate_questions(chunks, llm, styles=STYLES, output_dir=tmp_path / "ledger", show_progress_bar=False)
    failed = {
        chunk.text for chunk in chunks if chunk.id in generated.failed
    }  # malformed replies alone are asked for again
    assert len(llm.requests) == asked + len(failed)
    assert all(any(text in request["text"] for text in failed) for request in llm.requests[asked:])
    assert again.kept == generated.kept
