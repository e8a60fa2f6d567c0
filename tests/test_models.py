"""The models that people tune, as tiny copies of their repositories: loaded, trained, saved, and loaded without embedtune."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from model_repositories import LAYOUTS, STATIC_LAYOUTS, layout_repository, randomize, static_repository
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from test_encode_once import WITH_IDS, assert_same, step  # noqa: F401  # a fixture
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, PreTrainedModel

from embedtune.models.load import load_model
from embedtune.models.lora import transformers_of
from embedtune.models.packing.attention import packed_attention
from embedtune.models.query_side import freeze_index
from embedtune.models.selfcheck import check_model
from embedtune.training.losses import InBatchNegativesLoss

TEXTS = ["how to open the pump", "what is the valve for", "close the door of the old roof, and wait"]
NAMES = list(LAYOUTS)
GEMMA2, MISTRAL, QWEN3 = "google/embeddinggemma-2", "intfloat/e5-mistral-7b-instruct", "Qwen/Qwen3-Embedding-0.6B"


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


@pytest.mark.parametrize("name", [name for name in NAMES if name != GEMMA2])
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
        "sys.modules |= dict.fromkeys(('embedtune', 'peft'))\n"  # cannot be imported
        "from sentence_transformers import SentenceTransformer\n"
        "texts, folders, out = json.loads(sys.argv[1])\n"
        "for number, folder in enumerate(folders):\n"
        "    model = SentenceTransformer(folder, device='cpu')\n"
        "    np.savez(f'{out}/{number}.npz', model.encode_query(texts), model.encode_document(texts))\n"
    )
    folders = [str(folder) for folder, *_ in saved.values()]
    subprocess.run([sys.executable, "-c", program, json.dumps([TEXTS, folders, str(tmp_path)])], check=True)
    for number, (name, (folder, *vectors)) in enumerate(saved.items()):
        again = np.load(tmp_path / f"{number}.npz")
        for wanted, found in zip(vectors, again.values(), strict=True):
            assert np.abs(wanted - found).max() < 1e-5, name
        base = load_model(folder, device="cpu")
        assert "auto_map" not in json.loads((folder / "config.json").read_text()), name
        assert base.prompts.get("query", "") == LAYOUTS[name].prompts[0], name


# Static models: a table of vectors, no transformer


@pytest.fixture(params=STATIC_LAYOUTS)
def static(request, tmp_path):
    return static_repository(tmp_path, request.param)


def test_a_static_model_computes_what_plain_sentence_transformers_does_and_passes_its_check(static):
    model = load_model(static, device="cpu")
    assert np.array_equal(model.encode(TEXTS), SentenceTransformer(str(static), device="cpu").encode(TEXTS))
    report = check_model(model)
    assert report.ok, str(report)
    assert not np.allclose(*model.encode(TEXTS[:2]))


def test_a_static_model_is_trained_with_the_stock_trainers_loss_and_gradients(static, step):  # noqa: F811
    model = load_model(static, device="cpu")
    ours, stock = (step(model, InBatchNegativesLoss, WITH_IDS, encode_once=once) for once in (True, False))
    assert_same(ours, stock)


def test_a_static_model_that_was_changed_is_saved_for_every_sentence_transformers_and_loaded_again(static, tmp_path):
    model = load_model(static, device="cpu")
    with torch.no_grad():
        model[0].embedding.weight.add_(torch.randn_like(model[0].embedding.weight))
    model.save_pretrained(str(tmp_path / "saved"))
    kinds = [module["type"] for module in json.loads((tmp_path / "saved/modules.json").read_text())]
    assert kinds[0] == "sentence_transformers.models.StaticEmbedding"
    for kind in (load_model, SentenceTransformer):
        assert np.array_equal(kind(str(tmp_path / "saved"), device="cpu").encode(TEXTS), model.encode(TEXTS))


def test_a_static_model_is_float32_unless_another_dtype_is_asked_for(static):
    for path in static.glob("**/model.safetensors"):
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves, path, metadata={"format": "pt"})
    assert load_model(static, device="cpu").dtype == torch.float32
    assert load_model(static, device="cpu", dtype="bfloat16", check=False).dtype == torch.bfloat16


def test_options_that_need_a_transformer_are_refused_for_a_static_model(static):
    with pytest.raises(ValueError, match="max_seq_length=64 does not apply to a static model"):
        load_model(static, device="cpu", max_seq_length=64)
    with pytest.raises(ValueError, match=r"needs a transformer, and the model has none \(StaticEmbedding"):
        load_model(static, device="cpu", lora=True)
    with pytest.raises(ValueError, match=r"query='lora' needs a transformer.*Use query='linear' or 'route'"):
        freeze_index(load_model(static, device="cpu"))


@pytest.mark.parametrize("dtype", ["bf16", "no_grad", torch.bfloat16])
def test_a_dtype_that_is_not_the_name_of_one_is_refused_for_every_model(static, dtype):
    for name in (static, "minilm"):
        with pytest.raises(ValueError, match=r"dtype=.* must be a name, such as 'float32', 'bfloat16'"):
            load_model(name, device="cpu", dtype=dtype)


def test_a_static_model_whose_files_do_not_fit_is_refused(static):
    (path,) = static.glob("**/model.safetensors")
    ((name, table),) = load_file(path).items()

    def refused(message, **tensors):
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            load_model(static, device="cpu")

    refused(f"a token with the id {len(table) - 1}, .* vectors for {len(table) - 1}", **{name: table[:-1].clone()})
    refused("has one table", **{name: table, "more": table.clone()})
    refused("has one table", table=table)
    save_file({name: table}, path, metadata={"format": "pt"})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors of .* is incomplete"):
        load_model(static, device="cpu")
    torch.save({name: table}, path.with_name("pytorch_model.bin"))
    path.unlink()
    with pytest.raises(ValueError, match=r"only in .*pytorch_model\.bin, a pickle"):
        load_model(static, device="cpu")
    path.with_name("tokenizer.json").unlink()
    save_file({name: table}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no file .*tokenizer\.json"):
        load_model(static, device="cpu")


# EmbeddingGemma 2


def whole_gemma2(folder):
    """The model with its towers; the processors of images and sounds, which text does not need, are left out."""
    model = SentenceTransformer(modules=list(load_model(folder, device="cpu", check=False)), device="cpu")
    model[0].model = AutoModel.from_pretrained(folder)
    return model


def test_the_text_tower_computes_what_the_whole_model_computes_and_takes_no_tower(folders):
    tower, whole = load_model(folders[GEMMA2], device="cpu"), whole_gemma2(folders[GEMMA2])
    assert type(tower[0].model).__name__ == "EmbeddingGemma2TextModel"
    assert np.abs(tower.encode(TEXTS) - whole.encode(TEXTS)).max() < 1e-6
    assert sum(p.numel() for p in tower.parameters()) < 0.6 * sum(p.numel() for p in whole.parameters())
    assert tower.model_card_data.base_model == GEMMA2


def test_an_extraction_of_the_text_that_still_describes_towers_is_the_text_tower(folders, tmp_path):
    shutil.copytree(folders[GEMMA2], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    text = {name: tensor for name, tensor in tensors.items() if name.startswith("language_model.")}
    assert len(text) < len(tensors)
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]
    save_file(text, tmp_path / "model.safetensors", metadata={"format": "pt"})
    both = [load_model(folder, device="cpu").encode(TEXTS) for folder in (folders[GEMMA2], tmp_path)]
    assert np.array_equal(*both)


def test_a_text_tower_without_one_of_its_tensors_is_refused(folders, tmp_path):
    shutil.copytree(folders[GEMMA2], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("language_model.embedding_projection.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 tensors are missing \(embedding_projection\.weight\)"):
        load_model(tmp_path, device="cpu")


def attention_of(model):
    return {
        name: module.config._attn_implementation
        for name, module in model[0].model.named_modules()
        if isinstance(module, PreTrainedModel)
    }


def test_the_whole_model_trains_like_the_stock_trainer_and_its_towers_keep_their_attention(folders, step):  # noqa: F811
    model = whole_gemma2(folders[GEMMA2])
    model[0].model.set_attn_implementation(
        {"": "sdpa", "text_config": "sdpa", "vision_config": "sdpa", "audio_config": "eager"}
    )
    before = attention_of(model)
    assert {"sdpa", "eager"} <= set(before.values())
    with packed_attention(model):
        inside = attention_of(model)
        assert {name for name in before if before[name] != inside[name]} == {n for n in before if before[n] == "sdpa"}
    assert attention_of(model) == before
    ours, stock = (step(model, InBatchNegativesLoss, WITH_IDS, encode_once=once) for once in (True, False))
    assert_same(ours, stock)
    assert attention_of(ours[2].model) == before


def test_a_default_lora_of_the_whole_model_stays_in_its_language_model(folders):
    model = load_model(whole_gemma2(folders[GEMMA2]), lora=True, check=False)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[2] for name in trained} == {"language_model"}
    leaves = {name.partition(".lora_")[0].rpartition(".")[2] for name in trained}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} <= leaves


# The end token


def test_the_end_token_that_a_configuration_asks_for_is_there_once_and_is_saved(folders, saved):
    for folder in (folders[MISTRAL], saved[MISTRAL][0]):
        model = load_model(folder, device="cpu")
        first, *text, last = model.preprocess(["pump"])["input_ids"][0].tolist()
        assert (first, last) == (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id)
        assert not {first, last} & set(text)


@pytest.mark.parametrize("template", ["$A", "<|im_start|> $A"])
def test_a_lost_template_fails_the_check(folders, tmp_path, template):
    shutil.copytree(folders[QWEN3], tmp_path, dirs_exist_ok=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    begin = [("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))] if "im_start" in template else []
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=begin)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"(?s)FAIL  end token .*add_eos_token"):
        load_model(tmp_path, device="cpu")


# Another class, another model


def edited(folder, target, file="config.json", **changes):
    shutil.copytree(folder, target, dirs_exist_ok=True)
    path = target / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_a_model_that_was_saved_from_a_class_of_its_own_is_refused(folders, tmp_path):
    """voyage-4-nano: a bidirectional Qwen3 with a projection, which transformers would load as a causal one without."""
    own = ["Qwen3BidirectionalEmbeddingModel"]
    folder = edited(folders[QWEN3], tmp_path, architectures=own, auto_map={"AutoModel": "modeling_own.Model"})
    with pytest.raises(
        ValueError, match=r"architectures=\['Qwen3Bidirectional.*plain 'qwen3', with other embeddings.*refs/pr"
    ):
        load_model(folder)


@pytest.mark.parametrize("architectures", [["Qwen3Model"], ["Qwen3ForCausalLM"], None])
def test_tensors_that_no_class_has_are_refused(folders, tmp_path, architectures):
    folder = edited(folders[QWEN3], tmp_path, architectures=architectures)
    tensors = load_file(folder / "model.safetensors")
    head = {"lm_head.weight": torch.zeros(259, 16)}
    save_file(tensors | head, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder, device="cpu")
    save_file(tensors | {"linear.weight": torch.zeros(8, 16)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 are unknown \(linear\.weight\).*another model"):
        load_model(folder, device="cpu")
