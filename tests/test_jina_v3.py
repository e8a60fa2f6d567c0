"""jina-embeddings-v3 on the native model, held against a forward of the original layout written by hand in float64."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from model_repositories import (
    JINA_CONFIG,
    JINA_INSTRUCTIONS,
    JINA_TASKS,
    header_only_safetensors,
    jina_hf_repository,
    jina_original_repository,
    jina_original_shapes,
    unigram_tokenizer,
    write_json,
)
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from test_examples import load as load_example
from test_trainer import make_data
from transformers import JinaEmbeddingsV3Model

from embedtune.models import repository
from embedtune.models.families.jina_v3 import load_jina_v3
from embedtune.models.families.jina_v3_original import convert_jina_v3
from embedtune.models.gate import check_weights
from embedtune.models.load import load_model

# peft's own wrapper, which only the tests use
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TEXTS = ["how to restart the pump", "valve", "Press both buttons for five seconds, then wait until the lamp is green."]
QUERY, PASSAGE = JINA_TASKS[:2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jina-original")
    config, tensors = jina_original_repository(folder)
    return folder, config, {name: tensor.double() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jina-hf")
    jina_hf_repository(folder, custom_code=True)
    return folder


def layer_norm(x, weights, name):
    return F.layer_norm(x, x.shape[-1:], weights[f"roberta.{name}.weight"], weights[f"roberta.{name}.bias"], 1e-5)


def rotated(x, theta):
    dim, length = x.shape[-1], x.shape[-2]
    # In float32, as the model does: at position 800 its rounding shows.
    angles = (torch.arange(length).float()[:, None] * (1.0 / theta ** (torch.arange(0, dim, 2).float() / dim))).double()
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def vector_by_hand(weights, config, text, task):
    """The LoRA of one task on every linear layer and embedding; the mean of the states, of length one."""

    def weight(name, *, embedding=False):
        stored = f"roberta.{name}.parametrizations.weight"
        full = weights[f"{stored}.original"]
        if task is None:
            return full
        a, b = (weights[f"{stored}.0.lora_{m}"][JINA_TASKS.index(task)] for m in "AB")
        return full + (a @ b if embedding else b @ a) * (config["lora_alpha"] / config["lora_rank"])

    def linear(name, x):
        return x @ weight(name).T + weights[f"roberta.{name}.bias"]

    ids = torch.tensor(unigram_tokenizer().encode(text).ids)
    x = weight("embeddings.word_embeddings", embedding=True)[ids]
    x = layer_norm(x + weight("embeddings.token_type_embeddings", embedding=True)[0], weights, "emb_ln")
    length, hidden = x.shape
    heads = config["num_attention_heads"]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        qkv = linear(f"{layer}.mixer.Wqkv", x).reshape(length, 3, heads, hidden // heads).permute(1, 2, 0, 3)
        q, k = (rotated(part, config["rotary_emb_base"]) for part in qkv[:2])
        attended = (q @ k.transpose(1, 2) / math.sqrt(hidden // heads)).softmax(-1) @ qkv[2]
        attended = attended.transpose(0, 1).reshape(length, hidden)
        x = layer_norm(x + linear(f"{layer}.mixer.out_proj", attended), weights, f"{layer}.norm1")
        x = layer_norm(x + linear(f"{layer}.mlp.fc2", F.gelu(linear(f"{layer}.mlp.fc1", x))), weights, f"{layer}.norm2")
    mean = x.mean(0)
    return mean / mean.norm()


def assert_same(vectors, expected, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(vectors).double(), torch.stack(expected), atol=atol, rtol=0)


# The original layout


@pytest.mark.parametrize(("rank", "alpha"), [(4, 1), (8, 16)])
def test_the_original_layout_gives_the_vectors_of_a_forward_written_by_hand(tmp_path, rank, alpha):
    config, tensors = jina_original_repository(tmp_path, lora_rank=rank, lora_alpha=alpha)
    weights = {name: tensor.double() for name, tensor in tensors.items()}
    model = load_model(tmp_path, device="cpu")
    for way, task in ((model.encode_query, QUERY), (model.encode_document, PASSAGE)):
        expected = [vector_by_hand(weights, config, JINA_INSTRUCTIONS[task] + text, task) for text in TEXTS]
        assert_same(way(TEXTS), expected)
        plain = [vector_by_hand(weights, config, JINA_INSTRUCTIONS[task] + text, None) for text in TEXTS]
        assert (torch.as_tensor(way(TEXTS)) - torch.stack(plain)).abs().max() > 0.01, "the adapter matters"


@pytest.mark.parametrize("task", JINA_TASKS)
def test_each_adapter_is_converted(original, tmp_path, task):
    folder, config, weights = original
    native = convert_jina_v3(folder, tmp_path / "native")
    base = JinaEmbeddingsV3Model.from_pretrained(native)
    model = PeftModel.from_pretrained(base, native / task.replace(".", "_")).eval()
    for text in TEXTS:
        ids = torch.tensor([unigram_tokenizer().encode(text).ids])
        mean = model(input_ids=ids).last_hidden_state[0].mean(0)
        assert_same((mean / mean.norm()).detach()[None], [vector_by_hand(weights, config, text, task)])


def test_longer_texts_than_512_tokens_and_both_sides_of_padding_are_right(original):
    folder, config, weights = original
    model = load_model(folder, device="cpu")
    texts = [" ".join(["hold the button"] * 50), *TEXTS]
    expected = [vector_by_hand(weights, config, text, QUERY) for text in texts]
    for side in ("left", "right"):
        model.tokenizer.padding_side = side
        assert model.preprocess(texts[:1], task="query")["input_ids"].shape[1] > 512
        assert_same(model.encode(texts, task="query", prompt=""), expected)


def test_the_original_of_full_size_is_accepted(tmp_path):
    """Names and shapes of every tensor, on the meta device."""
    shapes = jina_original_shapes(JINA_CONFIG)
    lora = sum(math.prod(shape) for name, shape in shapes.items() if "lora_" in name)
    assert lora == 5 * 2_589_260
    assert sum(math.prod(shape) for shape in shapes.values()) - lora == 559_364_096
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    write_json(source, "config.json", JINA_CONFIG)
    # Two layers of the full size: the other 22 have the same names, and a file of 1.1 GB would be written for them.
    small = JINA_CONFIG | {"vocab_size": 64, "num_hidden_layers": 2}
    write_json(source, "config.json", small)
    header_only_safetensors(source / "model.safetensors", jina_original_shapes(small), dtype="BF16")
    convert_jina_v3(source, target)
    check_weights(str(target))
    with safe_open(target / "retrieval_query" / "adapter_model.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == 2 * (2 * 6 + 3)
    full = tmp_path / "full"
    full.mkdir()
    config = json.loads((target / "config.json").read_text())
    write_json(full, "config.json", config | {"vocab_size": 250002, "num_hidden_layers": 24})
    header_only_safetensors(full / "model.safetensors", native_full_size_shapes(), dtype="BF16")
    check_weights(str(full))


def native_full_size_shapes():
    """The base's tensors as the original names them, without parametrizations, as jina-embeddings-v3-hf has them."""
    return {
        name.removeprefix("roberta.").replace(".parametrizations.weight.original", ".weight"): shape
        for name, shape in jina_original_shapes(JINA_CONFIG).items()
        if "lora_" not in name
    }


def test_an_original_without_safetensors_or_with_other_adapters_is_refused(tmp_path):
    jina_original_repository(tmp_path)
    write_json(
        tmp_path, "config.json", json.loads((tmp_path / "config.json").read_text()) | {"lora_adaptations": ["a"]}
    )
    with pytest.raises(ValueError, match=r"contains 5 adapters, but config\.json lists 1"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="only safetensors are read"):
        load_model(tmp_path)


# The native layout


def merged_by_peft(folder, task):
    base = JinaEmbeddingsV3Model.from_pretrained(folder)
    return PeftModel.from_pretrained(base, folder / task.replace(".", "_")).merge_and_unload().eval()


def test_each_side_has_its_adapter_and_its_prompt(native):
    model = load_model(native, device="cpu")
    for way, task in ((model.encode_query, QUERY), (model.encode_document, PASSAGE), (model.encode, PASSAGE)):
        backbone = merged_by_peft(native, task)
        for text in TEXTS:
            ids = torch.tensor([unigram_tokenizer().encode(JINA_INSTRUCTIONS[task] + text).ids])
            mean = backbone(input_ids=ids).last_hidden_state[0].mean(0)
            torch.testing.assert_close(torch.as_tensor(way(text)), (mean / mean.norm()).detach(), atol=1e-6, rtol=0)


def test_there_is_one_base_in_memory(native):
    model = load_model(native, device="cpu")
    assert isinstance(model[0], Router)
    query, document = (model[0].sub_modules[side][0].model for side in ("query", "document"))
    base = [(name, p) for name, p in query.named_parameters() if "lora_" not in name]
    assert all(p is dict(document.named_parameters())[name] for name, p in base)
    model.to(torch.float64)
    assert all(
        p is dict(document.named_parameters())[name] for name, p in query.named_parameters() if "lora_" not in name
    )


def test_shared_is_one_transformer_with_the_passage_adapter_and_a_prompt_for_each_side(native, tmp_path):
    model = load_jina_v3(native, mode="shared", device="cpu")
    assert isinstance(model[0], Transformer)
    asymmetric = load_model(native, device="cpu")
    assert abs(model.encode_document(TEXTS) - asymmetric.encode_document(TEXTS)).max() < 1e-6
    query = asymmetric.encode(TEXTS, task="document", prompt=JINA_INSTRUCTIONS[QUERY])
    assert abs(model.encode_query(TEXTS) - query).max() < 1e-6
    model.save_pretrained(str(tmp_path))
    assert len(list(tmp_path.rglob("model.safetensors"))) == 1
    assert abs(load_model(tmp_path, device="cpu").encode_query(TEXTS) - model.encode_query(TEXTS)).max() < 1e-6


@pytest.mark.parametrize("mode", ["asymmetric", "shared"])
@pytest.mark.parametrize(
    ("train", "trained", "frozen"),
    [
        ("adapters", "lora_A.default", "layers.0.mlp.fc1.base_layer"),
        ("lora", "lora_A.tuned", "lora_A.default"),
        ("full", "layers.0.mlp.fc1.base_layer", "pooler"),
    ],
)
def test_train_says_what_is_trained(native, mode, train, trained, frozen):
    model = load_jina_v3(native, mode=mode, train=train, device="cpu")
    requires = {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(on for name, on in requires.items() if trained in name and "pooler" not in name)
    assert not any(on for name, on in requires.items() if frozen in name)
    assert sum(requires.values()) > 10


def test_a_further_lora_begins_at_the_models_own_vectors(native):
    vectors = [load_jina_v3(native, train=train, device="cpu").encode_query(TEXTS) for train in ("adapters", "lora")]
    assert abs(vectors[0] - vectors[1]).max() < 1e-6


def test_vectors_are_cut_to_truncate_dim_also_after_saving(native, tmp_path):
    model = load_model(native, truncate_dim=16, device="cpu")
    assert model.encode_query(TEXTS).shape == (3, 16)
    whole = load_model(native, device="cpu").encode_query(TEXTS)
    assert abs(model.encode_query(TEXTS) - whole[:, :16]).max() < 1e-6
    model.save_pretrained(str(tmp_path))
    assert SentenceTransformer(str(tmp_path), device="cpu").encode_query(TEXTS).shape == (3, 16)


def test_what_is_saved_is_a_plain_router_with_the_adapters_beside(native, tmp_path):
    model = load_model(native, device="cpu")
    model.save_pretrained(str(tmp_path))
    folders = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.safetensors")}
    assert folders == {
        "query_0_Transformer",
        "document_0_Transformer",
        "adapters/query/default",
        "adapters/document/default",
    }
    adapter = load_file(tmp_path / "adapters/query/default/adapter_model.safetensors")
    stored = load_file(native / "retrieval_query/adapter_model.safetensors")
    assert adapter.keys() == stored.keys()
    assert all(torch.equal(adapter[name], stored[name]) for name in stored)
    again = load_model(native, lora=tmp_path / "adapters", device="cpu")
    assert abs(again.encode_query(TEXTS) - model.encode_query(TEXTS)).max() < 1e-6
    types = json.loads((tmp_path / "router_config.json").read_text())["types"]
    assert set(types.values()) == {"sentence_transformers.models.Transformer"}
    requirements = json.loads((tmp_path / "config_sentence_transformers.json").read_text())["requirements"]
    assert requirements["transformers"]["specifier"] == ">=5.4"


def test_the_licence_is_shown_and_lands_in_every_card(native, tmp_path, caplog):
    model = load_model(native, device="cpu")
    assert "CC BY-NC 4.0" in caplog.text
    for generation in ("first", "second"):
        model.save_pretrained(str(tmp_path / generation))
        card = (tmp_path / generation / "README.md").read_text()
        assert "license: cc-by-nc-4.0" in card
        assert "transformers >=5.4" in card
        model = load_model(tmp_path / generation, device="cpu")
    assert model.model_card_data.license == "cc-by-nc-4.0"


# What does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, r"mode='both' must be one of \('asymmetric', 'shared'\)"),
        ({"train": "heads"}, r"train='heads' must be one of \('adapters', 'lora', 'full'\)"),
        ({"train": "full", "lora": True}, r"lora=True adds an adapter, which train='full' does not use"),
        ({"train": "adapters", "lora": True}, r"lora=True adds an adapter, which train='adapters' does not use"),
        ({"truncate_dim": 64}, "must be between 1 and 32, the model's dimensions"),
    ],
)
def test_options_that_do_not_apply_are_refused(native, options, message):
    with pytest.raises(ValueError, match=message):
        load_jina_v3(native, **options)


def test_another_model_or_a_saved_one_is_refused_by_the_loader_of_the_original(native, tiny_model_folder, tmp_path):
    load_jina_v3(native, mode="shared", device="cpu").save_pretrained(str(tmp_path))
    for folder, kind in ((tiny_model_folder, "bert"), (tmp_path, "jina_embeddings_v3")):
        with pytest.raises(
            ValueError, match=f"is not the original jina-embeddings-v3: .*model_type='{kind}'.*load_model"
        ):
            load_jina_v3(folder)


def test_both_loaders_give_the_same_model_by_default(native):
    ours, general = load_jina_v3(native, device="cpu"), load_model(native, device="cpu")
    for way in ("encode_query", "encode_document"):
        assert abs(getattr(ours, way)(TEXTS) - getattr(general, way)(TEXTS)).max() == 0
    trained = [[name for name, p in model.named_parameters() if p.requires_grad] for model in (ours, general)]
    assert trained[0] == trained[1]


def test_a_missing_adapter_is_named(tmp_path):
    jina_hf_repository(tmp_path, tasks=[PASSAGE])
    load_jina_v3(tmp_path, mode="shared", device="cpu")
    with pytest.raises(ValueError, match=r"The adapter 'retrieval_query' is missing from the repository.*v3-hf"):
        load_model(tmp_path)


def test_an_adapter_that_lacks_a_tensor_is_refused(tmp_path):
    jina_hf_repository(tmp_path, tasks=[PASSAGE])
    path = tmp_path / "retrieval_passage" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "fc1.lora_B" in name))
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors, such as '.*fc1\.lora_B"):
        load_jina_v3(tmp_path, mode="shared")


def test_custom_code_over_a_native_model_without_adapters_is_refused(native, tmp_path):
    jina_hf_repository(tmp_path, tasks=[], custom_code=True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["lora_adaptations"]
    write_json(tmp_path, "config.json", config)
    with pytest.raises(ValueError, match=r"needs its own code \(custom_st\.Transformer\), which is not run"):
        load_model(tmp_path)


def test_an_older_transformers_is_refused(native, monkeypatch):
    monkeypatch.setattr(repository, "transformers_version", "5.3.0")
    with pytest.raises(ImportError, match=r"pip install -U 'transformers>=5\.4'"):
        load_model(native)


def test_a_lora_configuration_of_ones_own_is_used(native):
    model = load_model(native, lora=LoraConfig(r=2, target_modules=["q_proj"]), device="cpu")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all("q_proj" in name for name in trained)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fit in one batch")
@pytest.mark.parametrize("options", [{"loss": "triplet"}, {"loss": "cosine", "train": "full", "matryoshka": [32, 16]}])
def test_the_example_trains_saves_and_compares(tmp_path, options, capsys):
    jina_hf_repository(tmp_path / "model")
    settings = {"model_name": str(tmp_path / "model"), "output_dir": str(tmp_path / "out"), "max_seq_length": 256}
    verdict = load_example("finetune_jina_v3").main(make_data(), epochs=1, batch_size=8, **settings, **options)
    assert verdict.decision in ("better", "worse", "cannot tell")
    assert SentenceTransformer(str(tmp_path / "out" / "model"), device="cpu").encode_query("pump").shape[0] == 32
