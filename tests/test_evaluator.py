from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.result import Evaluation
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.fingerprint import model_fingerprint

torch.set_num_threads(1)

THINGS = [
    "pump",
    "valve",
    "sensor",
    "door",
    "filter",
    "battery",
    "cable",
    "harbour",
    "island",
    "ship",
    "crane",
    "engine",
    "window",
    "roof",
    "garden",
    "river",
]
ADJECTIVES = ["clean", "dry", "cold", "warm", "red", "blue", "green", "old", "new", "fast", "slow"]
KS = (1, 3, 5, 10)


def build(corpus, queries, relevant, *, split="test"):
    """Build a dataset from dictionaries of texts by id, and of right chunks by question."""
    pairs = [(query, chunk) for query, chunks in relevant.items() for chunk in chunks]
    return RetrievalDataset(
        corpus=Dataset.from_dict({"_id": list(corpus), "text": list(corpus.values())}),
        queries=Dataset.from_dict({"_id": list(queries), "text": list(queries.values())}),
        qrels={
            split: Dataset.from_dict(
                {"query-id": [q for q, _ in pairs], "corpus-id": [c for _, c in pairs], "score": [1] * len(pairs)}
            )
        },
    )


def made_up(*, num_chunks=48, num_queries=40, num_right=1, num_copies=0, seed=0):
    """Make up texts; the last ``num_copies`` chunks say what the first ones say."""
    rng = random.Random(seed)
    texts = [f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)} {rng.choice(THINGS)} {i}" for i in range(num_chunks)]
    texts[num_chunks - num_copies :] = texts[:num_copies]
    corpus = {f"c{i:03}": text for i, text in enumerate(texts)}
    queries = {f"q{i:03}": f"which {rng.choice(ADJECTIVES)} {rng.choice(THINGS)}" for i in range(num_queries)}
    relevant = {query: rng.sample(sorted(corpus), rng.randint(1, num_right)) for query in queries}
    return corpus, queries, relevant


def sentence_transformers_metrics(model, corpus, queries, relevant):
    ks = list(KS)
    evaluator = InformationRetrievalEvaluator(
        queries,
        corpus,
        {query: set(chunks) for query, chunks in relevant.items()},
        mrr_at_k=ks,
        ndcg_at_k=ks,
        accuracy_at_k=ks,
        precision_recall_at_k=ks,
        map_at_k=ks,
        write_csv=False,
    )
    values = evaluator(model)
    kind = model.similarity_fn_name
    return {f"{m}@{k}": values[f"{kind}_{m}@{k}"] for k in KS for m in ("accuracy", "recall", "mrr", "ndcg", "map")}


class Fixed:
    """A ranker that gives the positions it was told, whatever it is asked."""

    def __init__(self, positions):
        self.positions = np.array(positions)

    def rank(self, queries, documents, k):
        scores = np.linspace(1, 0, k, dtype=np.float32)
        return self.positions, np.tile(scores, (len(queries), 1))


@pytest.mark.parametrize("num_right", [1, 4])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_metrics_equal_those_of_sentence_transformers(tiny_model, num_right, similarity):
    case = made_up(num_right=num_right)
    tiny_model.similarity_fn_name = similarity
    expected = sentence_transformers_metrics(tiny_model, *case)
    metrics = TopKEvaluator(build(*case), k=KS).evaluate(tiny_model).metrics
    assert metrics == pytest.approx(expected, abs=1e-12)
    assert 0 < metrics["ndcg@10"] < 1


def test_metrics_equal_those_of_sentence_transformers_with_prompts(tiny_model):
    case = made_up(num_right=2)
    evaluator = TopKEvaluator(build(*case), k=KS)
    without = evaluator.evaluate(tiny_model).metrics
    tiny_model.prompts = {"query": "find the old stone: ", "document": "garden glass: "}
    metrics = evaluator.evaluate(tiny_model).metrics
    assert metrics == pytest.approx(sentence_transformers_metrics(tiny_model, *case), abs=1e-12)
    assert metrics != without


class FromEncoder:
    """What InformationRetrievalEvaluator needs of a model, with equal vectors for equal texts."""

    similarity_fn_name = "cosine"

    def __init__(self, model):
        self.encoder = ModelEncoder(model)
        self.similarity, self.model_card_data = model.similarity, model.model_card_data

    def encode_query(self, texts, **_):
        return torch.tensor(self.encoder.encode_queries(texts))

    def encode_document(self, texts, **_):
        return torch.tensor(self.encoder.encode_documents(texts))


def test_metrics_equal_those_of_sentence_transformers_with_repeated_texts(tiny_model):
    corpus, queries, relevant = case = made_up(num_copies=24, num_right=2)
    judged = {
        query: [chunk for chunk in corpus if corpus[chunk] in {corpus[one] for one in chunks}]
        for query, chunks in relevant.items()
    }
    expected = sentence_transformers_metrics(FromEncoder(tiny_model), corpus, queries, judged)
    assert TopKEvaluator(build(*case), k=KS).evaluate(tiny_model).metrics == pytest.approx(expected, abs=1e-12)


def test_metrics_and_rows_equal_a_hand_calculation():
    data = build(
        {"c": "three", "a": "one", "d": "four", "b": "two"},
        {"q2": "second?", "q1": "first?", "q3": "third?"},
        {"q2": ["b"], "q1": ["d", "a"], "q3": ["c"]},
    )
    # Positions are of the corpus sorted by id: a b c d.
    evaluation = TopKEvaluator(data, k=(2, 1)).evaluate(
        Fixed([[1, 0, 3, 2], [1, 0, 2, 3], [0, 1, 3, 2]]), name="made up"
    )
    assert (evaluation.name, evaluation.split, evaluation.k) == ("made up", "test", (1, 2))
    assert (evaluation.num_queries, evaluation.num_chunks, evaluation.depth) == (3, 4, 4)
    rows = evaluation.per_query
    assert rows["query-id"][:] == ["q1", "q2", "q3"]
    assert rows["query"][:] == ["first?", "second?", "third?"]
    assert rows["relevant"][:] == [["d", "a"], ["b"], ["c"]]
    assert rows["rank"][:] == [2, 1, 4]
    assert rows["retrieved"][:] == [["b", "a"], ["b", "a"], ["a", "b"]]
    assert rows["scores"][0] == pytest.approx([1, 2 / 3])
    log3 = 1 / np.log2(3)
    assert evaluation.metrics == pytest.approx(
        {
            "accuracy@1": 1 / 3,
            "recall@1": 1 / 3,
            "mrr@1": 1 / 3,
            "ndcg@1": 1 / 3,
            "map@1": 1 / 3,
            "accuracy@2": 2 / 3,
            "recall@2": (1 / 2 + 1) / 3,
            "mrr@2": (1 / 2 + 1) / 3,
            "ndcg@2": (log3 / (1 + log3) + 1) / 3,
            "map@2": (1 / 4 + 1) / 3,
        }
    )
    assert evaluation.misses(1)["query-id"][:] == ["q1", "q3"]
    assert evaluation.misses(2)["query-id"][:] == ["q3"]
    assert len(evaluation.misses(4)) == 0


def test_a_copy_of_the_relevant_chunk_is_relevant_too():
    corpus = {"a": "press both", "b": "turn left", "c": "press both", "d": "oil it"}
    data = build(corpus, {"q1": "restart?", "q2": "reset?"}, {"q1": ["c"], "q2": ["a"]})
    evaluation = TopKEvaluator(data, k=(1, 2)).evaluate(Fixed([[0, 1, 2, 3], [2, 0, 1, 3]]))
    assert evaluation.per_query["relevant"][:] == [["a", "c"]] * 2
    assert evaluation.per_query["rank"][:] == [1, 1]
    assert evaluation.metrics["accuracy@1"] == 1
    assert evaluation.metrics["recall@2"] == (1 / 2 + 1) / 2
    assert len(evaluation.misses(1)) == 0
    assert evaluation.clusters.tolist() == [0, 0]


@pytest.mark.parametrize("row", [[1, 1, 0, 2], [0, 1, 2, 0], [2, 0, -1, 0]])
def test_a_ranking_with_a_chunk_twice_is_refused(row):
    data = build({c: c for c in "abcd"}, {"q1": "first?", "q2": "second?"}, {"q1": ["a"], "q2": ["b"]})
    evaluator = TopKEvaluator(data, k=(1, 2))
    with pytest.raises(ValueError, match=r"'made up' ranks a chunk more than once for the question 'q2': position \d"):
        evaluator.evaluate(Fixed([[0, 1, -1, -1], row]), name="made up")


def test_ranks_are_known_to_a_hundred_and_none_beyond():
    corpus = {f"c{i:03}": str(i) for i in range(150)}
    data = build(corpus, {"q1": "first", "q2": "second"}, {"q1": ["c099"], "q2": ["c100"]})
    evaluation = TopKEvaluator(data, k=(1,)).evaluate(Fixed([range(100)] * 2))
    assert evaluation.per_query["rank"][:] == [100, None]
    assert evaluation.misses(100)["query-id"][:] == ["q2"]
    with pytest.raises(ValueError, match="k=101 is out of range: ranks are known from 1 to 100"):
        evaluation.misses(101)


def test_the_order_of_the_tables_makes_no_difference(tiny_model):
    corpus, queries, relevant = made_up(num_copies=20, num_right=3)
    expected = TopKEvaluator(build(corpus, queries, relevant)).evaluate(tiny_model)
    rng = random.Random(1)
    shuffled = [dict(rng.sample(list(table.items()), len(table))) for table in (corpus, queries, relevant)]
    evaluation = TopKEvaluator(build(*shuffled)).evaluate(tiny_model)
    assert evaluation.fingerprint == expected.fingerprint
    assert evaluation.metrics == expected.metrics
    for column in ("query-id", "relevant", "rank", "retrieved"):
        assert evaluation.per_query[column][:] == expected.per_query[column][:], column
    np.testing.assert_allclose(evaluation.per_query["scores"][:], expected.per_query["scores"][:], atol=1e-6)


def test_the_same_again_gives_the_same_bytes(tiny_model, tmp_path):
    evaluator = TopKEvaluator(build(*made_up()))
    for name in ("first", "second"):
        evaluator.evaluate(tiny_model).save(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_equal_texts_are_ranked_by_id(tiny_model):
    corpus = {f"c{i}": "the red door" for i in range(9)}
    evaluation = TopKEvaluator(build(corpus, {"q": "which door"}, {"q": ["c4"]}), k=(1, 9)).evaluate(tiny_model)
    assert evaluation.per_query["retrieved"][0] == sorted(corpus)
    assert evaluation.per_query["rank"][0] == 1


def test_a_repeated_judgement_counts_once():
    data = build({"a": "one", "b": "two"}, {"q": "which"}, {"q": ["a", "a"]})
    assert TopKEvaluator(data, k=(1,)).evaluate(Fixed([[0, 1]])).metrics["recall@1"] == 1


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [(0, "c001", "changed"), (1, "q001", "changed"), (2, "q001", ["c000", "c001"]), (0, "c999", "one more")],
)
def test_the_fingerprint_follows_questions_judgements_and_corpus(table, key, value):
    case = made_up()
    before = TopKEvaluator(build(*case)).evaluate(BM25()).fingerprint
    case[table][key] = value
    assert TopKEvaluator(build(*case)).evaluate(BM25()).fingerprint != before
    assert len(before) == 64


def test_an_encoder_and_a_ranker_of_ones_own_can_be_evaluated(tiny_model):
    evaluator = TopKEvaluator(build(*made_up()))
    model, encoder = evaluator.evaluate(tiny_model), evaluator.evaluate(ModelEncoder(tiny_model))
    assert encoder.metrics == model.metrics
    assert encoder.name == "ModelEncoder"
    bm25 = evaluator.evaluate(BM25())
    assert bm25.name == "BM25"
    assert bm25.metrics != model.metrics


def test_a_chunk_without_a_usable_vector_is_named(tiny_model):
    class Broken(ModelEncoder):
        def encode_documents(self, texts):
            vectors = super().encode_documents(texts)
            vectors[texts.index("broken")] = np.nan
            return vectors

    case = made_up()
    case[0]["c007"] = "broken"
    with pytest.raises(ValueError, match="chunk vectors of 'c007' are zero or not finite"):
        TopKEvaluator(build(*case)).evaluate(Broken(tiny_model))


def test_vectors_that_are_missing_are_noticed(tiny_model):
    class Short(ModelEncoder):
        def encode_documents(self, texts):
            return super().encode_documents(texts[1:])

    with pytest.raises(ValueError, match="47 vectors for 48 chunks"):
        TopKEvaluator(build(*made_up())).evaluate(Short(tiny_model))


def test_query_and_document_vectors_of_different_dimensions_are_refused(tiny_model):
    class Cut(ModelEncoder):
        def encode_queries(self, texts):
            return super().encode_queries(texts)[:, :16]

    with pytest.raises(
        ValueError, match=r"\(40, 16\) cannot be compared with a corpus of shape \(48, 32\).*same truncate_dim"
    ):
        TopKEvaluator(build(*made_up())).evaluate(Cut(tiny_model))


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_question_without_a_usable_vector_is_named(tiny_model, value):
    class Broken(ModelEncoder):
        def encode_queries(self, texts):
            vectors = super().encode_queries(texts)
            vectors[5] = value
            return vectors

    with pytest.raises(ValueError, match="query vectors of 'q005' are zero or not finite"):
        TopKEvaluator(build(*made_up())).evaluate(Broken(tiny_model))


def test_a_split_that_is_absent_or_empty_is_refused_with_the_splits_there_are():
    data = build(*made_up(), split="train")
    with pytest.raises(ValueError, match=r"'test'.*\['train'\]"):
        TopKEvaluator(data)
    empty = RetrievalDataset(data.corpus, data.queries, {**data.qrels, "test": data.qrels["train"].select([])})
    with pytest.raises(ValueError, match=r"The split 'test' has no questions.*\['train', 'test'\]"):
        TopKEvaluator(empty)


@pytest.mark.parametrize("k", [(), 10, (0,), (-1, 3), (1.5,), (True,), "10", ("3",), None])
def test_k_must_be_positive_integers(k):
    with pytest.raises(ValueError, match="k must be a list of positive integers"):
        TopKEvaluator(build(*made_up()), k=k)


def test_k_is_sorted_and_each_once():
    assert TopKEvaluator(build(*made_up()), k=[np.int64(5), 3, 5, 1]).k == (1, 3, 5)


def test_k_beyond_the_corpus_is_refused():
    with pytest.raises(ValueError, match="k=49 is larger than the corpus of 48 chunks"):
        TopKEvaluator(build(*made_up()), k=(3, 49))


def test_calling_it_gives_named_metrics_and_writes_no_files(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluator = TopKEvaluator(build(*made_up(), split="dev"), "dev", k=(3, 5))
    assert evaluator.primary_metric == "dev_ndcg@5"
    assert evaluator.greater_is_better
    metrics = evaluator(tiny_model, str(tmp_path), 1, 10)
    assert metrics == {f"dev_{name}": value for name, value in evaluator.evaluate(tiny_model).metrics.items()}
    assert list(tmp_path.iterdir()) == []
    assert evaluator.primary_metric == "dev_ndcg@5"
    assert tiny_model.model_card_data.eval_results_dict[evaluator] == metrics
    named = TopKEvaluator(build(*made_up()), name="handbook")
    assert named.primary_metric in named(tiny_model)
    assert named.primary_metric == "handbook_ndcg@10"


def test_it_chooses_the_best_checkpoint_in_a_trainer(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    corpus, queries, relevant = made_up()
    evaluator = TopKEvaluator(build(corpus, queries, relevant, split="dev"), "dev")
    rows = {
        "anchor": [queries[query] for query in relevant],
        "positive": [corpus[chunks[0]] for chunks in relevant.values()],
    }
    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=6,
        per_device_train_batch_size=20,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{evaluator.primary_metric}",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = SentenceTransformerTrainer(
        tiny_model,
        args,
        train_dataset=Dataset.from_dict(rows),
        evaluator=evaluator,
        loss=MultipleNegativesRankingLoss(tiny_model),
    )
    trainer.train()
    key = f"eval_{evaluator.primary_metric}"
    seen = [entry[key] for entry in trainer.state.log_history if key in entry]
    assert len(seen) == 3
    assert trainer.state.best_metric == max(seen)
    best = evaluator.evaluate(trainer.model)
    assert best.metrics["ndcg@10"] == pytest.approx(max(seen), abs=1e-12)
    assert list(tmp_path.rglob("*.csv")) == []
    trainer.model.save_pretrained(str(tmp_path / "final"))
    card = (tmp_path / "final" / "README.md").read_text()
    assert "ndcg@10" in card
    assert "Top K" in card
    reloaded = SentenceTransformer(str(tmp_path / "final"), device="cpu")
    assert evaluator.evaluate(reloaded).metrics == best.metrics


def test_a_result_survives_saving(tiny_model, tmp_path):
    evaluation = TopKEvaluator(build(*made_up(num_right=2))).evaluate(tiny_model)
    path = tmp_path / "results" / "before.json"
    evaluation.save(path)
    loaded = Evaluation.load(path)
    assert loaded.metrics == evaluation.metrics
    assert loaded.per_query.to_dict() == evaluation.per_query.to_dict()
    assert loaded.per_query.features == evaluation.per_query.features
    for name in ("name", "split", "k", "num_chunks", "fingerprint", "model"):
        assert getattr(loaded, name) == getattr(evaluation, name)
    assert json.loads(path.read_text())["metrics"] == evaluation.metrics


def test_a_result_remembers_what_was_evaluated(tiny_model, tmp_path):
    evaluator = TopKEvaluator(build(*made_up()))
    assert evaluator.evaluate(tiny_model).model == model_fingerprint(tiny_model)
    assert evaluator.evaluate(BM25()).model == BM25().fingerprint
    assert evaluator.evaluate(Fixed([range(48)] * 40)).model == "Fixed"


def test_a_result_that_an_older_version_saved_can_be_read(tmp_path):
    evaluation = TopKEvaluator(build(*made_up())).evaluate(BM25())
    evaluation.save(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    del content["model"]
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert Evaluation.load(tmp_path / "result.json").model == ""


def test_each_metric_has_an_interval_around_it():
    evaluation = TopKEvaluator(build(*made_up())).evaluate(BM25())
    for metric, (low, high) in evaluation.intervals().items():
        assert 0 <= low <= evaluation.metrics[metric] <= high <= 1
        assert evaluation.intervals(confidence_level=0.8)[metric].high < high


def test_a_result_prints_as_a_table_and_escapes_html(tiny_model):
    evaluation = TopKEvaluator(build(*made_up()), k=(1, 10)).evaluate(tiny_model, name="<b>tuned</b>")
    lines = str(evaluation).splitlines()
    assert lines[0] == "<b>tuned</b> on test: 40 questions, 48 chunks"
    assert lines[1].split() == ["@1", "@10"]
    assert lines[2].split() == ["accuracy", *(f"{evaluation.metrics[f'accuracy@{k}']:.3f}" for k in (1, 10))]
    html = evaluation._repr_html_()
    assert "&lt;b&gt;tuned&lt;/b&gt;" in html
    assert "<b>" not in html


def test_what_is_no_dataset_is_refused():
    with pytest.raises(TypeError, match=r"data is a dict. Make a RetrievalDataset"):
        TopKEvaluator({})


@pytest.mark.parametrize(
    ("retriever", "message"),
    [
        ("minilm", r"model is the name 'minilm'. Load it first: load_model\('minilm'\)"),
        (BM25, r"BM25 is a class. Give one of its objects, BM25\(...\)"),
        (None, "Cannot evaluate a NoneType. Give a SentenceTransformer"),
    ],
)
def test_what_is_no_retriever_is_refused_with_what_to_give_instead(retriever, message):
    with pytest.raises(TypeError, match=message):
        TopKEvaluator(build(*made_up())).evaluate(retriever)


class Vectors:
    """An encoder that returns what it is given."""

    def __init__(self, make):
        self.make = make

    def encode_queries(self, texts):
        return self.make(np.ones((len(texts), 3), dtype=np.float32))

    encode_documents = encode_queries


@pytest.mark.parametrize("make", [np.ndarray.tolist, torch.from_numpy, lambda _: None])
def test_vectors_that_are_no_array_are_refused(make):
    with pytest.raises(
        TypeError, match=r"Vectors returned its vectors as a (list|Tensor|NoneType). Return a NumPy array"
    ):
        TopKEvaluator(build(*made_up())).evaluate(Vectors(make))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[48] * 48] * 40, "positions from 48 to 48: those of 48 documents are 0 to 47"),
        ([[-2] * 48] * 40, "positions from -2 to -2"),
        ([[0, 1, 2]] * 2, r"Fixed.rank returned positions of shape \(2, 3\) .*, expected \(40, 48\)"),
    ],
)
def test_a_ranking_that_cannot_be_is_refused(positions, message):
    with pytest.raises(ValueError, match=message):
        TopKEvaluator(build(*made_up())).evaluate(Fixed(positions))


def test_a_position_of_minus_one_is_nothing_found():
    data = build(*made_up())
    nothing = TopKEvaluator(data, k=(1, 5)).evaluate(Fixed([[-1] * 48] * 40))
    assert set(nothing.metrics.values()) == {0}
    assert set(nothing.per_query["rank"][:]) == {None}
    assert nothing.per_query["retrieved"][0] == nothing.per_query["scores"][0] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a', "is not valid JSON, or is truncated"), ('{"a": 1}', "does not contain an evaluation")],
)
def test_a_file_that_holds_no_result_is_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"x.json {message}|x.json is {message}"):
        Evaluation.load(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "rank returned None. Return a pair of arrays"),
        (([[0], [0, 1]], [[1.0], [1.0, 0.5]]), "rank returned .* Return a pair of arrays"),
        ((np.full((40, 48), "a"), np.ones((40, 48))), "rank returned positions of the type <U1 and scores of the type float64"),
        ((np.ones((40, 48)), np.ones((40, 48))), "rank returned positions of the type float64"),
        ((np.linspace(0.9, 0.1, 48)[None].repeat(40, 0), np.arange(48)[None].repeat(40, 0)), "rank returned positions of the type float64"),
    ],
)  # fmt: skip
def test_what_a_ranker_may_not_return_is_refused_by_name(found, message):
    class Odd:
        def rank(self, queries, documents, k):
            return found

    with pytest.raises(ValueError, match=f"Odd.{message}"):
        TopKEvaluator(build(*made_up())).evaluate(Odd())


@pytest.mark.parametrize("damage", [{"k": []}, {"k": [True]}, {"k": "ab"}, {"per_query": []}, {"name": ...}])
def test_a_damaged_result_is_an_error_that_names_the_file(tmp_path, damage):
    data = RetrievalDataset.from_pairs([("Press both.", ["How?"]), ("Turn it.", ["Where?"])], test_size=0.5, dev_size=0)
    path = tmp_path / "result.json"
    TopKEvaluator(data, k=(1,)).evaluate(BM25()).save(path)
    content = json.loads(path.read_text()) | damage
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match=r"result\.json is damaged or incomplete.*Evaluation\.save"):
        Evaluation.load(path)
