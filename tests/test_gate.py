"""What a repository says about itself is checked before anything is built from it."""

from __future__ import annotations

import json
import os
import pickle
import pty
import shutil
import struct
import subprocess
import sys

import pytest
from model_repositories import gte_qwen2_repository, jina_hf_repository
from safetensors.torch import load_file, save_file

from embedtune.models.load import load_model
from embedtune.models.repository import read_licence
from embedtune.publishing.hub import push_to_hub


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def in_tokenizer(**parts):
    return lambda folder: edit(folder / "tokenizer.json", **parts)


def in_config(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def written(file, text):
    return lambda folder: (folder / file).write_text(text)


def shards(file):
    def change(folder):
        (folder / "model.safetensors").unlink()
        edit(folder / "model.safetensors.index.json", weight_map={"embeddings.word_embeddings.weight": file})

    return change


def routed_to(kind):
    def change(folder):
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        edit(folder / "router_config.json", types={"q": kind}, structure={"query": ["q"], "document": ["q"]})

    return change


def module(path):
    def change(folder):
        modules = json.loads((folder / "modules.json").read_text())
        modules[1]["path"] = path
        (folder / "modules.json").write_text(json.dumps(modules))

    return change


def pickled_dense(folder):
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    edit(folder / "2_Dense" / "config.json", in_features=32, out_features=8)
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps({}))


GROWING = {"type": "Replace", "pattern": {"String": "p"}, "content": "p" * 10}
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000

REFUSED = {
    "ten million layers": (in_config(num_hidden_layers=10**7), r"config\.json .* says num_hidden_layers=10000000"),
    "layers of a tower": (in_config(text_config={"num_hidden_layers": 10**7}), r"num_hidden_layers=10000000"),
    "a huge vocabulary": (in_config(vocab_size=2**50), r"config\.json .* says vocab_size=1125899906842624"),
    "another width": (in_config(hidden_size=64), r"cannot build a model from config\.json and the weights"),
    "no heads": (in_config(num_attention_heads=0), r"cannot build a model from config\.json"),
    "negative": (in_config(num_hidden_layers=-1), r"config\.json .* says num_hidden_layers=-1"),
    "deep configuration": (written("config.json", DEEP), r"config\.json .* is nested too deeply"),
    "deep modules": (written("modules.json", "[" * 100_000 + "]" * 100_000), r"modules\.json .* nested too deeply"),
    "modules of another form": (written("modules.json", '{"a": 1}'), r"modules\.json .* must be a list of modules"),
    "no JSON": (written("tokenizer_config.json", "\0" * 9), r"tokenizer_config\.json .* is not JSON"),
    "prompts that are numbers": (
        lambda folder: edit(folder / "config_sentence_transformers.json", prompts={"query": 5}),
        r"config_sentence_transformers\.json .* prompts that are not texts",
    ),
    "a growing normalizer": (
        in_tokenizer(normalizer={"type": "Sequence", "normalizers": [GROWING] * 2}),
        r"tokenizer\.json .* makes texts grow: 100 characters for one",
    ),
    "a growing template": (
        in_tokenizer(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {}}] * 1000}),
        r"tokenizer\.json .* 1000 special tokens",
    ),
    "padding without end": (
        in_tokenizer(padding={"strategy": {"Fixed": 10**12}}),
        r"tokenizer\.json .* padding to 1000000000000",
    ),
    "tokens without rows": (
        in_tokenizer(model={"type": "WordPiece", "vocab": {str(i): i for i in range(2000)}}),
        r"tokenizer\.json .* has 2000 tokens, but config\.json says vocab_size=",
    ),
    "weights elsewhere": (
        shards("../../weights.safetensors"),
        r"index\.json .* names '\.\./\.\./weights\.safetensors'",
    ),
    "a shard that is a pickle": (
        shards("evil.bin"),
        r"index\.json .* names 'evil\.bin', which is not a file of safetensors",
    ),
    "a module elsewhere": (module("../../etc"), r"modules\.json .* leads out of the folder: '\.\./\.\./etc'"),
    "a route that is code": (routed_to("os.system"), r"needs its own code \(os\.system\), which is not run.*'refs/pr"),
    "a route to what another module imports": (
        routed_to("sentence_transformers.base.model.torch"),
        r"names 'sentence_transformers\.base\.model\.torch' as a module, which is not a class of modules",
    ),
    "a route that leads nowhere": (routed_to("sentence_transformers.models.Nothing"), r"Nothing' as a module"),
    "a pickle of a module": (pickled_dense, r"only in 2_Dense/pytorch_model\.bin, a pickle.*save_pretrained"),
    "a header that lies": (
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}"),
        r"model\.safetensors .* is incomplete",
    ),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_is_refused_in_one_line_that_names_the_file(folder, case):
    change, message = REFUSED[case]
    change(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ValueError, match=r"has no file config\.json, which describes its transformer"):
        load_model(folder, device="cpu")


def test_the_tokenizers_of_real_layouts_do_not_grow(folder):
    harmless = [
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Lowercase"},
    ]
    edit(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": harmless})
    load_model(folder, device="cpu", check=False)


# Code

DOORS = """
import sys, embedtune as et
from embedtune.models.selfcheck import check_model
from embedtune.llms.local import TransformersLLM
evil, good = sys.argv[1:3]
model = et.load_model(good, device="cpu", check=False)
print(check_model(model, folder=evil).failures[-1].name)
for door in (et.load_model, et.load_jina_v3, et.load_gte_qwen2, lambda name: et.Retriever.from_chunks(name, []),
             lambda name: TransformersLLM(name).prepare()):
    try:
        door(evil)
    except ValueError as error:
        print("refused", str(error)[-300:].replace("\\n", " "))
    else:
        print("LOADED")
"""


@pytest.mark.parametrize("known", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["unknown", "gte-Qwen2"])
def test_code_of_a_repository_is_not_run_by_a_y_on_the_terminal_at_any_door(folder, tiny_model_folder, tmp_path, known):
    if known:
        shutil.rmtree(folder)
        gte_qwen2_repository(folder)
    ran = tmp_path / "RAN"
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(ran)!r}).touch()\nclass M: pass\n")
    code = {"AutoConfig": "evil.M", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M"}
    edit(folder / "config.json", auto_map=code, architectures=["M"], **({} if known else {"model_type": "evil"}))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.M", "evil.M"]}, tokenizer_class="M")
    edit(folder / "sentence_bert_config.json", model_args={"trust_remote_code": True})
    main, terminal = pty.openpty()
    os.write(main, b"y\n" * 40)
    done = subprocess.run(
        [sys.executable, "-c", DOORS, str(folder), str(tiny_model_folder)],
        check=False,
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache")},
    )
    os.close(main)
    os.close(terminal)
    assert not ran.exists(), done.stdout
    assert "[y/N]" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "saved = in memory", done.stderr
    if not known:
        assert [line.partition(" ")[0] for line in lines[1:]] == ["refused"] * 5, done.stdout
        assert all(
            "own code" in line or "is not the original" in line or "trust_remote_code=True" in line
            for line in lines[1:]
        )


def test_pointers_to_code_are_not_saved_without_the_code(folder, tmp_path):
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]})
    load_model(folder, device="cpu").save_pretrained(str(tmp_path / "saved"))
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "saved" / file).read_text())


# Licences


@pytest.mark.parametrize(
    ("header", "licence", "shown"),
    [
        ("license: mit", "mit", "`mit`"),
        ("license: [mit, apache-2.0]", ["mit", "apache-2.0"], "`mit`, `apache-2.0`"),
        ("license: [1, {a: b}]", None, None),
        ("license: {a: b}", None, None),
        ("license: " + "[" * 20_000 + "]" * 20_000, None, None),
    ],
    ids=["one", "two", "numbers", "mapping", "deep"],
)
def test_a_licence_of_any_form_in_a_card_does_not_break_a_push(folder, header, licence, shown):
    (folder / "README.md").write_text(f"---\n{header}\n---\n")
    assert read_licence(str(folder)) == licence
    card = push_to_hub(load_model(folder, device="cpu"), "my-org/model", dry_run=True).card
    assert ("## Licence" in card) == (shown is not None)
    assert shown is None or shown in card


def test_a_native_checkpoint_with_the_head_of_a_language_model_loads(folder):
    edit(folder / "config.json", architectures=["BertForMaskedLM"])
    tensors = load_file(folder / "model.safetensors")
    head = {
        f"cls.predictions.{name}": tensors["embeddings.LayerNorm.weight"].clone() for name in ("bias", "dense.weight")
    }
    save_file(tensors | head, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder, device="cpu")


def test_jina_in_another_size_is_refused_by_its_configuration(tmp_path):
    jina_hf_repository(tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=10**7)
    with pytest.raises(ValueError, match=r"config\.json .* says num_hidden_layers=10000000"):
        load_model(tmp_path)
