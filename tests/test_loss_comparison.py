"""compare_losses: each loss from the same weights, the choice on dev, its worth on test."""

from __future__ import annotations

import pytest
import torch
from test_trainer import make_data

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.loss_comparison import compare_losses
from embedtune.training.losses import InBatchNegativesLoss, RetrievalLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer


@pytest.fixture(scope="module")
def data():
    return make_data(test_size=0.3, dev_size=0.3)


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "dropout": 0.0}
        return TuningArguments(str(tmp_path / "out"), disable_tqdm=True, use_cpu=True, **(settings | options))

    return make


class SpoilingLoss(RetrievalLoss):
    """Pushes every question away from its chunk."""

    def compute_loss_from_embeddings(self, embeddings, labels):
        return torch.nn.functional.cosine_similarity(*embeddings[:2]).mean()


def test_every_loss_starts_from_the_same_weights_and_gets_its_own_rows(tiny_model, data, arguments):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    comparison = compare_losses(tiny_model, data, args=arguments(num_negatives=2), k=(1, 3))
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, before[name])
    pairs = len(data.pairs("train"))
    rows = {run.name: run.num_rows for run in comparison.runs}
    assert rows["in-batch"] == 2 * pairs
    assert rows["triplet"] == 2 * 2 * pairs
    assert 2 * 2 * pairs < rows["cosine"] <= 2 * 3 * pairs

    EmbeddingTrainer(tiny_model, arguments(num_negatives=2, loss="triplet"), data=data).train()
    alone = TopKEvaluator(data, "dev", k=(1, 3)).evaluate(tiny_model)
    triplet = next(run for run in comparison.runs if run.name == "triplet")
    assert triplet.evaluations["dev"].metrics == alone.metrics


def test_dev_chooses_and_test_confirms(tiny_model, data, arguments):
    losses = {"spoils": SpoilingLoss, "in-batch": InBatchNegativesLoss}
    args = arguments(num_train_epochs=4, load_best_model_at_end=False)
    comparison = compare_losses(tiny_model, data, losses=losses, args=args, k=(1, 3))
    scores = [run.evaluations["dev"].metrics["ndcg@3"] for run in comparison.runs]
    assert scores == sorted(scores, reverse=True)
    assert [run.name for run in comparison.runs] == ["in-batch", "spoils"]
    if scores[0] > comparison.base.metrics["ndcg@3"]:
        assert comparison.chosen == "in-batch"
        assert comparison.test.after is comparison.runs[0].evaluations["test"]
        assert comparison.test.before.split == "test"
        assert "in-batch is best on dev" in repr(comparison)
        assert f"On test: {comparison.test.headline}: " in repr(comparison)
    assert comparison.base.split == "dev"
    assert "spoils" in comparison._repr_html_()


def test_a_base_model_that_nothing_beats_is_kept(tiny_model, data, arguments):
    EmbeddingTrainer(tiny_model, arguments(num_train_epochs=4), data=data).train()
    args = arguments(load_best_model_at_end=False)
    comparison = compare_losses(tiny_model, data, losses={"spoils": SpoilingLoss}, args=args, k=(1, 3))
    assert comparison.chosen is None
    assert comparison.test is None
    headline = comparison.against_base[0].headline
    assert headline in ("keep what you have", "cannot tell yet")
    assert repr(comparison).startswith(f"No loss is better than the base model on dev: {headline}.")


def test_a_loss_with_settings_of_its_own_has_a_name(tiny_model, data, arguments):
    losses = {"hardest": lambda model: TripletMarginLoss(model, negatives="hardest")}
    comparison = compare_losses(tiny_model, data, losses=losses, args=arguments(max_steps=1), k=(1,))
    assert [run.name for run in comparison.runs] == ["hardest"]
    assert comparison.runs[0].num_rows == 8


def test_without_a_dev_split_or_anything_to_compare_nothing_is_trained(tiny_model, data):
    with pytest.raises(ValueError, match="the test split must not choose"):
        compare_losses(tiny_model, make_data(dev_size=0))
    with pytest.raises(ValueError, match="must be a list of at least one name"):
        compare_losses(tiny_model, data, losses="triplet")
    with pytest.raises(ValueError, match="'mnrl', which is not one of"):
        compare_losses(tiny_model, data, losses=["mnrl"])
