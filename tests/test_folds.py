"""Folds of questions: no document, no content and no question is on two sides."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import corpora, with_notice

from embedtune.dataset import build_dataset
from embedtune.dataset.folds import assign_folds, contents_of_chunks, document_of_questions, groups_of_chunks
from embedtune.types import Question


def folds_of(data, num_folds, seed=0):
    relevant = {query: chunks for split in data.splits for query, chunks in data.relevant(split).items()}
    return relevant, assign_folds(document_of_questions(data, relevant), num_folds, seed=seed)


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(2, 4), st.integers(0, 3), st.data())
def test_no_document_group_and_no_content_is_in_two_folds_however_many_chunks_a_question_has(corpus, num, seed, data):
    chunks, questions = corpus
    ids = st.lists(st.sampled_from([chunk.id for chunk in chunks]), min_size=2, max_size=3, unique=True)
    several = data.draw(st.lists(ids, max_size=2))
    asked = [Question(one.id, f"{one.text} {one.id}", one.chunk_ids, split="train") for one in questions]
    asked += [Question(f"s{i}", f"Which, {i}?", tuple(some), split="train") for i, some in enumerate(several)]
    if not asked:
        return
    built = build_dataset(chunks, asked, split_by="given")
    relevant, fold_of = folds_of(built, num, seed)
    groups, contents = groups_of_chunks(built), contents_of_chunks(built)
    holders = defaultdict(set)
    for chunk, content in contents.items():
        holders[content].add(groups[chunk])
    folds = defaultdict(set)
    for query, found in relevant.items():
        for chunk in found:
            folds["content", contents[chunk]].add(fold_of[query])
            if len(holders[contents[chunk]]) == 1:  # a chunk that several groups share is asked about in one of them
                folds["group", groups[chunk]].add(fold_of[query])
    assert all(len(found) == 1 for found in folds.values())


def test_a_notice_in_all_documents_leaves_them_in_folds_of_their_own_and_its_questions_in_one():
    data = build_dataset(*with_notice(20), test_size=0, dev_size=0)
    relevant, fold_of = folds_of(data, 20)
    assert len(set(fold_of.values())) == 20
    assert len({fold_of[query] for query, found in relevant.items() if found[0].endswith("#1")}) == 1
    assert len({fold_of[query] for query, found in relevant.items() if found[0] == "doc03#0"}) == 1
