"""LoRA and tied models: what is trained, what comes back from a checkpoint, what is saved."""

from __future__ import annotations

import copy

import pytest
import torch
from model_repositories import gte_qwen2_repository, jina_hf_repository, load_family, randomize
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.modules import Normalize
from test_trainer import make_data

from embedtune.errors import OptionalDependencyError
from embedtune.models import lora as lora_module
from embedtune.models import quantized
from embedtune.models.load import load_model
from embedtune.models.selfcheck import check_model
from embedtune.training.adapters import TRAINED_WEIGHTS, save_trained_weights
from embedtune.training.arguments import TuningArguments
from embedtune.training.trainer import EmbeddingTrainer

TEXTS = ["open the pump", "check the valve and press 3", "lamp"]

# Each way to train that the stock trainer cannot save and resume.
WAYS = {
    "bert-lora": {"lora": True},
    "gte-lora": {"lora": True},
    "jina-adapters": {"train": "adapters"},
    "jina-full": {"train": "full"},
    "jina-lora": {"train": "lora"},
    "jina-shared": {"mode": "shared"},
}
# The last two share the code of the others.
ALL_WAYS = [*list(WAYS)[:4], *(pytest.param(way, marks=pytest.mark.slow) for way in list(WAYS)[4:])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model_folder):
    root = tmp_path_factory.mktemp("repositories")
    gte_qwen2_repository(root / "gte")
    jina_hf_repository(root / "jina")
    return {"gte": root / "gte", "jina": root / "jina", "bert": tiny_model_folder}


@pytest.fixture(scope="module")
def data():
    return make_data()


def load(folders, way, **options):
    torch.manual_seed(0)  # lora_A is drawn
    folder = folders[way.partition("-")[0]]
    length = 64 if way.startswith("bert") else 160
    return load_family(folder, device="cpu", max_seq_length=length, **WAYS[way], **options)


def trainer_for(model, data, output, **options):
    settings = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-3,
        "save_total_limit": None,
    }
    args = TuningArguments(str(output), dropout=0.0, disable_tqdm=True, use_cpu=True, **(settings | options))
    return EmbeddingTrainer(model, args, data=data)


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_vectors(first, second):
    return max(
        abs(getattr(first, way)(TEXTS) - getattr(second, way)(TEXTS)).max()
        for way in ("encode_query", "encode_document")
    )


@pytest.mark.parametrize("way", ALL_WAYS)
def test_only_what_is_to_be_trained_moves_and_all_of_it(folders, data, tmp_path, way):
    model = load(folders, way)
    before, trained = snapshot(model), {name for name, p in model.named_parameters() if p.requires_grad}
    trainer_for(
        model,
        data,
        tmp_path,
        max_steps=5,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
        eval_on_start=False,
    ).train()
    moved = {name for name, p in snapshot(model).items() if not torch.equal(p, before[name])}
    assert moved == trained
    if "shared" not in way and way.startswith("jina"):
        assert {name.split(".")[2] for name in moved if "lora_" in name} == {"query", "document"}


@pytest.mark.parametrize("way", ALL_WAYS)
def test_a_resumed_run_ends_where_a_straight_one_does(folders, data, tmp_path, way):
    models = [load(folders, way) for _ in range(2)]
    trainer_for(models[0], data, tmp_path / "a", load_best_model_at_end=False).train()
    first = min((tmp_path / "a").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    again = trainer_for(models[1], data, tmp_path / "b", load_best_model_at_end=False)
    again.train(resume_from_checkpoint=str(first))
    assert again.state.global_step > int(first.name.split("-")[1])
    straight, resumed = snapshot(models[0]), snapshot(models[1])
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


class WorseAndWorse(BaseEvaluator):
    """An evaluator for which the first epoch is the best, and which remembers the weights it saw."""

    def __init__(self):
        super().__init__()
        self.primary_metric, self.greater_is_better, self.seen = "score", True, []

    def __call__(self, model, *args, **kwargs):
        self.seen.append(snapshot(model))
        return {"score": -float(len(self.seen))}


@pytest.mark.parametrize("way", ALL_WAYS)
def test_the_best_checkpoint_is_really_loaded(folders, data, tmp_path, way):
    model, evaluator = load(folders, way), WorseAndWorse()
    options = {"dropout": 0.0, "disable_tqdm": True, "use_cpu": True, "eval_on_start": False, "learning_rate": 3e-3}
    args = TuningArguments(str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, **options)
    trainer = EmbeddingTrainer(model, args, train_dataset=data.pairs("train", with_ids=True), evaluator=evaluator)
    trainer.train()
    first, last = evaluator.seen
    kept = snapshot(model)
    assert all(torch.equal(kept[name], first[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    plain = SentenceTransformer(trainer.state.best_model_checkpoint, device="cpu")
    assert same_vectors(model, plain) < 1e-6


@pytest.mark.parametrize("way", ALL_WAYS)
def test_saving_merges_and_leaves_the_model_in_training(folders, tmp_path, way):
    model = load(folders, way)
    randomize(model, 1, only="lora_", scale=0.05)
    before, trained = snapshot(model), [name for name, p in model.named_parameters() if p.requires_grad]
    vectors = model.encode_query(TEXTS)
    model.save_pretrained(str(tmp_path))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    assert abs(model.encode_query(TEXTS) - vectors).max() == 0
    assert same_vectors(model, SentenceTransformer(str(tmp_path), device="cpu")) < 1e-6


@pytest.mark.parametrize("way", [way for way in WAYS if way != "jina-full"])
def test_the_adapters_beside_a_saved_model_can_be_trained_on(folders, tmp_path, way):
    model = load(folders, way)
    randomize(model, 1, only="lora_")
    if way == "jina-lora":  # the frozen adapters are the repository's own
        model = load(folders, way)
        randomize(model, 1, only=".tuned.")
    model.save_pretrained(str(tmp_path))
    options = {name: value for name, value in WAYS[way].items() if name != "lora"}
    again = load_family(folders[way.partition("-")[0]], lora=tmp_path / "adapters", device="cpu", **options)
    again.max_seq_length = model.max_seq_length
    assert same_vectors(model, again) < 1e-6
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("way", ["gte-lora", "jina-adapters", "jina-full"])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_changes_nothing(folders, data, tmp_path, way):
    weights = []
    for checkpointing in (False, True):
        model = load(folders, way)
        trainer_for(
            model,
            data,
            tmp_path,
            max_steps=2,
            gradient_checkpointing=checkpointing,
            save_strategy="no",
            load_best_model_at_end=False,
            eval_strategy="no",
            eval_on_start=False,
        ).train()
        weights.append(snapshot(model))
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-5


def test_lora_true_adapts_every_linear_layer_of_the_blocks(folders):
    adapted = {}
    for way in ("bert-lora", "gte-lora"):
        names = [name for name, p in load(folders, way).named_parameters() if p.requires_grad and "lora_A" in name]
        adapted[way] = {name.split(".lora_A")[0].rpartition(".")[2] for name in names}
        assert not [name for name in names if "pooler" in name]
    assert adapted["bert-lora"] == {"query", "key", "value", "dense"}
    assert adapted["gte-lora"] == {f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")}


def test_a_lora_for_a_loaded_model_leaves_its_class_and_adds_what_saving_needs(tiny_model, tmp_path):
    model = load_model(tiny_model, lora=LoraConfig(r=2, target_modules=["query"]))
    assert isinstance(model, SentenceTransformer)
    randomize(model, 1, only="lora_")
    model.save_pretrained(str(tmp_path))
    assert same_vectors(model, SentenceTransformer(str(tmp_path), device="cpu")) < 1e-6


def test_a_lora_over_a_bfloat16_base_is_trained_in_float32_and_saved_in_bfloat16(folders, data, tmp_path):
    model = load(folders, "gte-lora", dtype="bfloat16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    trainer_for(model, data, tmp_path, max_steps=2, load_best_model_at_end=False).train()
    model.save_pretrained(str(tmp_path / "model"))
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert plain.dtype == torch.bfloat16
    assert same_vectors(model, plain) < 5e-2


def test_a_lora_is_merged_in_float32_and_rounded_once(folders, tmp_path):
    model = load(folders, "gte-lora", dtype="bfloat16")
    randomize(model, 1, only="lora_", scale=0.05)
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "model.safetensors")
    layers = [(name, layer) for name, layer in model[0].model.named_modules() if isinstance(layer, LoraLayer)]
    assert len(layers) > 10
    rounded_twice = []
    for name, layer in layers:
        weight, (down, up) = layer.get_base_layer().weight, (layer.lora_A["tuned"].weight, layer.lora_B["tuned"].weight)
        change = layer.scaling["tuned"] * (up.float() @ down.float())
        assert torch.equal(saved[f"{name}.weight"], (weight.float() + change).bfloat16()), name
        rounded_twice.append(torch.equal(weight + change.bfloat16(), (weight.float() + change).bfloat16()))
    assert not all(rounded_twice), "the test can tell the two apart"


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("way", ["gte-lora", "jina-adapters"])
def test_mixed_precision_and_gradient_checkpointing_leave_a_model_that_passes_its_checks(folders, data, tmp_path, way):
    model = load(folders, way)
    trainer = trainer_for(model, data, tmp_path, max_steps=2, bf16=True, gradient_checkpointing=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    for _ in range(2):
        check_model(model, folder=tmp_path / "model").raise_if_failed()
    assert "forward" in model.__dict__, "what accelerate put around the model is there again"


# What does not fit


def test_a_checkpoint_of_another_run_is_refused(folders, data, tmp_path):
    trainer_for(
        load(folders, "gte-lora"),
        data,
        tmp_path / "a",
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="no",
        load_best_model_at_end=False,
    ).train()
    model = load_model(folders["gte"], lora=LoraConfig(r=2, target_modules=["q_proj"]), device="cpu")
    with pytest.raises(ValueError, match=r"this model trains other ones \(4\).*same arguments \(lora="):
        trainer_for(model, data, tmp_path / "b").train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))


@pytest.mark.parametrize(
    ("lora", "error", "message"),
    [
        ("no/such/folder", FileNotFoundError, "the folder 'adapters' of a saved LoRA model"),
        (16, TypeError, "lora=16 must be True"),
        (LoraConfig(target_modules=["query"], modules_to_save=["pooler"]), ValueError, "cannot be merged"),
        (LoraConfig(target_modules=["query"], bias="all"), ValueError, "cannot be merged"),
    ],
)
def test_a_lora_that_cannot_be_added_is_refused(tiny_model_folder, lora, error, message):
    with pytest.raises(error, match=message):
        load_model(tiny_model_folder, lora=lora)


def test_an_absent_peft_is_named_with_the_command_that_installs_it(folders, monkeypatch):
    monkeypatch.setattr(lora_module, "find_spec", lambda name: None)
    for name, options in (("bert", {"lora": True}), ("jina", {})):
        with pytest.raises(OptionalDependencyError, match=r"pip install 'embedtune\[lora\]'"):
            load_family(folders[name], **options)


def test_a_run_without_a_lora_leaves_no_weights_of_an_earlier_one_in_its_folder(tiny_model, tmp_path):
    save_trained_weights(
        load_model(copy.deepcopy(tiny_model), lora=LoraConfig(r=2, target_modules=["query"])), tmp_path
    )
    assert (tmp_path / TRAINED_WEIGHTS).exists()
    save_trained_weights(tiny_model, tmp_path)
    assert not (tmp_path / TRAINED_WEIGHTS).exists()


def test_the_adapters_of_another_model_do_not_stay_in_the_folder_it_was_saved_in(folders, data, tmp_path):
    trainer_for(load(folders, "bert-lora"), data, tmp_path / "a").save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "adapters").exists()
    plain = load_model(folders["bert"], device="cpu")
    trainer_for(plain, data, tmp_path / "b").save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "adapters").exists()
    trainer_for(load(folders, "bert-lora"), data, tmp_path / "a").save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "adapters").exists()


# Kinds of LoRA, and other ways to add one

KINDS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "ranks": {"rank_pattern": {"query": 2}},
}


def few_steps(model, data, output, **options):
    settings = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "eval_on_start": False}
    trainer = trainer_for(model, data, output, max_steps=2, learning_rate=1e-2, **(settings | options))
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_kind_of_lora_is_saved_reloaded_and_resumed_whatever_the_seed(folders, data, tmp_path, kind):
    def make(seed):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules=["query", "value"], **KINDS[kind])
        return load_model(folders["bert"], device="cpu", lora=lora)

    base, model = load_model(folders["bert"], device="cpu"), make(1)
    trainer = few_steps(model, data, tmp_path, save_strategy="steps", save_steps=1)
    trainer.save_model(str(tmp_path / "model"))
    assert same_vectors(model, base) > 1e-4, "it learned something"
    assert same_vectors(model, SentenceTransformer(str(tmp_path / "model"), device="cpu")) < 1e-6
    torch.manual_seed(2)
    again = load_model(folders["bert"], device="cpu", lora=tmp_path / "model" / "adapters")
    assert same_vectors(model, again) < 1e-6
    resumed = make(2)
    options = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": False, "eval_strategy": "no"}
    other = trainer_for(resumed, data, tmp_path / "b", max_steps=2, learning_rate=1e-2, **options)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same_vectors(model, resumed) < 1e-6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base by chance or by data.*'pissa'"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "cannot be merged|by chance or by data"),
        ({"trainable_token_indices": [5, 6]}, "trainable_token_indices=.* cannot be merged"),
        ({"lora_bias": True}, "lora_bias=True cannot be merged.*leave out lora_bias"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_lora_that_could_not_be_saved_or_loaded_again_is_refused_at_the_start(
    tiny_model, data, tmp_path, setting, message
):
    lora = LoraConfig(r=2, target_modules=["query"], **setting)
    with pytest.raises(ValueError, match=message):
        load_model(copy.deepcopy(tiny_model), lora=lora)
    if "loftq_config" not in setting:
        tiny_model[0].model.add_adapter(lora)
        with pytest.raises(ValueError, match=message):
            trainer_for(tiny_model, data, tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # in peft
def test_adapters_of_another_kind_are_refused_at_the_start(tiny_model, data, tmp_path):
    tiny_model[0].model = get_peft_model(
        tiny_model[0].model, IA3Config(target_modules=["query"], feedforward_modules=[])
    )
    with pytest.raises(TypeError, match=r"must be True, a peft\.LoraConfig"):
        trainer_for(tiny_model, data, tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # in peft
@pytest.mark.parametrize("way", ["add_adapter", "get_peft_model"])
def test_adapters_added_in_the_libraries_own_ways_are_trained_merged_and_saved(tiny_model, data, tmp_path, way):
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
    base = copy.deepcopy(tiny_model)
    if way == "add_adapter":
        tiny_model.add_adapter(lora)
    else:
        tiny_model[0].model = get_peft_model(tiny_model[0].model, lora)
    trainer = few_steps(tiny_model, data, tmp_path, save_strategy="steps", save_steps=1)
    trainer.save_model(str(tmp_path / "model"))
    assert trainer.model is tiny_model
    assert same_vectors(tiny_model, base) > 1e-4
    plain = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert same_vectors(tiny_model, plain) < 1e-6
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert (tmp_path / "model" / "adapters" / "default" / "adapter_config.json").exists()


def test_modules_of_ones_own_are_refused_before_the_first_step_unless_the_check_is_off(tiny_model, data, tmp_path):
    class Doubled(Normalize):
        pass

    tiny_model.append(Doubled())
    with pytest.raises(ValueError, match=r"classes of its own \(test_lora\..*Doubled\).*check_saved=False"):
        trainer_for(tiny_model, data, tmp_path)
    trainer_for(tiny_model, data, tmp_path, check_saved=False)


# QLoRA


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lora": False}, ValueError, "dtype='nf4' is for the frozen base under a LoRA. Pass lora=True"),
        ({"lora": True}, ValueError, "needs an NVIDIA GPU, and PyTorch sees none here.*'bfloat16'"),
        ({"lora": True, "attention": "causal"}, ValueError, "needs an NVIDIA GPU"),
        ({"mode": "shared"}, ValueError, "does not apply to jina-embeddings-v3"),
    ],
)
def test_four_bits_are_refused_with_the_reason_before_anything_is_read(options, error, message):
    with pytest.raises(error, match=message):
        load_family("no-org/no-model", dtype="nf4", **options)


def test_four_bits_without_their_package_name_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(OptionalDependencyError, match=r"pip install 'embedtune\[qlora\]'"):
        load_model("no-org/no-model", dtype="nf4", lora=True)
    with pytest.raises(ValueError, match="device='cpu' was given"):
        load_model("no-org/no-model", dtype="nf4", lora=True, device="cpu")


@pytest.mark.parametrize("is_used", [False, True])
def test_a_lora_over_four_bits_is_saved_as_the_plain_weights_that_are_its_sum(tmp_path, monkeypatch, is_used):
    """The first forward pass on a CPU packs the weights anew, in a form of its own, and rounds their scales to bfloat16."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit

    monkeypatch.setattr(quantized, "_check_possible", lambda *_: None)
    gte_qwen2_repository(tmp_path / "gte", hidden_size=128, intermediate_size=128, num_key_value_heads=4)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])
    model = load_model(tmp_path / "gte", device="cpu", dtype="nf4", lora=lora, check=False)
    randomize(model, 1, only="lora_", scale=0.05)
    block = model[0].model.layers[1].self_attn
    base, plain = (
        dequantize_4bit(p.weight.data, p.weight.quant_state) for p in (block.q_proj.base_layer, block.k_proj)
    )
    change = 2 * block.q_proj.lora_B["tuned"].weight @ block.q_proj.lora_A["tuned"].weight
    if is_used:
        model.encode(["where is the pump"])
    model.save_pretrained(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, weight in (("q_proj", (base.float() + change).bfloat16()), ("k_proj", plain)):
        found = saved[f"layers.1.self_attn.{name}.weight"]
        assert torch.equal(found, weight) or (is_used and (found - weight).abs().max() < 0.02 * weight.abs().max())
    assert change.abs().max() > 0.01
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert not any("4bit" in type(module).__name__ for module in again.modules())
