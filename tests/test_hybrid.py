from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.hybrid import Hybrid
from embedtune.types import Ranker

DOCUMENTS = [f"{thing} {i}" for i, thing in enumerate(["pump", "valve", "door", "ship", "crane", "roof", "river"] * 3)]
QUERIES = ["the pump", "a door of the ship 3", "which crane 11", "nothing known"]


class Shuffled:
    """A ranker with an order of its own for each query, the same each time."""

    def __init__(self, seed):
        self.seed = seed

    def rank(self, queries, documents, k):
        rng = np.random.default_rng(self.seed)
        positions = np.stack([rng.permutation(len(documents)) for _ in queries])[:, :k]
        return positions, np.linspace(1, 0, k, dtype=np.float32)[None].repeat(len(queries), axis=0)


def fused_by_hand(rankings, num_documents, *, offset, depth, k):
    found = []
    for rows in zip(*rankings, strict=True):
        score = dict.fromkeys(range(num_documents), 0.0)
        for row in rows:
            for rank, position in enumerate(row[:depth], start=1):
                score[position] += 1 / (offset + rank)
        found.append(sorted(score, key=lambda position: (-round(score[position], 9), position))[:k])
    return found


@pytest.mark.parametrize(("offset", "depth", "k"), [(60, 100, 21), (60, 5, 4), (1, 3, 10), (10, 2, 1)])
def test_documents_stand_in_the_order_of_their_summed_reciprocal_ranks(offset, depth, k):
    first, second = Shuffled(0), Shuffled(1)
    hybrid = Hybrid(first, second, offset=offset, depth=depth)
    assert isinstance(hybrid, Ranker)
    positions, scores = hybrid.rank(QUERIES, DOCUMENTS, k)
    rankings = [ranker.rank(QUERIES, DOCUMENTS, len(DOCUMENTS))[0] for ranker in (first, second)]
    assert positions.tolist() == fused_by_hand(rankings, len(DOCUMENTS), offset=offset, depth=max(depth, k), k=k)
    assert (np.diff(scores) <= 0).all()


def test_blocks_make_no_difference(monkeypatch):
    positions, scores = Hybrid(Shuffled(0), Shuffled(1)).rank(QUERIES, DOCUMENTS, 5)
    monkeypatch.setattr("embedtune.retrieval.hybrid._SCORES_PER_BLOCK", len(DOCUMENTS))
    blocked = Hybrid(Shuffled(0), Shuffled(1)).rank(QUERIES, DOCUMENTS, 5)
    np.testing.assert_array_equal(blocked[0], positions)
    np.testing.assert_array_equal(blocked[1], scores)


def test_a_model_is_fused_with_bm25(tiny_model):
    positions, _ = Hybrid(tiny_model).rank(QUERIES, DOCUMENTS, 3)
    bm25 = BM25().rank(QUERIES, DOCUMENTS, 21)[0]
    vectors = [
        encode(texts) for encode, texts in ((tiny_model.encode_query, QUERIES), (tiny_model.encode_document, DOCUMENTS))
    ]
    cosine = np.argsort(-tiny_model.similarity(*vectors).numpy(), axis=1)
    assert positions.tolist() == fused_by_hand([cosine.tolist(), bm25.tolist()], 21, offset=60, depth=100, k=3)


def test_the_fingerprint_follows_what_is_fused_and_how(tiny_model):
    hybrid = Hybrid(tiny_model)
    others = [dataclasses.replace(hybrid, offset=1), Hybrid(BM25()), Hybrid(tiny_model, BM25(k1=1.2))]
    tiny_model_changed = Hybrid(tiny_model).fingerprint
    assert len({hybrid.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert tiny_model_changed == hybrid.fingerprint


@pytest.mark.parametrize("k", [0, 22])
def test_a_k_beyond_the_documents_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k} is out of range for 21 documents"):
        Hybrid(BM25()).rank(QUERIES, DOCUMENTS, k)
