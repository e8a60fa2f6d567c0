"""An index in two parts finds what one index of all its chunks finds, to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.retrieval import parts as parts_module
from embedtune.retrieval.fusion import Fusion
from embedtune.retrieval.index import ChunkIndex, table_of_texts
from embedtune.retrieval.parts import IndexParts
from embedtune.retrieval.words import WordWeights

DIM = 8
WORDS = ["pump", "valve", "garden", "gardens", "key", "door", "lamp", "of", "the"]
QUESTIONS = ["the pump of the garden", "valve key", "zebra", "a lamp in the gardens of the door"]
IDS = [f"{number:02}" for number in range(24)]


def vector_of(text):
    """A unit vector for each text, equal for equal texts; few of them, so that scores tie."""
    found = np.random.default_rng(len(text)).standard_normal(DIM).astype(np.float32)
    return found / np.linalg.norm(found)


def table(texts):
    rows = table_of_texts(list(texts.values()))
    return rows.set_column(0, "_id", pyarrow.array(list(texts), pyarrow.string()))


def index_of(texts):
    texts = dict(sorted(texts.items()))
    vectors = np.array([vector_of(text) for text in texts.values()], dtype=np.float32).reshape(-1, DIM)
    return ChunkIndex(table(texts), vectors, "")


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
corpora = st.dictionaries(st.sampled_from(IDS), texts, max_size=16)
changes = st.lists(st.tuples(st.sets(st.sampled_from(IDS), max_size=4), corpora), max_size=5)


def found(index, ranking):
    """The ids and scores of a ranking."""
    positions = ranking.positions
    ids = iter(index.rows(positions[positions >= 0])["_id"].to_pylist())
    rows = [[next(ids) if position >= 0 else None for position in row] for row in positions.tolist()]
    return [
        [(name, score) for name, score in zip(row, scores, strict=True) if name is not None]
        for row, scores in zip(rows, ranking.scores.tolist(), strict=True)
    ]


@pytest.mark.parametrize("limit", [0, 6, 1000], ids=["merged at once", "merged at times", "never merged"])
@pytest.mark.parametrize("word_weight", [0.0, 0.7, math.inf])
def test_an_index_that_grew_finds_what_one_made_anew_finds(word_weight, limit):
    @settings(max_examples=60, deadline=None)
    @given(start=corpora, changed=changes, is_asked=st.booleans(), k=st.integers(1, 30))
    def check(start, changed, is_asked, k):
        fusion = Fusion(word_weight, WordWeights.learn(QUESTIONS[:2]))
        vectors = np.array([vector_of(question) for question in QUESTIONS])
        now, parts = dict(start), IndexParts.of(index_of(start))
        for removed, added in changed:
            if is_asked and len(parts):
                fusion.rank_parts(parts, QUESTIONS, vectors, 1)  # counts words
            now = {name: text for name, text in now.items() if name not in removed} | added
            new = index_of(added)
            parts = parts.changed(removed | set(added), new.chunks, new.vectors)
        fresh = index_of(now)
        assert len(parts) == len(fresh)
        assert parts.merged.ids == fresh.ids
        assert parts.merged.texts() == fresh.texts()
        np.testing.assert_array_equal(parts.merged.vectors, fresh.vectors)
        np.testing.assert_array_equal(parts.merged.words.scores(QUESTIONS), fresh.words.scores(QUESTIONS))
        if now:
            k = min(k, len(now))
            ranking = fusion.rank_parts(parts, QUESTIONS, vectors, k)
            assert found(parts, ranking) == found(fresh, fusion.rank(fresh, QUESTIONS, vectors, k))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "_MIN_CHANGED", limit)
        check()


def test_a_graph_is_not_built_again_for_a_few_chunks_and_they_are_found():
    pytest.importorskip("faiss")
    texts = {f"{number:03}": f"the {WORDS[number % 7]} {number}" for number in range(300)}
    parts = IndexParts.of(index_of(texts))
    fusion, vectors = Fusion(0.5), np.array([vector_of(question) for question in QUESTIONS])
    fusion.rank_parts(parts, QUESTIONS, vectors, 5, approximate=True)
    graph = parts.main.graph
    new = index_of({"0005": "the pump of the garden", "007": "another text"})
    parts = parts.changed({"007", "011"}, new.chunks, new.vectors)
    ranking = found(parts, fusion.rank_parts(parts, QUESTIONS, vectors, len(parts), approximate=True))
    assert ranking[0][0][0] == "0005"
    assert {"007", "011"} & {name for name, _ in ranking[0]} == {"007"}
    assert parts.main.graph is graph
