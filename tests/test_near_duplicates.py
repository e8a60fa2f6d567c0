"""Near-duplicate passages and questions, against the definition spelled out pair by pair."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune import near_duplicates
from embedtune.near_duplicates import Spans, first_members, near_duplicate_groups, near_duplicate_passages, shingles

TEXTS = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=14)


def jaccard(first, second):
    return len(first & second) / max(1, len(first | second))


def components(size, pairs):
    return first_members(size, np.array(list(pairs), dtype=np.int64))


def in_documents(documents):
    """Passages of 10 characters, far apart in their documents."""
    starts = 1000 * np.arange(len(documents))
    return Spans(np.array(documents, dtype=np.int64), starts, starts + 10)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.data())
def test_passages_are_near_duplicates_if_they_share_half_of_all_and_half_of_what_is_their_own(texts, data):
    documents = data.draw(st.lists(st.integers(0, 3), min_size=len(texts), max_size=len(texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "MANY_PLACES", 2)
        patch.setattr(near_duplicates, "_ROWS_PER_BLOCK", 4)
        found = near_duplicate_passages(texts, in_documents(documents))
    sets = [shingles(text) for text in texts]
    places = defaultdict(int)
    for shingle in itertools.chain(*sets):
        places[shingle] += 1
    own = [frozenset(one for one in each if places[one] <= 2) for each in sets]
    expected = [
        (i, j)
        for i, j in itertools.combinations(range(len(texts)), 2)
        if (jaccard(own[i], own[j]) >= 0.5 and jaccard(sets[i], sets[j]) >= 0.5)
        or (not own[i] and not own[j] and sets[i] == sets[j])
    ]
    assert components(len(texts), found.tolist()) == components(len(texts), expected)


@settings(max_examples=80, deadline=None)
@given(TEXTS)
def test_questions_are_grouped_by_chains_of_near_duplicates(texts):
    sets = [shingles(text) for text in texts]
    pairs = [(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if jaccard(sets[i], sets[j]) >= 0.5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates, "_ROWS_PER_BLOCK", 4)
        assert near_duplicate_groups(texts) == components(len(texts), pairs)


def test_overlapping_chunks_are_one_place_and_no_pair():
    text = "press the red button twice and wait for the lamp to shine"
    overlapping = Spans(np.zeros(30, dtype=np.int64), 5 * np.arange(30), 5 * np.arange(30) + 60)
    copy = Spans(*(np.append(values, new) for values, new in zip(overlapping, (1, 0, 60), strict=True)))
    found = near_duplicate_passages([text] * 31, copy)
    assert {tuple(pair) for pair in found.tolist()} >= {(i, 30) for i in range(30)}
    close = [(i, j) for i, j in found.tolist() if j < 30 and j - i < 12]
    assert close == []


def test_many_copies_make_few_pairs():
    texts = ["all rights reserved by the maker of this manual"] * 3000
    assert len(near_duplicate_passages(texts, in_documents(range(3000)))) < 3000


def test_no_texts_make_no_pairs():
    assert near_duplicate_groups([]) == []
    assert near_duplicate_groups(["?!", "...", "a"]) == [0, 0, 2]
