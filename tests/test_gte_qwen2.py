"""gte-Qwen2 on the native Qwen2Model, held against a forward written by hand in float64."""

from __future__ import annotations

import json
import math

import pytest
import torch
from model_repositories import (
    GTE_CONFIG,
    GTE_PROMPT,
    gte_qwen2_repository,
    gte_shapes,
    header_only_safetensors,
    write_json,
)
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from test_examples import load as load_example
from test_trainer import make_data

from embedtune.models import repository
from embedtune.models.families.gte_qwen2 import load_gte_qwen2
from embedtune.models.gate import check_weights
from embedtune.models.load import load_model

TEXTS = ["how to restart the pump", "valve", "Press both buttons for five seconds, then wait until the lamp is green."]


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gte") / "copy-of-the-model"
    tensors = gte_qwen2_repository(folder)
    return folder, {name: tensor.double() for name, tensor in tensors.items()}


def rms(x, weight, eps=1e-6):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x, theta=1e6):
    """Rotate the halves of each head, x of shape (heads, length, dim)."""
    dim, length = x.shape[-1], x.shape[-2]
    angles = torch.arange(length).double()[:, None] / theta ** (torch.arange(0, dim, 2).double() / dim)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def forward_by_hand(weights, ids, *, causal, heads=4, groups=2, layers=2):
    x = weights["model.embed_tokens.weight"][ids]
    length, hidden = x.shape
    for i in range(layers):

        def linear(name, x, i=i):
            bias = weights.get(f"model.layers.{i}.{name}.bias")
            y = x @ weights[f"model.layers.{i}.{name}.weight"].T
            return y if bias is None else y + bias

        def split(y, n):
            return y.reshape(length, n, hidden // heads).transpose(0, 1)

        y = rms(x, weights[f"model.layers.{i}.input_layernorm.weight"])
        q = rotated(split(linear("self_attn.q_proj", y), heads))
        k = rotated(split(linear("self_attn.k_proj", y), groups)).repeat_interleave(heads // groups, 0)
        v = split(linear("self_attn.v_proj", y), groups).repeat_interleave(heads // groups, 0)
        scores = q @ k.transpose(1, 2) / math.sqrt(hidden // heads)
        if causal:
            scores = scores + torch.full((length, length), -math.inf).triu(1)
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, hidden)
        x = x + linear("self_attn.o_proj", y)
        y = rms(x, weights[f"model.layers.{i}.post_attention_layernorm.weight"])
        x = x + linear("mlp.down_proj", torch.nn.functional.silu(linear("mlp.gate_proj", y)) * linear("mlp.up_proj", y))
    return rms(x, weights["model.norm.weight"])


def vector_by_hand(weights, text, *, causal=False):
    """Bytes, one end token, the last state, of length one; the vocabulary is the bytes in ByteLevel's order."""
    from model_repositories import byte_level_tokenizer

    tokenizer = byte_level_tokenizer()
    ids = [*tokenizer.encode(text).ids, tokenizer.token_to_id("<|endoftext|>")]
    state = forward_by_hand(weights, torch.tensor(ids), causal=causal)[-1]
    return state / state.norm()


def assert_same(vectors, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(vectors).double(), torch.stack(expected), atol=atol, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_vectors_are_those_of_a_forward_written_by_hand(repo, attention, implementation):
    folder, weights = repo
    model = load_gte_qwen2(folder, attention=attention, device="cpu")
    model[0].model.set_attn_implementation(implementation)
    expected = [vector_by_hand(weights, text, causal=attention == "causal") for text in TEXTS]
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        assert_same(model.encode(TEXTS), expected)
    assert_same(model.encode(TEXTS[:1]), expected[:1])
    assert_same(
        model.encode_query(TEXTS[:1]), [vector_by_hand(weights, GTE_PROMPT + TEXTS[0], causal=attention == "causal")]
    )
    assert_same(model.encode_document(TEXTS), expected)
    assert model.config.is_causal is (attention == "causal")


def test_bidirectional_is_the_default_and_not_the_causal_model(repo):
    folder, weights = repo
    vectors = load_model(folder, device="cpu").encode(TEXTS)
    assert_same(vectors, [vector_by_hand(weights, text) for text in TEXTS])
    causal = torch.stack([vector_by_hand(weights, text, causal=True) for text in TEXTS])
    assert (torch.as_tensor(vectors) - causal).abs().max() > 0.05


def test_gradient_checkpointing_and_bfloat16_stay_bidirectional(repo):
    folder, weights = repo
    model = load_model(folder, device="cpu")
    model.train()
    backbone = model[0].model  # transformers has renamed it
    getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)()
    output = model(model.preprocess(TEXTS))["sentence_embedding"]
    assert_same(output.detach(), [vector_by_hand(weights, text) for text in TEXTS])
    output[0, 0].backward()
    assert model[0].model.embed_tokens.weight.grad.abs().sum() > 0
    half = load_model(folder, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    similarity = (
        torch.as_tensor(half.encode(TEXTS, convert_to_tensor=True).float()).double()
        * torch.stack([vector_by_hand(weights, text) for text in TEXTS])
    ).sum(-1)
    assert similarity.min() > 0.995


def test_one_end_token_that_truncation_keeps(repo):
    model = load_model(repo[0], max_seq_length=8, device="cpu")
    end = model.tokenizer.eos_token_id
    for text in ("a", "a" * 50, ""):
        ids = model.preprocess([text])["input_ids"][0].tolist()
        assert ids.count(end) == 1
        assert ids[-1] == end
        assert len(ids) <= 8


def test_nothing_of_the_repository_is_run_and_no_pointer_to_its_code_is_saved(repo, tmp_path):
    model = load_model(repo[0], device="cpu")
    model.save_pretrained(str(tmp_path))
    saved = {
        str(path.relative_to(tmp_path)): path.read_text()
        for path in tmp_path.rglob("*.json")
        if path.name != "tokenizer.json"
    }
    assert not [name for name, text in saved.items() if "auto_map" in text or "modeling_qwen" in text]
    assert json.loads(saved["config.json"])["is_causal"] is False
    vectors = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True).encode_query(TEXTS)
    assert abs(vectors - model.encode_query(TEXTS)).max() < 1e-6


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_saved_model_keeps_its_attention_and_its_one_end_token(repo, tmp_path, attention):
    first = load_gte_qwen2(repo[0], attention=attention, max_seq_length=40, device="cpu")
    first.save_pretrained(str(tmp_path))
    again = load_model(tmp_path, device="cpu")
    assert abs(first.encode_query(TEXTS) - again.encode_query(TEXTS)).max() < 1e-6
    assert again.max_seq_length == 40
    assert again.declared == first.declared


def test_the_task_goes_into_the_query_prompt_alone(repo):
    model = load_gte_qwen2(repo[0], task="Find the page of the manual", device="cpu")
    assert model.prompts == {"query": "Instruct: Find the page of the manual\nQuery: ", "document": ""}


def test_the_prompt_is_filled_in_where_the_configuration_has_none(tmp_path):
    gte_qwen2_repository(tmp_path / "gte-Qwen2-1.5B-instruct")
    (tmp_path / "gte-Qwen2-1.5B-instruct" / "config_sentence_transformers.json").unlink()
    model = load_model(tmp_path / "gte-Qwen2-1.5B-instruct", device="cpu")
    assert model.prompts["query"] == GTE_PROMPT


def test_a_model_is_recognised_by_its_name_where_its_code_was_removed(tmp_path):
    folder = tmp_path / "gte-Qwen2-7B-instruct"
    gte_qwen2_repository(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    write_json(folder, "config.json", config)
    assert load_model(folder, device="cpu").config.is_causal is False


@pytest.mark.parametrize("is_causal", [True, False])
def test_what_the_hub_says_about_the_direction_does_not_matter(tmp_path, is_causal):
    gte_qwen2_repository(tmp_path, is_causal=is_causal)
    assert load_model(tmp_path, device="cpu").config.is_causal is False
    assert load_gte_qwen2(tmp_path, attention="causal", device="cpu").config.is_causal is True


# The full-size model, without its weights


def test_the_checkpoint_of_the_full_size_model_is_accepted(tmp_path):
    shapes = gte_shapes(GTE_CONFIG)
    assert len(shapes) == 339
    backbone = sum(math.prod(shape) for name, shape in shapes.items() if name != "lm_head.weight")
    assert backbone == 1_543_268_864
    gte_qwen2_repository(tmp_path)
    write_json(tmp_path, "config.json", GTE_CONFIG)
    for path in tmp_path.glob("model*"):
        path.unlink()
    header_only_safetensors(tmp_path / "model.safetensors", shapes)
    check_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("lost", "renamed"),
    [("model.layers.1.mlp.up_proj.weight", None), ("model.norm.weight", "model.layers.7.norm.weight")],
)
def test_missing_or_unknown_tensors_are_refused(tmp_path, lost, renamed):
    tensors = gte_qwen2_repository(tmp_path)
    for path in tmp_path.glob("model*"):
        path.unlink()
    tensor = tensors.pop(lost)
    if renamed:
        tensors[renamed] = tensor
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing \(.*at random"):
        load_model(tmp_path)


# What does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "both"}, r"attention='both' must be one of \('bidirectional', 'causal'\)"),
        ({"truncate_dim": 33}, "truncate_dim=33 must be between 1 and 32, the model's dimensions"),
        ({"max_seq_length": 513}, "must be between 1 and 512, the model's positions"),
    ],
)
def test_options_that_do_not_fit_are_refused(repo, options, message):
    with pytest.raises(ValueError, match=message):
        load_gte_qwen2(repo[0], **options)


def test_both_loaders_give_the_same_model_by_default(repo):
    ours, general = load_gte_qwen2(repo[0], device="cpu"), load_model(repo[0], device="cpu")
    assert abs(ours.encode_query(TEXTS) - general.encode_query(TEXTS)).max() == 0
    assert ours.declared == general.declared
    assert ours.prompts == general.prompts


def test_a_copy_without_its_name_code_and_prompts_loads_with_all_of_them(tmp_path):
    weights = gte_qwen2_repository(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["auto_map"]
    write_json(tmp_path, "config.json", config)
    (tmp_path / "config_sentence_transformers.json").unlink()
    model = load_gte_qwen2(tmp_path, device="cpu")
    double = {name: tensor.double() for name, tensor in weights.items()}
    assert_same(model.encode_query(TEXTS), [vector_by_hand(double, GTE_PROMPT + text) for text in TEXTS])


def test_a_model_that_embedtune_saved_is_refused_by_the_loader_of_the_original(repo, tmp_path):
    load_gte_qwen2(repo[0], attention="causal", device="cpu").save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"is not the original gte-Qwen2.*Qwen2Model.*Use load_model"):
        load_gte_qwen2(tmp_path)


def test_another_model_is_refused_by_name(tiny_model_folder):
    with pytest.raises(ValueError, match=r"is not the original gte-Qwen2: its config\.json has model_type='bert'"):
        load_gte_qwen2(tiny_model_folder)


def test_a_task_without_an_instruction_to_replace_is_refused(tmp_path):
    gte_qwen2_repository(tmp_path)
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": {"query": "ask: "}}))
    with pytest.raises(ValueError, match="task='find' does not fit the query prompt 'ask: '"):
        load_gte_qwen2(tmp_path, task="find")


def test_an_older_transformers_is_refused(repo, monkeypatch):
    monkeypatch.setattr(repository, "transformers_version", "5.1.0")
    with pytest.raises(ImportError, match=r"transformers 5\.1\.0 is installed, .*pip install -U 'transformers>=5\.2'"):
        load_model(repo[0])


def test_another_model_on_the_same_code_is_refused(tmp_path):
    gte_qwen2_repository(tmp_path)
    pooling = json.loads((tmp_path / "1_Pooling/config.json").read_text())
    write_json(
        tmp_path, "1_Pooling/config.json", pooling | {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    )
    with pytest.raises(ValueError, match=r"uses pooling \['mean'\], but gte-Qwen2 uses \['lasttoken'\]"):
        load_model(tmp_path)


def test_a_shard_that_was_cut_short_is_refused(tmp_path):
    gte_qwen2_repository(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"is incomplete: .*Download or save it again"):
        load_model(tmp_path)


def test_a_missing_shard_is_refused(tmp_path):
    gte_qwen2_repository(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises((OSError, ValueError), match=r"model-00002-of-00002\.safetensors"):
        load_model(tmp_path)


# What other programs read


def test_the_saved_files_can_be_read_by_other_programs(repo, tmp_path):
    load_model(repo[0], max_seq_length=64, device="cpu").save_pretrained(str(tmp_path))

    def read(name):
        return json.loads((tmp_path / name).read_text())

    assert [module["type"] for module in read("modules.json")] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")
    ]
    pooling = read("1_Pooling/config.json")
    assert pooling["pooling_mode_lasttoken"] is True
    assert [key for key in pooling if key.startswith("pooling_mode_") and pooling[key]] == ["pooling_mode_lasttoken"]
    assert sum(key.startswith("pooling_mode_") for key in pooling) == 6
    assert read("sentence_bert_config.json")["max_seq_length"] == 64
    assert read("config.json")["rope_theta"] == 1e6
    assert read("config_sentence_transformers.json")["requirements"]["transformers"]["specifier"] == ">=5.2"
    assert "transformers >=5.2" in (tmp_path / "README.md").read_text()
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.startswith(("model.", "lm_head"))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fit in one batch")
@pytest.mark.parametrize("options", [{"loss": "triplet"}, {"loss": "cosine", "full": True}])
def test_the_example_trains_saves_and_compares(tmp_path, options, capsys):
    gte_qwen2_repository(tmp_path / "model")
    settings = {"model_name": str(tmp_path / "model"), "output_dir": str(tmp_path / "out"), "max_seq_length": 256}
    verdict = load_example("finetune_gte_qwen2").main(make_data(), epochs=1, batch_size=8, **settings, **options)
    assert verdict.decision in ("better", "worse", "cannot tell")
    assert SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu").encode_query("pump").shape[0] == 32
