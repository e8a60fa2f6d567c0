"""The models that people tune, as tiny copies of their repositories: loaded, trained, saved, and loaded without embedtune."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from model_repositories import LAYOUTS, layout_repository, randomize
from sentence_transformers import SentenceTransformer
from test_encode_once import WITH_IDS, assert_same, step  # noqa: F401  # a fixture

from embedtune.models.load import load_model
from embedtune.models.lora import transformers_of
from embedtune.models.selfcheck import check_model
from embedtune.training.losses import InBatchNegativesLoss

TEXTS = ["how to open the pump", "what is the valve for", "close the door of the old roof, and wait"]
NAMES = list(LAYOUTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    return {name: layout_repository(root, name) for name in NAMES}


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory):
    """Each model with a LoRA that does something, saved, and its embeddings before that."""
    root, made = tmp_path_factory.mktemp("saved"), {}
    for number, name in enumerate(NAMES):
        torch.manual_seed(0)
        model = load_model(folders[name], device="cpu", lora=True)
        randomize(model, 1, only="lora_", scale=0.1)
        model.save_pretrained(str(root / str(number)))
        made[name] = root / str(number), model.encode_query(TEXTS), model.encode_document(TEXTS)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_passes_its_check_with_the_prompts_of_its_card(folders, name):
    model = load_model(folders[name], device="cpu")
    report = check_model(model)
    assert report.ok, str(report)
    assert (model.prompts.get("query") or "", model.prompts.get("document") or "") == LAYOUTS[name].prompts


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_computes_what_plain_sentence_transformers_does(folders, name):
    ours, plain = (kind(str(folders[name]), device="cpu").encode(TEXTS) for kind in (load_model, SentenceTransformer))
    assert (np.abs(ours - plain).max() < 1e-5) == (not LAYOUTS[name].repaired)


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_is_trained_with_the_stock_trainers_loss_and_gradients(folders, step, name):  # noqa: F811
    model = load_model(folders[name], device="cpu", check=False)
    ours, stock = (step(model, InBatchNegativesLoss, WITH_IDS, encode_once=once) for once in (True, False))
    assert_same(ours, stock)


@pytest.mark.parametrize("name", NAMES)
def test_a_default_lora_trains_all_layers_of_a_layout_and_nothing_else(folders, name):
    model = load_model(folders[name], device="cpu", lora=True, check=False)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    layers = {name.partition(".layer")[2].split(".")[1] for name in trained if ".layer" in name}
    assert layers == {str(i) for i in range(sum(1 for _ in transformers_of(model)) * 2)}


def test_every_saved_layout_is_loaded_by_plain_sentence_transformers_in_a_fresh_process(saved, tmp_path):
    program = (
        "import json, sys, numpy as np\n"
        "from sentence_transformers import SentenceTransformer\n"
        "texts, folders, out = json.loads(sys.argv[1])\n"
        "for number, folder in enumerate(folders):\n"
        "    model = SentenceTransformer(folder, device='cpu')\n"
        "    np.savez(f'{out}/{number}.npz', model.encode_query(texts), model.encode_document(texts))\n"
        "assert not {'embedtune', 'peft'} & {name.partition('.')[0] for name in sys.modules}\n"
    )
    folders = [str(folder) for folder, *_ in saved.values()]
    subprocess.run([sys.executable, "-c", program, json.dumps([TEXTS, folders, str(tmp_path)])], check=True)
    for number, (name, (folder, *vectors)) in enumerate(saved.items()):
        again = np.load(tmp_path / f"{number}.npz")
        for wanted, found in zip(vectors, again.values(), strict=True):
            assert np.abs(wanted - found).max() < 1e-5, name
        base = load_model(LAYOUTS and folder, device="cpu")
        assert "auto_map" not in json.loads((folder / "config.json").read_text()), name
        assert base.prompts.get("query", "") == LAYOUTS[name].prompts[0], name
