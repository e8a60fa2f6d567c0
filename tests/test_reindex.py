from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from test_retriever import QUESTIONS, TEXTS, chunk, chunks_of, counting, found

import embedtune as et
from embedtune.retrieval.reindex import Reindexing
from embedtune.retrieval.retriever import Retriever

torch.set_num_threads(1)


@pytest.fixture
def retriever(tiny_model, tmp_path):
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS))
    retriever.save(tmp_path / "index")
    return retriever


@pytest.fixture
def tuned(tiny_model):
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    return tuned


def test_a_reindexed_corpus_is_the_one_that_the_new_model_makes(retriever, tuned, tmp_path):
    moved = et.reindex(retriever, tuned, path=tmp_path / "index", block_size=7, show_progress_bar=False)
    fresh = Retriever.from_chunks(tuned, chunks_of(TEXTS))
    np.testing.assert_allclose(moved.index.vectors, fresh.index.vectors, atol=1e-6)
    assert found(Retriever.load(tmp_path / "index", tuned), QUESTIONS[:3]) == found(moved, QUESTIONS[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_what_it_takes_is_said_first(retriever, tuned, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="embedtune")
    et.reindex(retriever, tuned, path=tmp_path / "index", show_progress_bar=False)
    assert "Reindexing: 80 chunks, about" in caplog.messages[0]
    estimate = et.estimate_reindex(retriever, tuned)
    assert (estimate.num_chunks, estimate.num_bytes) == (80, 80 * 32 * 4)
    assert estimate.seconds > 0


def test_the_model_of_a_folder_is_found_again(retriever, tuned, tmp_path):
    tuned.save_pretrained(str(tmp_path / "tuned"))
    et.reindex(retriever, tmp_path / "tuned", path=tmp_path / "index", show_progress_bar=False)
    assert Retriever.load(tmp_path / "index").index.model_path == str(tmp_path / "tuned")


def test_both_indexes_answer_while_it_runs(retriever, tuned, tmp_path):
    move = Reindexing(retriever, tuned, path=tmp_path / "index", block_size=30)
    before = found(retriever)
    for num_left in (80, 50, 20):
        assert move.num_left == num_left
        assert len(move.new) == 80 - num_left
        assert found(move.old) == before
        assert len(move.new.search("check the pump", k=100)) == 80 - num_left
        assert len(Retriever.load(tmp_path / "index", retriever.model)) == 80  # the old one, until the switch
        move.step()
    assert move.num_left == 0


class Crash(BaseException):
    pass


@pytest.mark.parametrize("num_blocks", range(4))
def test_after_a_crash_it_goes_on_where_it_stopped(retriever, tuned, tmp_path, monkeypatch, num_blocks):
    encoded = counting(tuned, monkeypatch)
    real = Reindexing._write
    written = []

    def crashing(self, keys, vectors):
        if len(written) == num_blocks:
            raise Crash
        written.append(keys)
        real(self, keys, vectors)

    monkeypatch.setattr(Reindexing, "_write", crashing)
    with pytest.raises(Crash):
        Reindexing(retriever, tuned, path=tmp_path / "index", block_size=20).run(show_progress_bar=False)
    assert len(Retriever.load(tmp_path / "index", retriever.model)) == 80
    monkeypatch.setattr(Reindexing, "_write", real)
    del encoded[:]
    moved = Reindexing(retriever, tuned, path=tmp_path / "index", block_size=20).run(show_progress_bar=False)
    assert len(encoded) == 80 - 20 * num_blocks
    assert len(moved) == 80


def test_a_crash_at_the_switch_leaves_the_old_index(retriever, tuned, tmp_path, monkeypatch):
    def crashing(*args, **kwargs):
        raise Crash

    monkeypatch.setattr("embedtune.retrieval.index.save_file", crashing)
    with pytest.raises(Crash):
        et.reindex(retriever, tuned, path=tmp_path / "index", show_progress_bar=False)
    assert len(Retriever.load(tmp_path / "index", retriever.model)) == 80


def test_blocks_of_another_model_are_not_used(retriever, tuned, tiny_model, tmp_path):
    Reindexing(retriever, tuned, path=tmp_path / "index", block_size=30).step()
    other = copy.deepcopy(tuned)
    other.max_seq_length = 4
    assert Reindexing(retriever, other, path=tmp_path / "index").num_left == 80


def test_chunks_that_come_go_and_change_meanwhile_are_in_the_new_index(retriever, tuned, tmp_path):
    move = Reindexing(retriever, tuned, path=tmp_path / "index", block_size=40)
    move.step()
    retriever.add([chunk("zoo#0", "a new garden")])
    retriever.update([chunk("pump#0", "an old pump")])
    retriever.remove(["valve#0"])
    moved = move.run(show_progress_bar=False)
    assert moved.index.ids == retriever.index.ids
    assert moved.index.texts() == retriever.index.texts()


def test_a_trained_query_side_needs_no_reindexing(retriever, tiny_model, tmp_path):
    frozen = et.freeze_index(tiny_model, query="linear")
    with torch.no_grad():
        next(p for p in frozen.parameters() if p.requires_grad).mul_(-1)
    again = Retriever.load(tmp_path / "index", frozen)
    assert found(again) != found(retriever)


def test_a_block_needs_at_least_one_chunk(retriever, tuned, tmp_path):
    with pytest.raises(ValueError, match="block_size=0"):
        Reindexing(retriever, tuned, path=tmp_path / "index", block_size=0)
