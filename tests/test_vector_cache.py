from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from embedtune.retrieval.vector_cache import VectorCache, vector_key


def put_some(path, start):
    for i in range(start, start + 20):
        VectorCache(path).put({str(i): np.full(3, i)})


def test_vectors_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    vectors = {vector_key("m", str(i)): rng.standard_normal(5).astype(np.float32) for i in range(1200)}
    cache = VectorCache(tmp_path / "new" / "vectors.sqlite")
    assert cache.get(list(vectors)) == {}
    cache.put(vectors)
    found = VectorCache(cache.path).get([*vectors, "unknown"])
    assert found.keys() == vectors.keys()
    for key, vector in vectors.items():
        np.testing.assert_array_equal(found[key], vector)


def test_looking_into_a_cache_that_is_not_there_creates_none(tmp_path):
    VectorCache(tmp_path / "vectors.sqlite").get(["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_vectors(tmp_path):
    cache = VectorCache(tmp_path / "vectors.sqlite")
    cache.put({"a": np.ones(2)})

    def broken():
        yield "b", np.ones(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.put(dict(broken()))
    assert set(cache.get(["a", "b"])) == {"a"}


def test_several_processes_can_write_at_once(tmp_path):
    path = tmp_path / "vectors.sqlite"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=put_some, args=(path, start)) for start in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(VectorCache(path).get([str(i) for i in range(40)])) == 40


def test_a_file_that_is_no_cache_is_left_alone_and_named(tmp_path):
    path = tmp_path / "vectors.sqlite"
    path.write_text("these are notes of mine, and no database " * 10)
    before = path.read_bytes()
    for use in (lambda: VectorCache(path).get(["a"]), lambda: VectorCache(path).put({"a": np.ones(2)})):
        with pytest.raises(RuntimeError, match="cannot be used as a cache"):
            use()
    assert path.read_bytes() == before


def test_the_key_follows_every_character_and_what_encodes():
    keys = {vector_key(*pair) for pair in (("m", "a"), ("m", "a "), ("m2", "a"), ("ma", ""), ("m", "\ud800"))}
    assert len(keys) == 5
