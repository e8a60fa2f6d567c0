"""RemineNegatives: each epoch trains on what the model ranks high by then."""

from __future__ import annotations

import pytest
from test_trainer import make_data

from embedtune.training.arguments import TuningArguments
from embedtune.training.losses import CosineEmbeddingLoss, TripletMarginLoss
from embedtune.training.negatives.mining import mine_hard_negatives
from embedtune.training.negatives.remining import RemineNegatives
from embedtune.training.trainer import EmbeddingTrainer


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def arguments(tmp_path):
    def make(**options):
        settings = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 3e-3}
        return TuningArguments(str(tmp_path / "out"), disable_tqdm=True, use_cpu=True, **(settings | options))

    return make


def read(dataset):
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize("loss", ["in-batch", "triplet", "cosine"])
def test_each_epoch_trains_on_what_the_model_ranks_high_by_then(tiny_model, data, arguments, loss):
    options = {"loss": loss, "num_negatives": 2, "relative_margin": None}
    remine = RemineNegatives(tiny_model, data, **options)
    first = read(remine.dataset)
    assert first == read(mine_hard_negatives(tiny_model, data, **options))
    seen = []

    class Watch(type(remine)):
        def __init__(self):
            """Takes nothing, and only looks."""

        def on_epoch_begin(self, args, state, control, **kwargs):
            seen.append((read(remine.dataset), read(mine_hard_negatives(kwargs["model"], data, **options))))

    named = {"in-batch": None, "triplet": TripletMarginLoss, "cosine": CosineEmbeddingLoss}[loss]
    args = arguments(load_best_model_at_end=False, eval_strategy="no", save_strategy="no", learning_rate=1e-2)
    trainer = EmbeddingTrainer(
        tiny_model, args, data=data, train_dataset=remine.dataset, loss=named, callbacks=[remine, Watch()]
    )
    trainer.train()
    assert len(seen) == 3
    for now, expected in seen:
        assert now == expected
    assert seen[0][0] == first
    assert seen[2][0] != first
    assert read(trainer.train_dataset) == seen[2][0], "the trainer reads the same rows"


def test_workers_that_would_keep_the_first_negatives_are_refused(tiny_model, data, arguments):
    remine = RemineNegatives(tiny_model, data)
    args = arguments(dataloader_num_workers=1, dataloader_persistent_workers=True, max_steps=1)
    trainer = EmbeddingTrainer(tiny_model, args, data=data, train_dataset=remine.dataset, callbacks=[remine])
    with pytest.raises(ValueError, match="the workers would keep the first negatives"):
        trainer.train()
