"""Batches that contain each text once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from embedtune.training.arguments import TuningArguments
from embedtune.training.encode_once.collator import TEXT_ROWS, UniqueTextCollator
from embedtune.training.encode_once.sampler import GroupedBatchSampler
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
def test_every_distinct_text_is_in_a_batch_once_and_every_row_finds_its_texts(tiny_model, attention, max_tokens):
    tiny_model[0].model.set_attn_implementation(attention)
    features = [ROWS[i] for i in (0, 6, 12, 1, 5, 4)]
    batch = collator_for(tiny_model, max_tokens=max_tokens)(features)
    texts = texts_of(tiny_model, batch)
    distinct = {text for row in features for text in row.values()}
    assert len(texts) == len(distinct)
    assert next(iter(batch)) == TEXT_ROWS, "the trainer reads the size of the batch off the first tensor"
    for row, places in zip(features, batch[TEXT_ROWS].tolist(), strict=True):
        assert [texts[place] for place in places] == [words(tiny_model, text) for text in row.values()]


def test_packed_texts_have_no_padding_and_stay_below_the_limit(tiny_model):
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
