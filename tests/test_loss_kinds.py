"""What a loss needs of its batches: rows on their own, or texts that occur once."""

from __future__ import annotations

from collections import Counter

import pytest
from sentence_transformers.base.training_args import BatchSamplers
from sentence_transformers.sentence_transformer import losses as st
from test_trainer import make_data

from embedtune.training.arguments import TuningArguments
from embedtune.training.loss_kinds import is_row_by_row, needs_distinct_texts
from embedtune.training.losses import CosineEmbeddingLoss, InBatchNegativesLoss, RetrievalLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer

PAIRS, WITH_LABEL = ["anchor", "positive"], ["anchor", "positive", "label"]


class OwnInBatchLoss(st.MultipleNegativesRankingLoss):
    """A subclass is as much in need of distinct texts as its parent."""


class OwnLoss(RetrievalLoss):
    """Reads pairs without ids."""


@pytest.mark.parametrize(
    ("make", "columns", "needed"),
    [
        (st.MultipleNegativesRankingLoss, PAIRS, True),
        (st.MultipleNegativesRankingLoss, WITH_LABEL, True),  # it does not read the label
        (OwnInBatchLoss, WITH_LABEL, True),
        (st.CachedMultipleNegativesRankingLoss, WITH_LABEL, True),
        (lambda m: st.MatryoshkaLoss(m, st.MultipleNegativesRankingLoss(m), [32, 16]), WITH_LABEL, True),
        (lambda m: st.GISTEmbedLoss(m, m), PAIRS, True),
        (st.MegaBatchMarginLoss, PAIRS, True),
        (st.GlobalOrthogonalRegularizationLoss, PAIRS, True),
        (InBatchNegativesLoss, PAIRS, True),
        (InBatchNegativesLoss, WITH_LABEL, False),
        (lambda m: st.MatryoshkaLoss(m, InBatchNegativesLoss(m), [32, 16]), WITH_LABEL, False),
        (lambda m: TripletMarginLoss(m, negatives="hardest"), WITH_LABEL, False),
        (OwnLoss, WITH_LABEL, True),
        (TripletMarginLoss, ["chunk", "question", "other_question"], False),
        (CosineEmbeddingLoss, ["chunk", "question", "label"], False),
        (st.TripletLoss, ["anchor", "positive", "negative"], False),
        (st.CoSENTLoss, WITH_LABEL, False),
        (st.BatchHardTripletLoss, ["anchor", "label"], False),
    ],
)
def test_losses_that_would_take_a_questions_own_chunk_for_a_negative(tiny_model, make, columns, needed):
    assert needs_distinct_texts(make(tiny_model), columns) == needed
    assert needs_distinct_texts({"a": TripletMarginLoss(tiny_model), "b": make(tiny_model)}, columns) == needed
    assert not (needed and is_row_by_row(make(tiny_model)))


@pytest.fixture
def sampled(tiny_model, tmp_path):
    """A trainer, and whether a chunk occurs in several rows of one of its batches."""

    def make(loss, *, data=None, **options):
        settings = {"per_device_train_batch_size": 12, "use_cpu": True, "eval_strategy": "no", "save_strategy": "no"}
        args = TuningArguments(str(tmp_path), load_best_model_at_end=False, **(settings | options))
        trainer = EmbeddingTrainer(tiny_model, args, data=data or make_data(dev_size=0), loss=loss)
        places = [batch["text_rows"][:, 1].tolist() for batch in trainer.get_train_dataloader()]
        assert sum(map(len, places)) == len(trainer.train_dataset), "every row comes once an epoch"
        return trainer, any(count > 1 for batch in places for count in Counter(batch).values())

    return make


def test_a_loss_that_reads_no_ids_never_has_a_questions_own_chunk_among_its_negatives(sampled):
    trainer, repeated = sampled(st.MultipleNegativesRankingLoss)
    assert trainer.args.batch_sampler == BatchSamplers.NO_DUPLICATES
    assert not repeated


def test_a_loss_that_reads_ids_and_rows_that_are_grouped_on_purpose_keep_their_batches(sampled):
    assert sampled(None)[1]
    assert sampled(st.MultipleNegativesRankingLoss, group_rows=True)[1]
