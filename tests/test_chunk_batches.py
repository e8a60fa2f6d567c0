"""Batches of whole chunks: who shares a batch, in which order, and that the gradient is the plain one."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as some
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as st
from test_ddp import launch

from embedtune.training.arguments import TuningArguments
from embedtune.training.encode_once import chunk_batches
from embedtune.training.encode_once.chunk_batches import ChunkBatchSampler
from embedtune.training.encode_once.sampler import GroupedBatchSampler
from embedtune.training.losses import InBatchNegativesLoss, TripletMarginLoss
from embedtune.training.trainer import EmbeddingTrainer

# Seven chunks with one to five questions each; two chunks answer the last question.
SIZES = (5, 3, 1, 4, 2, 2, 3)
CHUNKS = [chunk for chunk, size in enumerate(SIZES) for _ in range(size)]
PAIRS = Dataset.from_dict(
    {
        "anchor": [f"where is the pump of house {row}" for row in range(len(CHUNKS))],
        "positive": [f"the pump of house {chunk} is " + "warm " * chunk for chunk in CHUNKS],
        "label": [[chunk, chunk if row < len(CHUNKS) - 1 else 0] for row, chunk in enumerate(CHUNKS)],
    }
)


def sampler_of(sizes, *, batch_size=3, seed=0, epoch=0):
    chunks = [str(chunk) for chunk, size in enumerate(sizes) for _ in range(size)]
    rows = Dataset.from_dict({"anchor": [f"q{i}" for i in range(len(chunks))], "positive": chunks})
    sampler = ChunkBatchSampler(rows, batch_size=batch_size, drop_last=False, seed=seed)
    sampler.set_epoch(epoch)
    return sampler, chunks


sizes_of_chunks = some.lists(some.integers(1, 9), min_size=1, max_size=40)


@given(sizes=sizes_of_chunks, batch_size=some.integers(1, 12), epoch=some.integers(0, 3))
def test_each_question_occurs_once_per_epoch(sizes, batch_size, epoch):
    sampler, chunks = sampler_of(sizes, batch_size=batch_size, epoch=epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(chunks)))


@given(sizes=sizes_of_chunks, batch_size=some.integers(9, 12))
def test_all_questions_of_a_chunk_are_in_one_batch_of_at_most_so_many_chunks(sizes, batch_size):
    sampler, chunks = sampler_of(sizes, batch_size=batch_size)
    batches = [{chunks[row] for row in batch} for batch in sampler]
    assert sum(len(batch) for batch in batches) == len(sizes), "no chunk is in two batches"
    assert len(batches) == -(-len(sizes) // batch_size)
    assert max(len(batch) for batch in batches) <= batch_size


@given(sizes=some.lists(some.just(2), min_size=1, max_size=60), batch_size=some.integers(2, 24))
def test_no_batch_is_smaller_than_the_others_by_more_than_a_chunk(sizes, batch_size):
    sampler, _ = sampler_of(sizes, batch_size=batch_size)
    num_rows = [len(batch) for batch in sampler]
    assert max(num_rows) - min(num_rows) <= 2


def test_a_chunk_with_more_questions_than_a_batch_has_chunks_is_cut_into_equal_parts():
    sampler, chunks = sampler_of([50, 1, 1, 1], batch_size=8)
    found = [Counter(chunks[row] for row in batch)["0"] for batch in sampler]
    assert sum(found) == 50
    assert max(found) < 50
    assert sorted(Counter(sampler._parts()).values()) == [1, 1, 1, 7, 7, 7, 7, 7, 7, 8]


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    first = list(sampler_of(SIZES)[0])
    assert list(sampler_of(SIZES)[0]) == first
    sampler = sampler_of(SIZES)[0]
    assert list(sampler) == list(sampler) == first, "however often it was started"
    assert list(sampler_of(SIZES, epoch=1)[0]) != first
    assert list(sampler_of(SIZES, seed=1)[0]) != first


def test_every_two_chunks_meet_in_some_epoch():
    sampler, chunks = sampler_of([1] * 8, batch_size=2)
    pairs = set()
    for epoch in range(200):
        sampler.set_epoch(epoch)
        pairs |= {tuple(sorted(chunks[row] for row in batch)) for batch in sampler}
    assert len(pairs) == 8 * 7 // 2


@pytest.mark.parametrize(("sizes", "batch_size"), [(SIZES, 3), (SIZES, 2), ((2, 2, 2), 3), ((4,), 4)])
def test_processes_get_equally_many_batches_and_leave_no_question_out(monkeypatch, sizes, batch_size):
    monkeypatch.setattr(chunk_batches, "get_world_size", lambda: 2)
    shards = [
        list(
            BatchSamplerShard(
                sampler_of(sizes, batch_size=batch_size)[0], num_processes=2, process_index=i, even_batches=False
            )
        )
        for i in range(2)
    ]
    assert len(shards[0]) == len(shards[1]) > 0
    assert all(batch for shard in shards for batch in shard)
    assert {row for shard in shards for batch in shard for row in batch} == set(range(sum(sizes)))


def trainer_of(model, tmp_path, *, loss=InBatchNegativesLoss, rows=PAIRS, **options):
    settings = {
        "per_device_train_batch_size": 3, "use_cpu": True, "eval_strategy": "no", "save_strategy": "no", "dropout": 0.0,
        "load_best_model_at_end": False, "disable_tqdm": True, "frozen_layers": 0.0, "check_saved": False,
    }  # fmt: skip
    args = TuningArguments(str(tmp_path), **(settings | options))
    return EmbeddingTrainer(model, args, train_dataset=rows, loss=loss)


@pytest.mark.parametrize(
    ("loss", "rows", "options", "expected"),
    [
        (InBatchNegativesLoss, PAIRS, {}, ChunkBatchSampler),
        (lambda m: st.MatryoshkaLoss(m, InBatchNegativesLoss(m), [32, 16]), PAIRS, {}, ChunkBatchSampler),
        (lambda m: TripletMarginLoss(m, negatives="hardest"), PAIRS, {}, ChunkBatchSampler),
        (InBatchNegativesLoss, PAIRS, {"group_rows": True, "encode_once": False}, ChunkBatchSampler),
        (InBatchNegativesLoss, PAIRS, {"group_rows": False}, None),
        (InBatchNegativesLoss, PAIRS, {"encode_once": False}, None),
        (InBatchNegativesLoss, PAIRS, {"batch_sampler": "no_duplicates"}, None),
        (InBatchNegativesLoss, PAIRS.remove_columns("label"), {}, None),
        (st.MultipleNegativesRankingLoss, PAIRS.remove_columns("label"), {}, None),
        (InBatchNegativesLoss, {"a": PAIRS, "b": PAIRS}, {}, None),
    ],
)
def test_batches_are_of_whole_chunks_only_if_the_loss_knows_which_chunks_answer(
    tiny_model, tmp_path, loss, rows, options, expected
):
    sampler = trainer_of(tiny_model, tmp_path, loss=loss, rows=rows, **options).get_train_dataloader().batch_sampler
    assert (
        isinstance(sampler, expected) if expected else not isinstance(sampler, ChunkBatchSampler | GroupedBatchSampler)
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_weights_are_those_of_the_same_batches_without_sharing_in_float64(
    tiny_model_folder, tmp_path, monkeypatch, accumulation
):
    def train(**options):
        model = SentenceTransformer(str(tiny_model_folder), device="cpu").double()
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        trainer = trainer_of(
            model, tmp_path, gradient_accumulation_steps=accumulation, num_train_epochs=2, learning_rate=1e-2,
            optim="sgd", **options,
        )  # fmt: skip
        trainer.train()
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert (after - before).abs().max() > 1e-5
        return after

    shared, plain = train(), train(encode_once=False, group_rows=True)
    torch.testing.assert_close(shared, plain, atol=1e-10, rtol=0)


def test_a_run_resumed_inside_an_epoch_ends_with_the_weights_of_an_uninterrupted_run(tiny_model_folder, tmp_path):
    def run(folder, **options):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        trainer = trainer_of(
            model, tmp_path / folder, num_train_epochs=2, learning_rate=1e-3, save_strategy="steps", save_steps=2,
            save_total_limit=None, frozen_layers=0.5,
        )  # fmt: skip
        trainer.train(**options)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    straight = run("a")
    for step in (2, 4):  # inside the first epoch of three steps, and inside the second
        assert torch.equal(run(f"b{step}", resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}")), straight)


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from embedtune.training.arguments import TuningArguments
from embedtune.training.trainer import EmbeddingTrainer

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
rows = Dataset.from_dict(json.loads((out / "rows.json").read_text()))
model = SentenceTransformer(str(folder), device="cpu")
args = TuningArguments(
    str(out / "run"), num_train_epochs=2, per_device_train_batch_size=3, learning_rate=1e-3, use_cpu=True, ddp_backend="gloo",
    eval_strategy="no", save_strategy="no", load_best_model_at_end=False, disable_tqdm=True,
)
trainer = EmbeddingTrainer(model, args, train_dataset=rows)
seen, step = [], trainer.training_step
def spy(model, inputs, *rest):
    seen.append(len(inputs["text_rows"]))
    return step(model, inputs, *rest)
trainer.training_step = spy
trainer.train()
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
both = [torch.empty_like(weights) for _ in range(2)]
dist.all_gather(both, weights)
assert torch.equal(*both)
print("SEEN", json.dumps([dist.get_rank(), seen]), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_together_on_every_question(tiny_model_folder, tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(PAIRS.to_dict()))
    result = launch(tmp_path, TWO_PROCESSES, tiny_model_folder, tmp_path)
    assert result.returncode == 0, result.stderr[-8000:]
    lines = [line.partition("SEEN ")[2] for line in result.stdout.splitlines() if "SEEN " in line]
    seen = dict(json.loads(line) for line in lines)
    assert len(seen[0]) == len(seen[1]) == 4, "two steps in each of two epochs"
    assert sum(seen[0]) + sum(seen[1]) == 2 * len(PAIRS)
