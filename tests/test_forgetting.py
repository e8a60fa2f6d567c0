from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from test_evaluator import build, made_up

from embedtune.evaluation.comparison import MetricChange
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.forgetting import Forgetting, check_forgetting, general_data
from embedtune.models.load import load_model
from embedtune.near_duplicates import near_duplicate_pairs
from embedtune.retrieval.bm25 import BM25
from embedtune.sample.general import load_general


@pytest.fixture(scope="module")
def minilm():
    torch.set_num_threads(1)
    return load_model("minilm", device="cpu")


def shaken(model, amount):
    """Return a copy whose weights are moved at random by a share of their size."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(amount * weight.std(correction=0) * torch.randn(weight.shape, generator=generator))
    return changed


def test_the_general_set_is_well_formed_and_says_nothing_twice():
    chunks, questions = load_general()
    for chunk in chunks:
        assert chunk.end - chunk.start == len(chunk.text)
        assert chunk.text[-1] in ".!?"
    assert near_duplicate_pairs([chunk.text for chunk in chunks]) == []
    assert near_duplicate_pairs([question.text for question in questions]) == []
    assert general_data().splits == ["test"]


def test_a_real_model_knows_most_of_it_but_not_all_and_words_alone_do_not_suffice(minilm):
    evaluator = TopKEvaluator(general_data())
    assert 0.85 < evaluator.evaluate(minilm).metrics["ndcg@10"] < 0.95
    assert evaluator.evaluate(BM25()).metrics["ndcg@10"] < 0.6


def test_a_model_remembers_what_it_is(minilm):
    found = check_forgetting(minilm, minilm)
    assert (found.decision, found.verdict.decision) == ("remembers", "cannot tell")
    assert found.sentence.startswith("Remembers (n = 100 general questions): ndcg@10 went from 0.9")
    assert str(found).startswith(found.sentence)


def test_a_model_whose_weights_are_shaken_forgets(minilm):
    found = check_forgetting(minilm, shaken(minilm, 0.5))
    assert found.decision == "forgets"
    assert found.sentence.startswith("Forgets (")
    assert "hip it" not in str(found)


def test_few_questions_cannot_tell(tiny_model):
    data = build(*made_up(num_queries=12))
    assert check_forgetting(tiny_model, shaken(tiny_model, 0.05), data=data).decision == "cannot tell"


def test_a_set_smaller_than_ten_chunks_will_do(tiny_model):
    data = build(*made_up(num_chunks=6, num_queries=4))
    assert check_forgetting(tiny_model, tiny_model, data=data).verdict.before.k == (1, 3, 5)


@pytest.mark.parametrize(
    ("decision", "low", "expected"),
    [
        ("cannot tell", -0.05, "remembers"),
        ("cannot tell", -0.051, "cannot tell"),
        ("better", 0.01, "remembers"),
        ("worse", -0.04, "forgets"),
    ],
)
def test_a_model_remembers_if_the_interval_excludes_a_loss_beyond_the_margin(decision, low, expected):
    change = MetricChange(before=0.9, after=0.89, difference=-0.01, low=low, high=0.02)
    verdict = SimpleNamespace(decision=decision, metrics={"ndcg@10": change}, primary_metric="ndcg@10")
    assert Forgetting(verdict, margin=0.05).decision == expected


def test_a_margin_of_nothing_is_refused(tiny_model):
    with pytest.raises(ValueError, match="margin=0 must be positive"):
        check_forgetting(tiny_model, tiny_model, margin=0)
