from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_evaluator import build

import embedtune as et
from embedtune.evaluation.metrics import ndcg_at_k
from embedtune.retrieval import word_weight
from embedtune.retrieval.word_weight import MULTIPLES, learn_words, spread_of

torch.set_num_threads(1)

COLOURS = ["red", "blue", "green", "grey", "black", "white", "brown", "pink"]
THINGS = ["pump", "valve", "door", "lamp", "roof"]
CORPUS = {f"{c}#{i}": f"check the {c} {thing} every week" for c in COLOURS for i, thing in enumerate(THINGS)}
QUERIES = {f"{c}#{i}/q": f"where is the {c} {thing}" for c in COLOURS for i, thing in enumerate(THINGS)}


@pytest.fixture
def data():
    return with_documents(
        build(CORPUS, QUERIES, {query: [query.removesuffix("/q")] for query in QUERIES}, split="train")
    )


def with_documents(data):
    """Let all chunks of a colour be of one document."""
    documents = [chunk.partition("#")[0] for chunk in data.corpus["_id"]]
    return et.RetrievalDataset(data.corpus.add_column("document_id", documents), data.queries, data.qrels)


def test_words_alone_are_chosen_where_only_words_find_anything(data, tiny_model):
    words = learn_words(data, tiny_model)  # a model with random weights
    assert words.multiple >= 10
    assert words.ndcg[math.inf] > 0.9 > words.ndcg[0.0]
    assert set(words.ndcg) == set(MULTIPLES)


def test_vectors_alone_are_chosen_where_words_mislead(data, tiny_model, monkeypatch):
    position = {text: row for row, text in enumerate([CORPUS[i] for i in sorted(CORPUS)])}
    unit = np.random.default_rng(1).standard_normal((len(CORPUS), 32)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    answers = {QUERIES[query]: position[CORPUS[query.removesuffix("/q")]] for query in QUERIES}
    monkeypatch.setattr(word_weight, "encode_questions", lambda encoder, texts: unit[[answers[text] for text in texts]])
    monkeypatch.setattr(
        "embedtune.retrieval.index.encode_chunks", lambda encoder, texts, ids: unit[[position[t] for t in texts]]
    )
    monkeypatch.setattr(
        "embedtune.retrieval.words.WordIndex.scores",
        lambda self, questions, weights=None: np.random.default_rng(0).random(
            (len(questions), len(self)), dtype=np.float32
        ),
    )
    words = learn_words(data, tiny_model)
    assert words.multiple <= 5
    assert words.ndcg[0.0] > 2 * words.ndcg[math.inf]


def test_a_fold_learns_nothing_from_its_own_documents(data, tiny_model, monkeypatch):
    learned = []
    real = word_weight.WordWeights.learn
    monkeypatch.setattr(
        word_weight.WordWeights, "learn", classmethod(lambda cls, texts: learned.append(list(texts)) or real(texts))
    )
    learn_words(data, tiny_model)
    *folds, whole = learned
    assert len(folds) == 5
    assert sorted(whole) == sorted(QUERIES.values())
    for texts in folds:
        left_out = set(QUERIES.values()) - set(texts)
        assert left_out
        assert not {text.split()[3] for text in left_out} & {
            text.split()[3] for text in texts
        }  # the documents' colours


def test_no_question_of_another_split_is_read(tiny_model):
    def words_with(test_question):
        queries = {**QUERIES, "t": test_question}
        relevant = {query: [query.removesuffix("/q")] for query in QUERIES}
        data = build(CORPUS, queries, relevant, split="train")
        tests = build(CORPUS, queries, {"t": ["red#0"]}, split="test")
        return learn_words(et.RetrievalDataset(data.corpus, data.queries, {**data.qrels, **tests.qrels}), tiny_model)

    first, second = words_with("where is the zeppelin"), words_with("how do I call")
    assert first.multiple == second.multiple
    assert first.ndcg == second.ndcg
    assert first.weights.hashes.tobytes() == second.weights.hashes.tobytes()
    assert first.weights.counts.tobytes() == second.weights.counts.tobytes()


def test_without_training_questions_it_says_so_once_and_every_word_counts(data, tiny_model, caplog):
    words = learn_words(data, tiny_model, split="dev")
    assert words.weights is None
    assert caplog.text.count("no questions in 'dev'") == 1
    assert et.Retriever.from_dataset(tiny_model, data, words=words).search("red pump", k=1)[0].id == "red#0"


def test_the_weight_of_words_follows_the_spread_of_the_similarities(data, tiny_model):
    index = et.Retriever.from_dataset(tiny_model, data).index
    near = np.concatenate([index.vectors * 0.1, np.full((len(index), 1), 1.0, np.float32)], axis=1)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    squeezed_index = type(index)(index.chunks, near, index.model_fingerprint, "cosine")
    assert spread_of(squeezed_index) < 0.05 * spread_of(index)
    weights = [et.Retriever(tiny_model, one).word_weight for one in (index, squeezed_index)]
    assert weights[1] / weights[0] == pytest.approx(spread_of(squeezed_index) / spread_of(index))


def test_a_model_whose_similarities_are_all_equal_leaves_the_choice_to_the_words(data, tiny_model):
    index = et.Retriever.from_dataset(tiny_model, data).index
    same = type(index)(index.chunks, np.tile(index.vectors[:1], (len(index), 1)), index.model_fingerprint, "cosine")
    assert spread_of(same) > 0
    fusion = et.Retriever(tiny_model, same).fusion
    ranking = fusion.rank(same, ["where is the pink roof"], index.vectors[:1], 1)
    assert same.ids[ranking.positions[0, 0]] == "pink#4"


def test_the_same_call_gives_the_same_result(data, tiny_model):
    first, second = (learn_words(data, tiny_model, seed=3) for _ in range(2))
    assert (first.multiple, first.ndcg) == (second.multiple, second.ndcg)


def test_the_ndcg_that_chooses_is_that_of_an_evaluation_also_where_scores_tie():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 4, size=25).astype(np.float32)
        relevant = rng.permutation(25)[: rng.integers(1, 13)]
        order = np.argsort(-scores, kind="stable")[None]
        expected = ndcg_at_k(np.isin(order, relevant), np.array([len(relevant)]), k=10)[0]
        assert word_weight._ndcg(scores, relevant.tolist()) == pytest.approx(expected)


def test_the_spread_leaves_out_the_similarity_of_a_chunk_to_itself(data, tiny_model):
    index = et.Retriever.from_dataset(tiny_model, data).index
    others = [np.delete(index.vectors @ one, row) for row, one in enumerate(index.vectors)]
    assert len(index) <= 64
    assert spread_of(index) == pytest.approx(np.mean([row.std() for row in others]), rel=1e-4)
