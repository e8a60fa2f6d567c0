"""The sample handbook: every question is bound to its passage, however the documents are cut."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from embedtune.corpus.chunking import chunk_documents
from embedtune.dataset.folds import document_of_questions
from embedtune.dataset.retrieval_dataset import build_dataset
from embedtune.near_duplicates import near_duplicate_pairs
from embedtune.sample import load_sample
from embedtune.text import same_question, words


class Words:
    """Counts words: no tokenizer needs to be there."""

    def token_starts(self, text):
        import numpy as np

        return np.array([match.start() for match in re.finditer(r"\S+", text)], dtype=np.int64)


@pytest.fixture(scope="module")
def sample():
    return load_sample()


@pytest.fixture(scope="module")
def chunks(sample):
    from embedtune.models.load import load_model

    return chunk_documents(sample.documents, max_tokens=250, tokenizer=load_model("minilm", device="cpu"))


def test_it_is_large_enough_for_folds_to_decide_and_small_enough_for_a_demo(sample, chunks):
    assert 38 <= len(sample.documents) <= 42
    assert 150 <= len(chunks) <= 180
    assert 700 <= len(sample.questions) <= 800
    per_chunk = Counter(chunk_id for q in sample.questions_for(chunks) for chunk_id in q.chunk_ids)
    assert set(per_chunk) == {chunk.id for chunk in chunks}
    assert 4 <= min(per_chunk.values()) <= max(per_chunk.values()) <= 6


def test_every_document_has_a_title_and_keywords(sample):
    assert all(document.title and document.keywords for document in sample.documents)
    assert not any(document.text.startswith("---") for document in sample.documents)


def test_every_quotation_stands_exactly_once_in_its_document(sample):
    texts = {document.id: document.text for document in sample.documents}
    for question in sample.questions:
        for document, quote in question.evidence:
            assert texts[document].count(quote) == 1, (question.text, quote)


def test_no_question_stands_twice(sample):
    assert len({same_question(question.text) for question in sample.questions}) == len(sample.questions)
    assert near_duplicate_pairs([question.text for question in sample.questions]) == []


def test_no_two_chunks_say_nearly_the_same(chunks):
    assert near_duplicate_pairs([chunk.text for chunk in chunks]) == []


def test_no_question_quotes_a_sentence_of_the_handbook(sample):
    pieces = [piece for d in sample.documents for piece in re.split(r"(?<=[.!?:])\s+|[\n|]", d.text)]
    sentences = {same_question(piece) for piece in pieces if len(words(piece)) >= 4}
    questions = {same_question(question.text) for question in sample.questions}
    assert not [key for key in questions if any(sentence in key for sentence in sentences)]


def test_the_questions_are_about_many_documents_that_stand_or_fall_alone(sample, chunks):
    data = build_dataset(chunks, sample.questions_for(chunks))
    relevant = {query: ids for split in data.qrels for query, ids in data.relevant(split).items()}
    assert len(set(document_of_questions(data, relevant).values())) >= 25


def test_questions_are_asked_in_all_styles_and_most_not_in_the_words_of_the_text(sample):
    counts = Counter(question.style for question in sample.questions)
    assert set(counts) == {"literal", "paraphrase", "vague", "keyword"}
    assert counts["literal"] < 0.25 * len(sample.questions) < counts["paraphrase"]
    assert sum(len(question.evidence) > 1 for question in sample.questions) >= 25


@pytest.mark.parametrize(("max_tokens", "overlap"), [(40, 0), (150, 0), (150, 40), (2000, 0)])
def test_questions_go_to_the_chunks_that_hold_their_passages_whatever_the_size(sample, max_tokens, overlap):
    chunks = chunk_documents(sample.documents, max_tokens=max_tokens, overlap=overlap, tokenizer=Words())
    by_id = {chunk.id: chunk for chunk in chunks}
    questions = sample.questions_for(chunks)
    assert len({question.id for question in questions}) == len(sample.questions)
    for question, source in zip(questions, sample.questions, strict=True):
        for chunk_id in question.chunk_ids:
            quotes = [quote for document, quote in source.evidence if document == by_id[chunk_id].document_id]
            whole = [quote for quote in quotes if quote in by_id[chunk_id].text]
            assert whole or max_tokens == 40, "only very small chunks may cut through a passage"


def test_a_slice_keeps_only_the_questions_that_it_answers():
    part = load_sample(num_documents=3)
    known = {document.id for document in part.documents}
    assert len(known) == 3
    assert part.questions
    assert all(document in known for question in part.questions for document, _ in question.evidence)


def test_chunks_of_other_documents_are_refused(sample):
    chunks = chunk_documents(sample.documents[:2], max_tokens=200, tokenizer=Words())
    with pytest.raises(ValueError, match=r"Pass chunks of sample\.documents"):
        sample.questions_for(chunks)
