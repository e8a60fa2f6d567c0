"""Hard negatives: as hard as a naive search finds them, never right, never held out, and fresh after each epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from test_trainer import make_data

from embedtune.dataset import build_dataset
from embedtune.dataset.views import chunks_for_training
from embedtune.training.arguments import TuningArguments
from embedtune.training.losses import CosineEmbeddingLoss, TripletMarginLoss
from embedtune.training.negatives.mining import mine_hard_negatives
from embedtune.training.trainer import EmbeddingTrainer
from embedtune.types import Chunk, Question


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        settings = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
        return TuningArguments(str(tmp_path / "out"), disable_tqdm=True, use_cpu=True, **(settings | options))

    return make


def entangled_data():
    """Chunk b nearly repeats a, c#1 overlaps c#0, and question 1 is asked of a and, in the same words, of e."""
    first = "press the red pump and wait for the lamp to go on"
    third = "open the old door and clean the filter in the engine"
    chunks = [
        Chunk("a#0", "a", first, 0, len(first)),
        Chunk("b#0", "b", first + " now", 0, len(first) + 4),
        Chunk("c#0", "c", third, 0, len(third)),
        Chunk("c#1", "c", third[20:] + " then dry it", 20, len(third) + 12),
        Chunk("e#0", "e", "the crane is on the ship in the harbour", 0, 39),
        Chunk("f#0", "f", "paper and glass for the blue chair", 0, 34),
    ]
    questions = [
        Question("1", "how to press", ("a#0",)),
        Question("1 again", "How to  press", ("e#0",)),
        Question("2", "how to clean", ("c#0",)),
    ]
    return build_dataset(chunks, questions, test_size=0, dev_size=0)


def by_hand(model, data, question, wrong, *, relative_margin=None):
    """The wrong texts, most similar first, below the margin under the right chunk's score."""
    right = data.pairs("train").filter(lambda row: row["anchor"] == question, keep_in_memory=True)["positive"][0]
    vector = model.encode_query(question, normalize_embeddings=True)
    scores = {text: float(vector @ model.encode_document(text, normalize_embeddings=True)) for text in [right, *wrong]}
    limit = np.inf if relative_margin is None else scores[right] - abs(scores[right]) * relative_margin
    return sorted((text for text in wrong if scores[text] <= limit), key=lambda text: -scores[text])


@pytest.mark.parametrize("relative_margin", [None, 0.05])
def test_negatives_are_the_most_similar_other_chunks_below_the_margin(tiny_model, data, relative_margin):
    rows = mine_hard_negatives(tiny_model, data, num_negatives=2, relative_margin=relative_margin)
    pool = {data.corpus_texts[chunk] for chunk in chunks_for_training(data, "train")}
    for row in rows:
        expected = by_hand(tiny_model, data, row["anchor"], pool - {row["positive"]}, relative_margin=relative_margin)[
            :2
        ]
        assert [row["negative_1"], row["negative_2"]][: len(expected)] == expected
    assert len(rows) == len(data.pairs("train")), "no question is lost"


def test_what_is_known_to_be_relevant_is_not_a_negative(tiny_model):
    data = entangled_data()
    texts = data.corpus_texts
    rows = mine_hard_negatives(tiny_model, data, num_negatives=2, relative_margin=None)
    negatives = {row["anchor"]: {row["negative_1"], row["negative_2"]} for row in rows}
    assert negatives["how to press"] <= {texts["c#0"], texts["c#1"], texts["f#0"]}
    assert negatives["How to  press"] <= {texts["c#0"], texts["c#1"], texts["f#0"]}
    assert not negatives["how to clean"] & {texts["c#0"], texts["c#1"]}


def test_no_chunk_of_a_held_out_document_is_a_negative(tiny_model, data):
    held_out = {data.corpus_texts[c] for split in ("dev", "test") for cs in data.relevant(split).values() for c in cs}
    rows = mine_hard_negatives(tiny_model, data, num_negatives=5, relative_margin=None)
    negatives = {row[f"negative_{i}"] for row in rows for i in range(1, 6)}
    assert held_out
    assert not negatives & held_out


def test_a_seen_test_split_of_the_same_documents_holds_nothing_out():
    data = make_data(test_seen_size=0.3)
    held_out = {c for split in ("dev", "test") for cs in data.relevant(split).values() for c in cs}
    assert set(chunks_for_training(data, "train")) == set(data.corpus_texts) - held_out


def test_places_without_a_candidate_are_filled_with_random_negatives_by_the_seed(tiny_model, data, caplog):
    def mine(seed):
        with caplog.at_level("INFO", logger="embedtune"):
            return mine_hard_negatives(tiny_model, data, num_negatives=3, max_score=-1.0, seed=seed).to_dict()

    rows = mine(1)
    assert "because the score filters left too few candidates" in caplog.text
    assert rows == mine(1)
    assert rows != mine(2)
    for i in (1, 2, 3):
        assert not any(n == p for n, p in zip(rows[f"negative_{i}"], rows["positive"], strict=True))


def test_a_corpus_with_fewer_negatives_than_wanted_repeats_them_and_one_without_any_is_refused(tiny_model):
    data = entangled_data()
    rows = mine_hard_negatives(tiny_model, data, num_negatives=5)
    negatives = [rows[0][f"negative_{i}"] for i in range(1, 6)]
    assert len(set(negatives)) == 3
    assert negatives[3:] == negatives[:2]
    chunks = [Chunk("a#0", "a", "red pump", 0, 8), Chunk("b#0", "b", "blue lamp", 0, 9)]
    everything = build_dataset(chunks, [Question("1", "what is it", ("a#0", "b#0"))], test_size=0, dev_size=0)
    with pytest.raises(ValueError, match="All chunks are relevant to the question 'what is it'"):
        mine_hard_negatives(tiny_model, everything)


def test_ids_keep_a_negative_away_from_the_questions_that_it_answers(tiny_model, data):
    rows = mine_hard_negatives(tiny_model, data, num_negatives=1)
    content = {row["positive"]: row["label"][0] for row in rows}
    for row in rows:
        if row["negative"] in content:
            assert row["label"][-1] == -1 - content[row["negative"]]


@pytest.mark.parametrize(
    ("name", "loss", "columns"),
    [
        ("in-batch", None, ["anchor", "positive", "negative", "label"]),
        ("in-batch", MultipleNegativesRankingLoss, ["anchor", "positive", "negative", "label"]),
        ("triplet", TripletMarginLoss, ["anchor", "positive", "negative"]),
        ("cosine", CosineEmbeddingLoss, ["anchor", "candidate", "label"]),
    ],
)
def test_every_loss_trains_on_its_rows_with_questions_as_anchors(tiny_model, data, arguments, name, loss, columns):
    tiny_model.prompts = {"query": "ask: ", "document": "chunk: "}
    rows = mine_hard_negatives(tiny_model, data, loss=name)
    assert rows.column_names == columns
    options = {"load_best_model_at_end": False, "eval_strategy": "no", "save_strategy": "no", "dropout": 0.0}
    args = arguments(logging_steps=1, num_train_epochs=8, per_device_train_batch_size=64, **options)
    trainer = EmbeddingTrainer(tiny_model, args, data=data, train_dataset=rows, loss=loss)
    assert trainer.args.prompts["anchor"] == "ask: "
    assert {trainer.args.prompts[c] for c in columns if c not in ("anchor", "label")} == {"chunk: "}
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_labels_of_the_cosine_loss_say_what_is_right(tiny_model, data):
    right = {(row["anchor"], row["positive"]) for row in data.pairs("train")}
    rows = mine_hard_negatives(tiny_model, data, loss="cosine", num_negatives=2)
    assert len(rows) == 3 * len(right)
    for row in rows:
        assert (row["label"] == 1) == ((row["anchor"], row["candidate"]) in right)


def test_what_makes_no_sense_is_refused(tiny_model, data):
    for options, error, message in (
        ({"loss": "mnrl"}, ValueError, "loss='mnrl' is not one of"),
        ({"num_negatives": 0}, ValueError, "num_negatives=0 must be at least 1"),
        ({"split": "nowhere"}, ValueError, "no split 'nowhere'"),
        ({"cache_folder": "here"}, TypeError, r"does not take \['cache_folder'\]"),
    ):
        with pytest.raises(error, match=message):
            mine_hard_negatives(tiny_model, data, **options)


def test_mining_draws_no_random_number_that_training_would_draw(tiny_model, data):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    mine_hard_negatives(tiny_model, data)
    assert torch.rand(1) == expected
