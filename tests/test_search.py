from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sentence_transformers.util import SimilarityFunction

from embedtune.retrieval import search
from embedtune.retrieval.search import top_k

torch.set_num_threads(1)


def stable_sort(scores, k):
    """The oracle: sort everything."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def vectors(num, *, dim=24, seed=0):
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)


@st.composite
def whole_numbers(draw):
    """Small whole numbers: every product is exact, and many are equal."""
    dim = draw(st.integers(1, 4))
    rows = hnp.arrays(np.int64, st.tuples(st.integers(1, 40), st.just(dim)), elements=st.integers(-2, 2))
    queries, corpus = (draw(rows.map(lambda a: np.where(a.any(axis=1, keepdims=True), a, 1))) for _ in range(2))
    k = draw(st.integers(1, len(corpus)))
    return queries.astype(np.float32), corpus.astype(np.float32), k, draw(st.integers(1, 45))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(whole_numbers())
def test_result_is_a_stable_sort_of_all_scores_whatever_the_block_size(case):
    queries, corpus, k, block_size = case
    positions, scores = top_k(queries, corpus, k, similarity="dot", block_size=block_size)
    expected_scores, expected_positions = stable_sort(queries @ corpus.T, k)
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(positions, expected_positions)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 40), st.sampled_from([3, 24, 384]))
def test_equal_vectors_tie_and_blocks_make_no_difference_with_real_numbers(seed, num_chunks, num_queries, dim):
    rng = np.random.default_rng(seed)
    original = rng.integers(0, num_chunks, size=num_chunks)
    corpus = vectors(num_chunks, dim=dim, seed=seed)[original]
    queries = vectors(num_queries, dim=dim, seed=seed + 1)
    positions, scores = top_k(queries, corpus, num_chunks)
    for block_size in (1, 7, 16, 50):
        blocked = top_k(queries, corpus, num_chunks, block_size=block_size)
        np.testing.assert_array_equal(blocked.scores, scores)
        np.testing.assert_array_equal(blocked.positions, positions)
    copies = original[positions]
    same_text = copies[:, 1:] == copies[:, :-1]
    assert (positions[:, 1:] > positions[:, :-1])[same_text].all()
    np.testing.assert_array_equal(scores[:, 1:][same_text], scores[:, :-1][same_text])


def test_a_corpus_of_one_repeated_vector_keeps_its_order():
    corpus = np.repeat(vectors(1), 500, axis=0)
    positions, _ = top_k(vectors(3), corpus, 20, block_size=128)
    assert positions.tolist() == [list(range(20))] * 3


def test_a_corpus_that_gets_better_and_better_is_no_problem():
    corpus = np.stack([np.ones(2000), np.linspace(9, 0, 2000)], axis=1).astype(np.float32)
    positions, _ = top_k(np.array([[1, 0]], dtype=np.float32), corpus, 3, block_size=64)
    assert positions.tolist() == [[1999, 1998, 1997]]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_scores_are_those_of_sentence_transformers(similarity):
    queries, corpus = vectors(5), 3 * vectors(70, seed=1)
    full = SimilarityFunction.to_similarity_fn(similarity)(queries, corpus).numpy()
    positions, scores = top_k(queries, corpus, 10, similarity=similarity, block_size=32)
    expected_scores, expected_positions = stable_sort(full, 10)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(positions, expected_positions)


def test_no_more_than_a_block_of_scores_exists_at_once(monkeypatch):
    shapes = []

    def spy(name):
        def score(queries, corpus):
            shapes.append((len(queries), len(corpus)))
            return queries @ corpus.T

        return score

    monkeypatch.setattr(search.SimilarityFunction, "to_similarity_fn", spy)
    top_k(vectors(100), vectors(333), 10, block_size=64)
    assert shapes == [(112, 64)] * 5 + [(112, 16)]  # whole tiles


def test_what_is_asked_for_is_not_changed():
    queries, corpus = vectors(4), vectors(40, seed=1)
    kept = queries.copy(), corpus.copy()
    corpus.flags.writeable = False
    positions, scores = top_k(queries, corpus, 5)
    np.testing.assert_array_equal(queries, kept[0])
    np.testing.assert_array_equal(corpus, kept[1])
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_vectors_that_cannot_be_compared_are_named(value, similarity):
    corpus = vectors(20)
    corpus[[13, 17]] = value
    ids = [f"doc#{i}" for i in range(20)]
    with pytest.raises(ValueError, match=r"chunk vectors of 'doc#13', 'doc#17' are zero or not finite"):
        top_k(vectors(2), corpus, 3, similarity=similarity, block_size=6, corpus_ids=ids)[0]


def test_a_bad_query_is_named_by_its_row_and_a_long_list_is_cut():
    queries = vectors(20)
    queries[2:10] = 0
    with pytest.raises(ValueError, match=r"query vectors of row 2, row 3, row 4, row 5, row 6 and 3 more"):
        top_k(queries, vectors(20), 3)


def test_shapes_that_do_not_fit_are_shown():
    with pytest.raises(ValueError, match=r"\(2, 24\).*\(9, 12\)"):
        top_k(vectors(2), vectors(9, dim=12), 3)
    with pytest.raises(ValueError, match="no queries"):
        top_k(vectors(0), vectors(9), 3)


@pytest.mark.parametrize("k", [0, -1, 10])
def test_k_must_be_in_the_corpus(k):
    with pytest.raises(ValueError, match=f"k={k} is out of range for a corpus of 9"):
        top_k(vectors(2), vectors(9), k)


def test_block_size_must_be_positive():
    with pytest.raises(ValueError, match="block_size=0 must be at least 1"):
        top_k(vectors(2), vectors(9), 3, block_size=0)


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ValueError, match="hamming"):
        top_k(vectors(2), vectors(9), 3, similarity="hamming")


def test_a_corpus_in_a_file_gives_the_same_result(tmp_path):
    corpus, queries = vectors(500), vectors(9, seed=1)
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    for found, expected in zip(top_k(queries, mapped, 7), top_k(queries, corpus, 7), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_queries", [1, 2, 3, 17])
@pytest.mark.parametrize("num_chunks", [31, 1001, 4099])
def test_equal_vectors_tie_wherever_they_are_also_in_one_large_block(num_queries, num_chunks):
    corpus = np.tile(unit(vectors(1)), (num_chunks, 1))
    positions, scores = top_k(unit(vectors(num_queries, seed=1)), corpus, 30, is_checked=True)
    assert (positions == np.arange(30)).all()
    assert (scores == scores[:, :1]).all()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_extra_scores_are_added_to_the_similarities():
    corpus, queries = unit(vectors(500)), unit(vectors(9, seed=1))
    extra = np.random.default_rng(2).random((9, 500), dtype=np.float32)
    expected = queries @ corpus.T + extra
    for options in ({"block_size": 64}, {"is_checked": True}, {"is_checked": True, "block_size": 100}):
        positions, scores = top_k(queries, corpus, 7, extra=lambda rows, columns: extra[rows, columns], **options)
        np.testing.assert_array_equal(positions, np.argsort(-expected, axis=1)[:, :7])
        np.testing.assert_allclose(scores, np.take_along_axis(expected, positions, axis=1), atol=1e-6)


LARGER_THAN_MEMORY = """
import resource, sys
import numpy as np, torch
from embedtune.retrieval.search import top_k
torch.set_num_threads(1)
corpus = np.load(sys.argv[1], mmap_mode="r")
queries = np.array(corpus[[5, 70_000, 99_999]])
top_k(queries, corpus[:5000], 3)  # what torch allocates once
before = 1024 * int(open("/proc/self/status").read().partition("VmData:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_DATA, (before + 80_000_000, before + 80_000_000))
print(top_k(queries, corpus, 3)[0][:, 0].tolist())
"""


def test_a_corpus_larger_than_the_memory_left_is_searched_from_its_file(tmp_path):
    corpus = np.lib.format.open_memmap(tmp_path / "c.npy", mode="w+", dtype=np.float32, shape=(100_000, 384))  # 154 MB
    rng = np.random.default_rng(0)
    for start in range(0, len(corpus), 20_000):
        corpus[start : start + 20_000] = rng.standard_normal((20_000, 384), dtype=np.float32)
    corpus.flush()
    command = [sys.executable, "-c", LARGER_THAN_MEMORY, str(tmp_path / "c.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[5, 70000, 99999]", done.stderr[-2000:]
