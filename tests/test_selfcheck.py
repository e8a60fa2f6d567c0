"""check_model passes what load_model builds, and fails every way we know of to break it."""

from __future__ import annotations

import json

import pytest
import torch
from model_repositories import gte_qwen2_repository, jina_hf_repository, load_family, randomize
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers.processors import TemplateProcessing

from embedtune.models.load import load_model
from embedtune.models.selfcheck import check_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    gte_qwen2_repository(root / "gte")
    jina_hf_repository(root / "jina")
    return root


@pytest.fixture
def gte(folders):
    return load_model(folders / "gte", max_seq_length=128, device="cpu")


@pytest.fixture
def jina(folders):
    return load_model(folders / "jina", max_seq_length=128, device="cpu")


def failures(model, **options):
    return {check.name: check for check in check_model(model, **options).failures}


@pytest.mark.parametrize(
    ("repository", "options"),
    [
        ("gte", {}),
        ("gte", {"attention": "causal"}),
        ("gte", {"dtype": "bfloat16"}),
        ("gte", {"dtype": "float16"}),
        ("gte", {"lora": True}),
        ("jina", {}),
        ("jina", {"mode": "shared"}),
        ("jina", {"train": "lora", "truncate_dim": 16}),
    ],
)
def test_what_load_model_builds_passes(folders, repository, options):
    model = load_family(folders / repository, max_seq_length=128, device="cpu", **options)
    randomize(model, 1, only="lora_")
    report = check_model(model)
    assert report.ok, str(report)
    report.raise_if_failed()


def test_any_sentence_transformer_passes(tiny_model):
    assert check_model(tiny_model).ok
    tiny_model.train()
    assert check_model(tiny_model).ok, "dropout is switched off for the check"
    assert tiny_model.training


def test_the_report_prints_as_a_table(jina):
    lines = str(check_model(jina)).splitlines()
    assert all(line.startswith("ok  ") for line in lines)
    assert {"attention query", "attention document", "pooling", "prompts", "saved = in memory"} <= {
        line[6:28].strip() for line in lines
    }


# One test for each way to break a model


@pytest.mark.parametrize("value", [True, None])
def test_a_dropped_causal_flag_fails(gte, value):
    gte.config.is_causal = value
    if value is None:
        del gte.config.is_causal
    found = failures(gte)
    assert found["attention"].found == "causal, but declared bidirectional"
    assert "model.config.is_causal = False" in found["attention"].remedy


def test_a_dropped_causal_flag_in_the_saved_folder_fails(gte, tmp_path):
    gte.save_pretrained(str(tmp_path))
    assert not failures(gte, folder=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["is_causal"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert set(failures(gte, folder=tmp_path)) == {"saved = in memory"}


@pytest.mark.parametrize(("template", "count"), [("$A <|endoftext|> <|endoftext|>", 2), ("$A", 0)])
def test_a_doubled_or_missing_end_token_fails(gte, template, count):
    end = gte.tokenizer.eos_token_id
    gte.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<|endoftext|>", end)]
    )
    found = failures(gte)
    assert found["end token"].found == f"{count} at the end of a text"


def test_an_end_token_that_is_cut_off_fails(gte, monkeypatch):
    original = type(gte[0]).preprocess

    def keeps_the_first(self, *args, **kwargs):
        return {
            key: value[:, : self.max_seq_length - 1] if torch.is_tensor(value) and value.ndim == 2 else value
            for key, value in original(self, *args, **kwargs).items()
        }

    monkeypatch.setattr(type(gte[0]), "preprocess", keeps_the_first)
    assert failures(gte)["truncation"].found.endswith("and the end token is cut off")


def test_a_limit_that_is_ignored_fails(gte, monkeypatch):
    monkeypatch.setattr(type(gte), "max_seq_length", property(lambda self: 100))
    assert failures(gte)["truncation"].found == "128 tokens of at most 100"


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_changed_pooling_fails(gte, mode):
    gte[1].pooling_mode = mode
    assert failures(gte)["pooling"].found == f"['{mode}'], but declared ['lasttoken']"


@pytest.mark.parametrize("model", ["gte", "jina"])
def test_lost_prompts_fail(model, request):
    model = request.getfixturevalue(model)
    model.prompts = {}
    assert "query" in failures(model)["prompts"].found


def test_prompts_lost_in_the_saved_folder_fail(gte, tmp_path):
    gte.save_pretrained(str(tmp_path))
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": {}}))
    assert "prompts" in failures(gte, folder=tmp_path)["saved = in memory"].found


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # peft 0.20
def test_adapters_that_were_not_merged_fail(folders, jina, tmp_path):
    """The stock way of saving writes the adapter alone."""
    model = load_model(folders / "gte", lora=True, max_seq_length=128, device="cpu")
    randomize(model, 1, only="lora_")
    for name, adapted in (("gte", model), ("jina", jina)):
        SentenceTransformer.save(adapted, str(tmp_path / name), create_model_card=False)
        found = failures(adapted, folder=tmp_path / name)
        assert found["saved = in memory"].found == "adapter_config.json instead of merged weights"


def test_a_saved_adapter_that_was_left_out_fails(folders, tmp_path):
    """Merged weights without the adapter are whole, load, and are the base model."""
    load_model(folders / "gte", max_seq_length=128, device="cpu").save_pretrained(str(tmp_path))
    model = load_model(folders / "gte", lora=True, max_seq_length=128, device="cpu")
    assert not failures(model, folder=tmp_path), "a new adapter does nothing"
    randomize(model, 1, only="lora_")
    assert "differ by" in failures(model, folder=tmp_path)["saved = in memory"].found


def test_changed_pooling_in_the_saved_folder_fails(jina, tmp_path):
    jina.save_pretrained(str(tmp_path))
    path = tmp_path / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pooling_mode": "cls"}))
    assert set(failures(jina, folder=tmp_path)) == {"saved = in memory"}


def test_swapped_sides_fail(jina, tmp_path):
    jina.save_pretrained(str(tmp_path))
    path = tmp_path / "router_config.json"
    config = json.loads(path.read_text())
    structure = config["structure"]
    structure["query"], structure["document"] = structure["document"], structure["query"]
    path.write_text(json.dumps(config))
    assert set(failures(jina, folder=tmp_path)) == {"saved = in memory"}


@pytest.mark.parametrize("route", ["query", "document"])
def test_one_slightly_damaged_side_of_the_saved_folder_fails(jina, tmp_path, route):
    jina.save_pretrained(str(tmp_path))
    path = tmp_path / f"{route}_0_Transformer" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "word_embeddings" in name)
    for scale, fails in ((1e-7, False), (3e-4, True)):
        noise = scale * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
        save_file(tensors | {name: tensors[name] + noise}, path, metadata={"format": "pt"})
        assert set(failures(jina, folder=tmp_path)) == ({"saved = in memory"} if fails else set())


@pytest.mark.parametrize(("scale", "fails"), [(1e-6, False), (1e-3, True)])
def test_a_small_influence_of_the_batch_fails(gte, monkeypatch, scale, fails):
    forward = type(gte[1]).forward

    def depends_on_the_batch(self, features, **kwargs):
        features = forward(self, features, **kwargs)
        vectors = features["sentence_embedding"]
        step = torch.zeros_like(vectors)
        step[:, 0] = scale * len(vectors) * vectors.norm(dim=1)
        return features | {"sentence_embedding": vectors + step}

    monkeypatch.setattr(type(gte[1]), "forward", depends_on_the_batch)
    assert ("batch = single" in failures(gte, reload=False)) == fails


def test_a_folder_that_cannot_be_loaded_fails_and_says_why(gte, tmp_path):
    gte.save_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    assert "cannot be loaded: OSError" in failures(gte, folder=tmp_path)["saved = in memory"].found


def test_padding_that_changes_vectors_fails(gte, monkeypatch):
    forward = type(gte[1]).forward

    def takes_the_last_column(self, features, **kwargs):
        features["attention_mask"] = torch.ones_like(features["attention_mask"])
        return forward(self, features, **kwargs)

    monkeypatch.setattr(type(gte[1]), "forward", takes_the_last_column)
    assert {"batch = single", "left = right padding"} <= set(failures(gte))


def test_a_failure_can_be_raised_with_its_remedy(gte):
    gte[1].pooling_mode = "mean"
    with pytest.raises(
        ValueError, match=r"(?s)FAIL  pooling.*Build the model with Pooling\(pooling_mode='lasttoken'\)"
    ):
        check_model(gte).raise_if_failed()
