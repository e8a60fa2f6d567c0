"""What is saved loads with plain sentence-transformers, where neither embedtune nor peft can be imported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from model_repositories import (
    gte_qwen2_repository,
    jina_hf_repository,
    jina_original_repository,
    load_family,
    randomize,
)
from sentence_transformers import SentenceTransformer
from test_trainer import make_data
from transformers import TrainerCallback

from embedtune.models.load import load_model
from embedtune.training.arguments import TuningArguments
from embedtune.training.trainer import EmbeddingTrainer

TEXTS = ["open the pump", "check the valve and press 3 to open it", "lamp"]
PROGRAM = """
import json, sys
sys.modules["embedtune"] = sys.modules["peft"] = None
from sentence_transformers import SentenceTransformer
texts, paths = json.loads(sys.argv[1]), sys.argv[2:]
for path in paths:
    model = SentenceTransformer(path, device="cpu")
    ways = (model.encode_query, model.encode_document)
    print("VECTORS", json.dumps([way(texts, convert_to_tensor=True).float().tolist() for way in ways]))
"""


LOSSES = ("in-batch", "triplet", "cosine")
WAYS = [
    ("gte", LOSSES, {"lora": True}),
    ("jina", LOSSES, {}),
    ("gte", LOSSES, {}),
    ("jina", ("triplet",), {"train": "full"}),
    ("jina", ("triplet",), {"train": "lora"}),
    ("jina", ("triplet",), {"mode": "shared"}),
    ("original", ("triplet",), {}),
    ("gte", ("triplet",), {"attention": "causal"}),
]
ONCE = {"save_strategy": "no", "load_best_model_at_end": False, "eval_strategy": "no", "eval_on_start": False}
EVERY_STEP = {
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_total_limit": None,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    gte_qwen2_repository(root / "gte")
    jina_hf_repository(root / "jina")
    jina_original_repository(root / "original")
    return root


@pytest.fixture(scope="module")
def data():
    return make_data()


def vectors(model):
    """Vectors of the queries and of the documents, of shape (2, num_texts, dim)."""
    return torch.stack(
        [way(TEXTS, convert_to_tensor=True).float() for way in (model.encode_query, model.encode_document)]
    )


def vectors_elsewhere(paths):
    """The same from saved folders, in one process that has neither embedtune nor peft."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(TEXTS), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line.removeprefix("VECTORS ") for line in result.stdout.splitlines() if line.startswith("VECTORS ")]
    return [torch.tensor(json.loads(line)) for line in lines]


def trainer_for(model, data, output, callbacks=None, **options):
    settings = {"max_steps": 5, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "disable_tqdm": True}
    args = TuningArguments(str(output), use_cpu=True, **(settings | options))
    return EmbeddingTrainer(model, args, data=data, callbacks=callbacks)


def train(model, data, output, **options):
    trainer = trainer_for(model, data, output, **(ONCE | options))
    trainer.train()
    return trainer


@pytest.mark.parametrize("ways", [WAYS[:2], pytest.param(WAYS, marks=pytest.mark.slow)], ids=["few", "all"])
def test_every_way_to_train_gives_a_plain_model(folders, data, tmp_path, ways):
    expected = {}
    for number, (name, losses, options) in enumerate(ways):
        for loss in losses if ways is WAYS else losses[:1]:
            model = load_family(folders / name, max_seq_length=160, device="cpu", **options)
            before = vectors(model)
            path = tmp_path / f"{number}-{loss}"
            train(model, data, tmp_path / "out", loss=loss).save_model(str(path))
            expected[path] = vectors(model.double())  # the exact ones: a merged LoRA rounds otherwise than one beside
            assert (expected[path] - before).abs().amax(dim=(1, 2)).min() > 1e-4, "both sides moved"
            assert not list(path.rglob("*.bin"))
            assert not (path / "trained.safetensors").exists()
    for path, found in zip(expected, vectors_elsewhere(expected), strict=True):
        assert (found - expected[path]).abs().max() < 1e-6, path.name


class Remember(TrainerCallback):
    """Keeps the vectors of every checkpoint."""

    def __init__(self):
        self.vectors = {}

    def on_save(self, args, state, control, model=None, **kwargs):
        self.vectors[Path(args.output_dir, f"checkpoint-{state.global_step}")] = vectors(model)


@pytest.mark.slow
def test_every_checkpoint_the_best_model_and_other_types_load_as_well(folders, data, tmp_path):
    expected = {}
    for number, (name, _, options) in enumerate(WAYS[:4]):
        for resumed in (False, True):
            model = load_family(folders / name, max_seq_length=160, device="cpu", **options)
            remember = Remember()
            output = tmp_path / f"{name}-{number}-{resumed}"
            trainer = trainer_for(
                model, data, output, max_steps=3, learning_rate=1e-3, callbacks=[remember], **EVERY_STEP
            )
            first = tmp_path / f"{name}-{number}-False" / "checkpoint-1"
            trainer.train(resume_from_checkpoint=str(first) if resumed else None)
            expected |= remember.vectors
            trainer.save_model(str(output / "model"))
            expected[output / "model"] = vectors(model)
            best = remember.vectors[Path(trainer.state.best_model_checkpoint)] if not resumed else vectors(model)
            assert (vectors(model) - best).abs().max() < 1e-6
    for path, found in zip(expected, vectors_elsewhere(expected), strict=True):
        assert (found - expected[path]).abs().max() < 1e-6, path


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept(folders, tmp_path, dtype):
    rounding = {"bfloat16": 5e-2, "float16": 5e-3}[dtype]  # of merging into weights with so few digits
    for name, options, limit in (("gte", {}, 1e-6), ("jina", {}, rounding), ("gte", {"lora": True}, rounding)):
        model = load_family(folders / name, max_seq_length=160, device="cpu", dtype=dtype, **options)
        randomize(model, 1, only=".tuned.", scale=0.05)
        model.save_pretrained(str(tmp_path))
        plain = SentenceTransformer(str(tmp_path), device="cpu")
        assert str(plain.dtype) == f"torch.{dtype}"
        assert (vectors(plain) - vectors(model)).abs().max() < limit
        shutil.rmtree(tmp_path)


def test_a_second_generation_is_the_same(folders, tmp_path):
    model = load_model(folders / "jina", max_seq_length=160, device="cpu")
    randomize(model, 1, only="lora_")
    model.save_pretrained(str(tmp_path / "first"))
    again = load_model(tmp_path / "first", device="cpu")
    again.save_pretrained(str(tmp_path / "second"))
    assert (vectors(load_model(tmp_path / "second", device="cpu")) - vectors(model)).abs().max() < 1e-6


def test_the_class_that_merges_is_nowhere_in_what_is_saved(folders, tmp_path):
    load_model(folders / "jina", device="cpu").save_pretrained(str(tmp_path))
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".json", ".md")]
    assert not [text for text in texts if "embedtune" in text or "TunableModel" in text]


def test_what_is_pushed_is_the_plain_model_as_well(folders, tmp_path, monkeypatch):
    pushed = {}

    class Hub:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, *args, **kwargs):
            return False

        def upload_folder(self, folder_path, commit_message, **kwargs):
            pushed["message"] = commit_message
            shutil.copytree(folder_path, tmp_path / "pushed")
            return SimpleNamespace(pr_url=None, commit_url="https://hub/commit")

    monkeypatch.setattr("sentence_transformers.base.model.HfApi", Hub)
    model = load_model(folders / "jina", max_seq_length=160, device="cpu")
    model.push_to_hub("my-org/handbook")
    assert pushed["message"] == "Add new SentenceTransformer model"
    plain = SentenceTransformer(str(tmp_path / "pushed"), device="cpu")
    assert (vectors(plain) - vectors(model)).abs().max() < 1e-6


def test_transformers_4_which_would_ignore_is_causal_cannot_read_the_tokenizer(folders, tmp_path):
    """It wants a dictionary where transformers 5 writes a list, and refuses an empty list too (4.57.6)."""
    model = load_model(folders / "gte", max_seq_length=160, device="cpu")
    model.tokenizer.add_special_tokens({"extra_special_tokens": []}, replace_extra_special_tokens=True)
    model.save_pretrained(str(tmp_path))
    assert isinstance(json.loads((tmp_path / "tokenizer_config.json").read_text())["extra_special_tokens"], list)
