"""Batches that hold several rows about one chunk: which rows come together, and in which order."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as some
from sentence_transformers.sentence_transformer import losses as st
from test_collator import ROWS

from embedtune.training.arguments import TuningArguments
from embedtune.training.encode_once.sampler import GroupedBatchSampler, longest_run, runs_of_groups
from embedtune.training.losses import InBatchNegativesLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer


def sampler_of(groups, *, batch_size=4, drop_last=False, seed=0, epoch=0):
    rows = Dataset.from_dict({"anchor": [f"q{i}" for i in range(len(groups))], "positive": [str(g) for g in groups]})
    sampler = GroupedBatchSampler(rows, batch_size=batch_size, drop_last=drop_last, seed=seed)
    sampler.set_epoch(epoch)
    return sampler


@given(groups=some.lists(some.integers(0, 5), min_size=1, max_size=60), batch_size=some.integers(1, 40))
def test_every_row_comes_once_an_epoch_and_no_group_is_torn_into_more_than_its_runs(groups, batch_size):
    sampler = sampler_of(groups, batch_size=batch_size)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(groups)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if len(set(groups)) < len(groups):  # else the other column repeats as much
        segments = Counter(group for group, _ in itertools.groupby(groups[row] for row in order))
        sizes = Counter(groups)
        assert all(segments[group] <= -(-size // longest_run(batch_size)) for group, size in sizes.items())


@given(sizes=some.lists(some.integers(1, 30), min_size=1, max_size=8), longest=some.integers(1, 12))
def test_runs_are_as_few_as_their_length_allows_and_nearly_equal(sizes, longest):
    runs = runs_of_groups(np.array(sizes), longest)
    found = [Counter(part.tolist()) for part in np.split(runs, np.cumsum(sizes)[:-1])]
    assert [run for part in found for run in part] == list(range(sum(len(part) for part in found)))
    for size, part in zip(sizes, found, strict=True):
        assert len(part) == -(-size // longest)
        assert max(part.values()) <= longest
        assert max(part.values()) - min(part.values()) <= 1


def test_a_batch_is_about_several_chunks_however_often_each_occurs_in_the_rows():
    sampler = sampler_of([i // 25 for i in range(500)], batch_size=32)
    found = [len({row // 25 for row in batch}) for epoch in range(5) for batch in [*_epoch(sampler, epoch)][:-1]]
    assert min(found) >= 6, "two runs about one chunk may meet"
    assert sum(found) / len(found) >= 8


def _epoch(sampler, epoch):
    sampler.set_epoch(epoch)
    return sampler


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    groups = [i % 10 for i in range(50)]
    first = list(sampler_of(groups))
    assert list(sampler_of(groups)) == first
    sampler = sampler_of(groups)
    assert list(sampler) == list(sampler) == first, "however often it was begun"
    assert list(sampler_of(groups, epoch=1)) != first
    assert list(sampler_of(groups, seed=1)) != first


def test_groups_and_rows_are_shuffled():
    sampler = sampler_of([i // 5 for i in range(50)], batch_size=40)
    firsts = Counter()
    for epoch in range(200):
        sampler.set_epoch(epoch)
        firsts[next(iter(sampler))[0]] += 1
    assert len(firsts) > 40
    assert max(firsts.values()) < 20


def test_a_last_batch_that_is_not_full_can_be_dropped():
    sampler = sampler_of([0, 0, 1, 1, 2], batch_size=2, drop_last=True)
    assert [len(batch) for batch in sampler] == [2, 2]
    assert len(sampler) == 2


def test_the_column_whose_texts_repeat_most_is_kept_together():
    sampler = GroupedBatchSampler(ROWS, batch_size=4, drop_last=False)
    assert sampler.group_of_row.tolist() == [i % 6 for i in range(20)]


def test_processes_share_the_rows_of_an_epoch():
    groups = [i // 5 for i in range(40)]
    shards = [
        BatchSamplerShard(
            sampler_of(groups, batch_size=5, epoch=3), num_processes=2, process_index=i, even_batches=False
        )
        for i in range(2)
    ]
    rows = [row for shard in shards for batch in shard for row in batch]
    assert sorted(rows) == list(range(40))


@pytest.mark.parametrize(
    ("loss", "grouped"),
    [
        (TripletMarginLoss, True),
        (lambda m: st.MatryoshkaLoss(m, TripletMarginLoss(m), [32, 16]), True),
        (st.TripletLoss, True),
        (lambda m: TripletMarginLoss(m, negatives="hardest"), False),
        (InBatchNegativesLoss, False),
        (st.MultipleNegativesRankingLoss, False),
    ],
)
def test_rows_are_grouped_for_losses_that_look_at_one_row_at_a_time(tiny_model, tmp_path, loss, grouped):
    def sampler(**options):
        args = TuningArguments(str(tmp_path), use_cpu=True, eval_strategy="no", load_best_model_at_end=False, **options)
        trainer = EmbeddingTrainer(tiny_model, args, train_dataset=ROWS, loss=loss)
        return trainer.get_train_dataloader().batch_sampler

    assert isinstance(sampler(), GroupedBatchSampler) is grouped
    assert isinstance(sampler(group_rows=True), GroupedBatchSampler)
    assert isinstance(sampler(group_rows=True, encode_once=False), GroupedBatchSampler)
    assert not isinstance(sampler(group_rows=False), GroupedBatchSampler)
    assert not isinstance(sampler(encode_once=False), GroupedBatchSampler)
    assert not isinstance(sampler(batch_sampler="no_duplicates"), GroupedBatchSampler)
