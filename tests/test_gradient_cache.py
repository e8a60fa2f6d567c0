"""Gradient caching: the second pass repeats the first, also its random numbers."""

from __future__ import annotations

import pytest
import torch
from test_encode_once import TRIPLETS, WITH_IDS

from embedtune.training.arguments import TuningArguments
from embedtune.training.dropout import dropout_within
from embedtune.training.losses import InBatchNegativesLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer


@pytest.fixture
def cached_step(tiny_model, tmp_path):
    """Run a step with dropout and cached gradients; return the loss, and the vectors of each part in both passes."""

    def run(loss, rows):
        options = {"eval_strategy": "no", "load_best_model_at_end": False, "use_cpu": True, "dropout": 0.3}
        args = TuningArguments(
            str(tmp_path), per_device_train_batch_size=len(rows), mini_batch_num_tokens=15, **options
        )
        trainer = EmbeddingTrainer(tiny_model, args, train_dataset=rows, loss=loss)
        trainer.current_gradient_accumulation_steps = 1
        vectors = {False: [], True: []}
        tiny_model.register_forward_hook(
            lambda *call: vectors[torch.is_grad_enabled()].append(call[-1]["sentence_embedding"].detach().clone())
        )
        tiny_model.train()
        torch.manual_seed(5)
        batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        with dropout_within(tiny_model, args.dropout):  # as in train()
            loss = trainer.training_step(tiny_model, batch)
        return loss, vectors

    return run


@pytest.mark.parametrize(("loss", "rows"), [(TripletMarginLoss, TRIPLETS), (InBatchNegativesLoss, WITH_IDS)])
def test_both_passes_draw_the_same_dropout_masks(cached_step, loss, rows):
    _, vectors = cached_step(loss, rows)
    assert len(vectors[True]) == len(vectors[False]) > 2
    for first, second in zip(vectors[False], vectors[True], strict=True):
        assert torch.equal(first, second)


def test_the_gradient_with_dropout_is_that_of_the_loss_that_was_computed(cached_step, tiny_model):
    """A small step against the gradient, under the same masks, changes the loss by the gradient's squared norm."""
    tiny_model.double()
    before, _ = cached_step(TripletMarginLoss, TRIPLETS)
    gradients = {name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.grad is not None}
    norm = sum(float((gradient**2).sum()) for gradient in gradients.values())
    step = 1e-5 / norm
    with torch.no_grad():
        for name, gradient in gradients.items():
            tiny_model.get_parameter(name).sub_(step * gradient)
    after, _ = cached_step(TripletMarginLoss, TRIPLETS)
    assert float(before - after) == pytest.approx(step * norm, rel=1e-2)
