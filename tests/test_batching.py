"""Batches with each text once: what is in them, and in which order the rows come."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as some
from sentence_transformers.sentence_transformer import losses as st
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from embedtune.training.arguments import TuningArguments
from embedtune.training.encode_once.batches import (
    TEXT_ROWS,
    GroupedBatchSampler,
    UniqueTextCollator,
    longest_run,
    runs_of_groups,
)
from embedtune.training.losses import InBatchNegativesLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer

CHUNKS = [f"check the pump {i} and press " * (i + 1) for i in range(6)]
ROWS = Dataset.from_dict(
    {
        "anchor": [CHUNKS[i % 6] for i in range(20)],
        "positive": [f"question {i}" for i in range(20)],
        "negative": [f"question {(i + 1) % 20}" for i in range(20)],
    }
)


def texts_of(model, batch):
    """The texts of a batch, as words, in the order that the rows count them in."""
    texts = []
    for key in [key for key in batch if key.endswith("_input_ids")]:
        ids, prefix = batch[key], key.removesuffix("input_ids")
        if f"{prefix}text_lengths" in batch:
            parts = ids[0].split(batch[f"{prefix}text_lengths"])
        else:
            parts = [row[mask.bool()] for row, mask in zip(ids, batch[f"{prefix}attention_mask"], strict=True)]
        texts += [model.tokenizer.decode(part, skip_special_tokens=True) for part in parts]
    return texts


def collator_for(model, **options):
    return UniqueTextCollator(SentenceTransformerDataCollator(preprocess_fn=model.preprocess), model, **options)


def words(model, text):
    return model.tokenizer.decode(model.tokenizer(text)["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("max_tokens", [None, 30, 1])
def test_every_distinct_text_stands_in_a_batch_once_and_every_row_finds_its_texts(tiny_model, attention, max_tokens):
    tiny_model[0].model.set_attn_implementation(attention)
    features = [ROWS[i] for i in (0, 6, 12, 1, 5, 4)]
    batch = collator_for(tiny_model, max_tokens=max_tokens)(features)
    texts = texts_of(tiny_model, batch)
    distinct = {text for row in features for text in row.values()}
    assert len(texts) == len(distinct)
    assert next(iter(batch)) == TEXT_ROWS, "the trainer reads the size of the batch off the first tensor"
    for row, places in zip(features, batch[TEXT_ROWS].tolist(), strict=True):
        assert [texts[place] for place in places] == [words(tiny_model, text) for text in row.values()]


def test_texts_that_lie_end_to_end_have_no_padding_and_stay_below_the_limit(tiny_model):
    features = [ROWS[i] for i in range(12)]
    batch = collator_for(tiny_model, max_tokens=60)(features)
    sizes = [batch[key].shape for key in batch if key.endswith("_input_ids")]
    total = sum(len(tiny_model.tokenizer(text)["input_ids"]) for text in {t for row in features for t in row.values()})
    assert sum(size[1] for size in sizes) == total
    assert all(
        size[0] == 1 and (size[1] <= 60 or len(batch[f"texts{i}_text_lengths"]) == 1) for i, size in enumerate(sizes)
    )


def test_padded_groups_hold_texts_of_similar_length(tiny_model):
    tiny_model[0].model.set_attn_implementation("eager")
    batch = collator_for(tiny_model)([ROWS[i] for i in range(12)])
    masks = [batch[key] for key in batch if key.endswith("_attention_mask")]
    assert len(masks) > 2
    assert sum(mask.numel() for mask in masks) < 1.3 * sum(int(mask.sum()) for mask in masks)


def test_labels_and_prompts_are_the_stock_collators(tiny_model):
    stock = SentenceTransformerDataCollator(
        preprocess_fn=tiny_model.preprocess,
        prompts={"anchor": "ask: "},
        router_mapping={},
        valid_label_columns=["score"],
    )
    features = [
        {"anchor": "pump", "positive": "pump", "score": 0.5},
        {"anchor": "door", "positive": "pump", "score": 1.0},
    ]
    ours, theirs = UniqueTextCollator(stock, tiny_model)(features), stock(features)
    assert torch.equal(ours["label"], theirs["label"])
    assert sorted(texts_of(tiny_model, ours)) == sorted(
        words(tiny_model, t) for t in ("ask: pump", "ask: door", "pump")
    )


def test_rows_that_hold_anything_but_texts_are_collated_as_always(tiny_model):
    stock = SentenceTransformerDataCollator(preprocess_fn=tiny_model.preprocess)
    features = [{"anchor": ("pump", "door"), "positive": "pump"}, {"anchor": ("lamp", "roof"), "positive": "door"}]
    ours, theirs = UniqueTextCollator(stock, tiny_model)(features), stock(features)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if isinstance(ours[key], torch.Tensor))


# The order of the rows


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


def test_a_batch_is_about_several_chunks_however_often_each_stands_in_the_rows():
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


def test_a_run_resumed_inside_an_epoch_ends_with_the_weights_of_a_straight_one(tiny_model_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    def run(folder, **options):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        args = TuningArguments(
            str(tmp_path / folder),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            eval_strategy="no",
            save_strategy="steps",
            save_steps=3,
            save_total_limit=None,
            load_best_model_at_end=False,
            disable_tqdm=True,
            use_cpu=True,
            mini_batch_num_tokens=40,
        )
        trainer = EmbeddingTrainer(model, args, train_dataset=ROWS, loss=TripletMarginLoss)
        assert isinstance(trainer.get_train_dataloader().batch_sampler, GroupedBatchSampler)
        trainer.train(**options)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    straight = run("a")
    for step in (3, 6):  # inside the first epoch of five steps, and inside the second
        assert torch.equal(run(f"b{step}", resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}")), straight)


def test_the_loss_of_an_evaluation_weighs_rows_and_not_batches(tiny_model, tmp_path):
    def evaluate(**options):
        args = TuningArguments(str(tmp_path), use_cpu=True, per_device_eval_batch_size=8, disable_tqdm=True, **options)
        trainer = EmbeddingTrainer(tiny_model, args, train_dataset=ROWS, eval_dataset=ROWS, loss=TripletMarginLoss)
        return trainer.evaluate()["eval_loss"]

    assert evaluate(group_rows=False) == pytest.approx(evaluate(encode_once=False), rel=1e-5)


def test_several_datasets_keep_their_losses_and_prompts(tiny_model_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    data = {"triplets": ROWS, "pairs": ROWS.select_columns(["positive", "anchor"]).rename_columns(
        {"positive": "anchor", "anchor": "positive"}
    )}  # fmt: skip

    def train(**options):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        args = TuningArguments(
            str(tmp_path), max_steps=4, use_cpu=True, dropout=0.0, learning_rate=1e-3, disable_tqdm=True, eval_strategy="no",
            save_strategy="no", load_best_model_at_end=False, group_rows=False, optim="sgd",
            prompts={"triplets": {"positive": "ask: "}, "pairs": {"anchor": "who: "}}, **options,
        )  # fmt: skip
        losses = {"triplets": TripletMarginLoss(model), "pairs": InBatchNegativesLoss(model)}
        EmbeddingTrainer(model, args, train_dataset=data, loss=losses).train()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(train(), train(encode_once=False), atol=1e-6, rtol=0)


PROGRAM = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from embedtune.models.load import load_model
from embedtune.training.arguments import TuningArguments
from embedtune.training.losses import InBatchNegativesLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
rows = Dataset.from_dict(json.loads((out / "rows.json").read_text()))
distributed = len(sys.argv) > 3
results = {}
for name, options in json.loads((out / "ways.json").read_text()).items():
    torch.manual_seed(0)
    kind, loss = name.split()[:2]
    model = load_model(folder / kind, device="cpu") if kind != "tiny" else SentenceTransformer(str(folder / kind), device="cpu")
    args = TuningArguments(
        str(out / "run"), max_steps=2, per_device_train_batch_size=4 if distributed else 8, learning_rate=1e-2,
        lr_scheduler_type="constant", warmup_steps=0, optim="sgd", max_grad_norm=0, use_cpu=True, dropout=0.0, ddp_backend="gloo" if distributed else None,
        eval_strategy="no", save_strategy="no", load_best_model_at_end=False, disable_tqdm=True, group_rows=True, **options,
    )
    loss = {"triplet": TripletMarginLoss, "gathered": lambda m: InBatchNegativesLoss(m, gather_across_devices=distributed)}[loss]
    trainer = EmbeddingTrainer(model, args, train_dataset=rows, loss=loss)
    trainer.train()
    results[name] = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
if not distributed or dist.get_rank() == 0:
    torch.save(results, out / ("two.pt" if distributed else "one.pt"))
if distributed:
    dist.destroy_process_group()
"""

WAYS = {
    "tiny triplet": {},
    "tiny triplet cached": {"mini_batch_num_tokens": 30},
    "tiny triplet accumulated": {"gradient_accumulation_steps": 2},
    "tiny gathered": {},
    "tiny gathered cached": {"mini_batch_num_tokens": 30},
    "jina triplet": {},
    "jina triplet cached": {"mini_batch_num_tokens": 60},
}


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_same_rows(tiny_model_folder, tmp_path):
    """Both batches of a step, together, are the one process's batch: grouped rows are cut from one sequence."""
    from model_repositories import jina_hf_repository

    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny").symlink_to(tiny_model_folder)
    jina_hf_repository(models / "jina")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "rows.json").write_text(json.dumps(concatenate_datasets([ROWS, ROWS.select(range(12))]).to_dict()))
    (tmp_path / "ways.json").write_text(json.dumps(WAYS))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    program = [str(tmp_path / "program.py"), str(models), str(tmp_path)]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *program, "distributed"]
    for command in ([sys.executable, *program], two):
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert result.returncode == 0, result.stderr[-6000:]
    expected, found = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    for name in WAYS:
        np.testing.assert_allclose(found[name].numpy(), expected[name].numpy(), atol=2e-6, err_msg=name)
