from __future__ import annotations

import copy
import errno
import threading

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from test_retriever import QUESTIONS, TEXTS, chunk, chunks_of, counting, found

import embedtune as et
from embedtune.retrieval import reindex as reindex_module
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.word_weight import spread_of

torch.set_num_threads(1)


@pytest.fixture
def retriever(tiny_model, tmp_path):
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS))
    retriever.save(tmp_path / "saved")
    return retriever


@pytest.fixture
def tuned(tiny_model):
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    return tuned


def move(retriever, model, path, **options):
    return et.reindex(retriever, model, path=path, show_progress_bar=False, **options)


def test_a_reindexed_corpus_is_the_one_that_the_new_model_makes(retriever, tuned, tmp_path):
    moved = move(retriever, tuned, tmp_path / "saved", block_size=7)
    fresh = Retriever.from_chunks(tuned, chunks_of(TEXTS))
    np.testing.assert_allclose(moved.index.vectors, fresh.index.vectors, atol=1e-6)
    assert found(Retriever.load(tmp_path / "saved"), QUESTIONS[:3]) == found(moved, QUESTIONS[:3])
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_weight_of_words_moves_to_the_scale_of_the_new_model(retriever, tuned, tmp_path):
    moved = move(retriever, tuned, tmp_path / "new")
    scale = spread_of(moved.index) / spread_of(retriever.index)
    assert moved.word_weight == pytest.approx(retriever.word_weight * scale)
    assert scale != 1


class Crash(BaseException):
    pass


@pytest.mark.parametrize("num_blocks", range(4))
def test_after_a_crash_it_continues_where_it_stopped(retriever, tuned, tmp_path, monkeypatch, num_blocks):
    encoded = counting(tuned, monkeypatch)
    real = reindex_module._write
    written = []

    def crashing(folder, keys, vectors):
        if len(written) == num_blocks:
            raise Crash
        written.append(keys)
        real(folder, keys, vectors)

    monkeypatch.setattr(reindex_module, "_write", crashing)
    with pytest.raises(Crash):
        move(retriever, tuned, tmp_path / "saved", block_size=20)
    assert found(Retriever.load(tmp_path / "saved")) == found(retriever)
    monkeypatch.setattr(reindex_module, "_write", real)
    del encoded[:]
    assert len(move(retriever, tuned, tmp_path / "saved", block_size=20)) == 80
    assert len(encoded) == 80 - 20 * num_blocks


def test_a_full_disk_is_named_and_the_old_retriever_stays(retriever, tuned, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(reindex_module, "save_file", full)
        with pytest.raises(OSError, match=r"No space left on device.*Choose another path.*saved-reindex") as caught:
            move(retriever, tuned, tmp_path / "saved")
    assert caught.value.errno == errno.ENOSPC
    assert found(Retriever.load(tmp_path / "saved"), QUESTIONS[:3]) == found(retriever, QUESTIONS[:3])
    assert len(move(retriever, tuned, tmp_path / "saved")) == len(retriever)


def test_a_crash_at_the_switch_leaves_the_old_retriever(retriever, tuned, tmp_path, monkeypatch):
    def crashing(*args, **kwargs):
        raise Crash

    monkeypatch.setattr("embedtune.retrieval.index.save_file", crashing)
    with pytest.raises(Crash):
        move(retriever, tuned, tmp_path / "saved")
    assert found(Retriever.load(tmp_path / "saved")) == found(retriever)


def test_blocks_of_another_model_are_not_used(retriever, tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(Retriever, "save", lambda self, path: exec("raise Crash", {"Crash": Crash}))
    with pytest.raises(Crash):
        move(retriever, tuned, tmp_path / "new")
    other = copy.deepcopy(tuned)
    other.max_seq_length = 4
    encoded = counting(other, monkeypatch)
    with pytest.raises(Crash):
        move(retriever, other, tmp_path / "new")
    assert len(encoded) == 80


def test_chunks_that_come_go_and_change_meanwhile_are_in_the_new_index(retriever, tuned, tmp_path, monkeypatch):
    real = reindex_module._write

    def changing(folder, keys, vectors):
        monkeypatch.setattr(reindex_module, "_write", real)
        real(folder, keys, vectors)
        retriever.add([chunk("zoo#0", "a new garden")])
        retriever.update([chunk("pump#0", "an old pump")])
        retriever.remove(["valve#0"])

    monkeypatch.setattr(reindex_module, "_write", changing)
    moved = move(retriever, tuned, tmp_path / "saved", block_size=40)
    assert moved.index.ids == retriever.index.ids
    assert moved.index.texts() == retriever.index.texts()


def test_what_was_added_before_it_returned_is_in_the_new_index(tiny_model, tuned, tmp_path):
    retriever = Retriever.from_chunks(tiny_model, chunks_of(TEXTS))
    added, is_over = [], threading.Event()

    def add():
        while not is_over.is_set():
            retriever.add([chunk(f"new#{len(added)}", f"a new garden {len(added)}")])
            added.append(f"new#{len(added)}")

    thread = threading.Thread(target=add)
    thread.start()
    moved = move(retriever, tuned, tmp_path / "new", block_size=16)
    there = list(added)
    is_over.set()
    thread.join()
    assert there
    assert set(there) <= set(moved.index.ids)
    assert found(Retriever.load(tmp_path / "new")) == found(moved)


def test_a_block_that_is_damaged_is_encoded_again(retriever, tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(Retriever, "save", lambda self, path: exec("raise Crash", {"Crash": Crash}))
    with pytest.raises(Crash):
        move(retriever, tuned, tmp_path / "new", block_size=40)
    monkeypatch.undo()
    for number, block in enumerate(sorted((tmp_path / ".new-reindex").glob("block-*.safetensors"))):
        block.write_bytes(block.read_bytes()[: 100 * number])
    encoded = counting(tuned, monkeypatch)
    assert len(move(retriever, tuned, tmp_path / "new", block_size=40)) == len(encoded) == 80


def test_a_trained_query_side_needs_no_reindexing(retriever, tiny_model):
    frozen = et.freeze_index(tiny_model, query="linear")
    with torch.no_grad():
        next(p for p in frozen.parameters() if p.requires_grad).mul_(-1)
    again = Retriever(frozen, retriever.index)
    assert found(again) != found(retriever)


def test_a_block_needs_at_least_one_chunk(retriever, tuned, tmp_path):
    with pytest.raises(ValueError, match="block_size=0"):
        move(retriever, tuned, tmp_path / "saved", block_size=0)


@pytest.mark.parametrize("is_same_model", [False, True])
def test_a_chunk_that_is_added_at_any_moment_does_no_harm(retriever, tiny_model, tuned, tmp_path, is_same_model):
    class Growing(Retriever):
        """Another thread adds a chunk whenever the index was read; it stops after a while."""

        num_left = 0

        @property
        def index(self):
            now = Retriever.index.fget(self)
            if self.num_left:
                self.num_left -= 1
                self.add([chunk(f"a new one#{len(now)}", f"new pump {len(now)}")])
            return now

        @index.setter
        def index(self, value):
            Retriever.index.fset(self, value)

    growing = Growing(tiny_model, retriever.index)
    for num_left in range(1, 9):
        growing.num_left = num_left
        model = tiny_model if is_same_model else tuned
        moved = move(growing, model, tmp_path / "new")
        texts = dict(zip(moved.index.ids, moved.index.texts(), strict=True))
        expected = Retriever.from_chunks(model, chunks_of(texts))
        np.testing.assert_allclose(moved.index.vectors, expected.index.vectors, atol=1e-5)
