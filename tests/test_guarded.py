"""What a run survives: NaN, signals, a full disk, and being resumed anywhere."""

from __future__ import annotations

import copy
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_repositories import gte_qwen2_repository, jina_hf_repository, load_family
from sentence_transformers import SentenceTransformer
from test_trainer import make_data
from torch import nn
from transformers import TrainerCallback

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.training.adapters import LOSS_WEIGHTS
from embedtune.training.arguments import TuningArguments
from embedtune.training.losses import InBatchNegativesLoss
from embedtune.training.resilience.checkpoints import complete_checkpoints, fault_of
from embedtune.training.resilience.lock import HOLDER_NAME, locked
from embedtune.training.trainer import EmbeddingTrainer


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def arguments(tmp_path):
    def make(folder="out", **options):
        settings = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "group_rows": False,
            "frozen_layers": 0.0,
            "learning_rate": 1e-3,
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_total_limit": None,
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return TuningArguments(str(tmp_path / folder), **(settings | options))

    return make


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal_bits(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


class AtStep(TrainerCallback):
    """Does something in the midst of a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.action()


# NaN and infinity


class Poisoned(InBatchNegativesLoss):
    """Gives a bad loss, or a bad gradient under a good loss, at one step."""

    def __init__(self, model, *, at, how):
        super().__init__(model)
        self.at, self.how, self.calls = at, how, 0

    def compute_loss_from_embeddings(self, embeddings, labels):
        self.calls += self.model.training
        loss = super().compute_loss_from_embeddings(embeddings, labels)
        if self.calls != self.at or not self.model.training:
            return loss
        if self.how == "gradient":
            zero = embeddings[0].sum() * 0
            return loss + (zero + 1e-30).sqrt() * 0 + zero.sqrt()  # sqrt'(0) is infinite
        return loss * float(self.how)


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_the_run_stops_at_the_very_step_with_the_weights_and_checkpoint_of_the_step_before(
    tiny_model, data, arguments, how
):
    loss = Poisoned(tiny_model, at=3, how=how)
    trainer = EmbeddingTrainer(tiny_model, arguments(), data=data, loss=loss)
    with pytest.raises(FloatingPointError, match=r"at step 3: .*last good checkpoint: .*checkpoint-2\."):
        trainer.train()
    assert trainer.state.global_step == 2
    saved = SentenceTransformer(str(Path(trainer.args.output_dir, "checkpoint-2")), device="cpu")
    assert_equal_bits(weights(saved), weights(tiny_model))


def test_the_stock_filter_that_hides_such_losses_is_off(arguments):
    assert arguments().logging_nan_inf_filter is False


# Resuming


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_run_resumed_anywhere_ends_with_the_same_bits(tiny_model_folder, data, arguments, accumulation):
    """In the midst of an epoch, at its end, and with dropout, accumulation and the choice of the best checkpoint."""

    def run(folder, checkpoint=None):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        args = arguments(folder, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation)
        trainer = EmbeddingTrainer(model, args, data=data)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    straight = run("straight")
    steps = straight.state.max_steps
    assert steps >= 4
    for step in (1, steps // 2, steps // 2 + 1):
        resumed = run(f"from-{step}", f"{straight.args.output_dir}/checkpoint-{step}")
        assert_equal_bits(weights(straight.model), weights(resumed.model))
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
            files = [Path(t.args.output_dir, f"checkpoint-{steps}", name) for t in (straight, resumed)]
            assert files[0].read_bytes() == files[1].read_bytes(), name
        assert resumed.state.best_metric == straight.state.best_metric
        history = [[log for log in t.state.log_history if "eval_dev_ndcg@10" in log] for t in (straight, resumed)]
        assert [log["step"] for log in history[0]] == [log["step"] for log in history[1]], "not evaluated twice"


WAYS = {"gte-lora": {"lora": True}, "jina-adapters": {}, "jina-full": {"train": "full"}}


@pytest.mark.parametrize(
    "way", ["gte-lora", *(pytest.param(f"jina-{w}", marks=pytest.mark.slow) for w in ("adapters", "full"))]
)
def test_a_lora_and_tied_weights_are_resumed_with_the_same_bits(tmp_path, data, arguments, way):
    folder = tmp_path / way.partition("-")[0]
    (gte_qwen2_repository if folder.name == "gte" else jina_hf_repository)(folder)

    def run(name, checkpoint=None):
        torch.manual_seed(0)
        model = load_family(folder, device="cpu", max_seq_length=160, **WAYS[way])
        args = arguments(name, num_train_epochs=2, eval_strategy="no", load_best_model_at_end=False)
        EmbeddingTrainer(model, args, data=data).train(resume_from_checkpoint=checkpoint)
        return weights(model)

    straight = run("straight")
    per_epoch = len(complete_checkpoints(tmp_path / "straight")) // 2
    for step in (1, per_epoch):
        assert_equal_bits(straight, run(f"from-{step}", str(tmp_path / "straight" / f"checkpoint-{step}")))


def test_true_resumes_from_the_newest_complete_checkpoint(tiny_model, data, arguments):
    trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=3), data=data)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    steps = []
    again = EmbeddingTrainer(tiny_model, arguments(max_steps=4), data=data)
    again.add_callback(AtStep(3, lambda: steps.append(3)))
    again.train(resume_from_checkpoint=True)
    assert steps == [3], "it went on from step 2"
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"is not complete"):
        again.train(resume_from_checkpoint=str(folder / "checkpoint-4"))


def test_a_run_resumed_from_its_last_step_ends_as_it_did(tiny_model_folder, data, arguments):
    """In the midst of an epoch, where going on would train one step more."""

    def run(checkpoint=None):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        args = arguments(max_steps=3, per_device_train_batch_size=4, lr_scheduler_type="constant")
        trainer = EmbeddingTrainer(model, args, data=data)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    straight = run()
    assert straight.state.epoch % 1 != 0
    resumed = run(True)
    assert resumed.state.global_step == 3
    assert_equal_bits(weights(straight.model), weights(resumed.model))
    assert resumed.state.best_metric == straight.state.best_metric


def test_a_signal_at_the_last_step_lets_the_evaluation_at_the_end_come_first(tiny_model, data, arguments):
    args = arguments(max_steps=3, per_device_train_batch_size=4, save_strategy="epoch", eval_strategy="epoch")
    trainer = EmbeddingTrainer(tiny_model, args, data=data)
    trainer.add_callback(AtStep(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.state.epoch % 1 != 0
    assert [log["step"] for log in trainer.state.log_history if "eval_dev_ndcg@10" in log] == [0, 3]


class Tempered(InBatchNegativesLoss):
    """Learns its temperature, and counts its batches."""

    def __init__(self, model):
        super().__init__(model)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("batches", torch.tensor(0))
        self.register_buffer("of_this_run", torch.zeros(100), persistent=False)

    def compute_loss_from_embeddings(self, embeddings, labels):
        self.batches += 1
        return super().compute_loss_from_embeddings(embeddings, labels) * self.temperature


def test_the_weights_of_a_loss_are_resumed(tiny_model_folder, data, arguments):
    def run(folder, checkpoint=None, loss=Tempered):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        args = arguments(folder, max_steps=4, eval_strategy="no", load_best_model_at_end=False)
        trainer = EmbeddingTrainer(model, args, data=data, loss=loss)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    straight = run("straight")
    checkpoint = f"{straight.args.output_dir}/checkpoint-2"
    resumed = run("resumed", checkpoint)
    assert 0 < straight.loss.temperature != 1
    assert_equal_bits(weights(straight.loss), weights(resumed.loss))
    assert resumed.loss.batches == straight.loss.batches == 4
    assert (Path(checkpoint) / LOSS_WEIGHTS).stat().st_size < 1000, "neither the model nor what is not persistent"
    with pytest.raises(
        ValueError, match=r"checkpoint-2' has 2 tensors in loss.safetensors, but this loss has other ones \(0\)"
    ):
        run("another", checkpoint, InBatchNegativesLoss)


@pytest.mark.slow
def test_persistent_workers_are_resumed_with_the_same_bits(tiny_model_folder, data, arguments):
    def run(folder, checkpoint=None):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        options = {"dropout": 0.1, "eval_strategy": "no", "load_best_model_at_end": False, "num_train_epochs": 3}
        workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
        trainer = EmbeddingTrainer(model, arguments(folder, **options, **workers), data=data)
        trainer.train(resume_from_checkpoint=checkpoint)
        return weights(model)

    straight = run("straight")
    steps = len(complete_checkpoints(Path(arguments("straight").output_dir)))
    for step in (1, steps // 3, steps // 3 + 1):
        assert_equal_bits(straight, run(f"from-{step}", f"{arguments('straight').output_dir}/checkpoint-{step}"))


# Two trainings in one folder


def test_a_second_training_in_the_same_folder_is_refused_and_the_holder_is_named(tiny_model, data, arguments):
    refused = []

    def start_another():
        with pytest.raises(RuntimeError, match=rf"in use by another training: process {os.getpid()} on .*, since 2"):
            EmbeddingTrainer(copy.deepcopy(tiny_model), arguments(max_steps=1), data=data).train()
        EmbeddingTrainer(copy.deepcopy(tiny_model), arguments("other", max_steps=1), data=data).train()
        refused.append(True)

    trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=1), data=data)
    trainer.add_callback(AtStep(1, start_another))
    trainer.train()
    assert refused
    assert sorted(path.name for path in Path(trainer.args.output_dir).iterdir()) == ["checkpoint-1", "eval"]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    program = (
        "import os, sys\nfrom embedtune.training.resilience.lock import locked\n"
        "with locked(sys.argv[1], writes=True): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / HOLDER_NAME).exists()
    with locked(tmp_path, writes=True):
        assert f"process {os.getpid()} " in (tmp_path / HOLDER_NAME).read_text()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step_if_checkpoints_are_wanted(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"No checkpoint can be written \(Not a directory\).*file/out'"),
        locked(tmp_path / "file" / "out", writes=True),
    ):
        pass
    with locked(tmp_path / "file" / "out", writes=False):
        pass


# Signals


@pytest.mark.parametrize(
    ("number", "error", "where"),
    [("SIGINT", KeyboardInterrupt, "within an epoch"), ("SIGTERM", SystemExit, "at the end of an epoch")],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    tiny_model_folder, data, arguments, number, error, where
):
    def trainer_in(folder):
        torch.manual_seed(0)
        model = SentenceTransformer(str(tiny_model_folder), device="cpu")
        strategies = {"save_strategy": "epoch", "eval_strategy": "epoch", "save_total_limit": 2}
        return EmbeddingTrainer(model, arguments(folder, per_device_train_batch_size=4, **strategies), data=data)

    straight = trainer_in("straight")
    straight.train()
    step = straight.state.max_steps // 2 - (where == "within an epoch")

    stopped = trainer_in("stopped")
    stopped.add_callback(AtStep(step, lambda: os.kill(os.getpid(), signal.Signals[number])))
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(error) as caught:
        stopped.train()
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    if error is SystemExit:
        assert caught.value.code == 143
    folder = Path(stopped.args.output_dir)
    assert complete_checkpoints(folder)[0].name == f"checkpoint-{step}"
    assert not (folder / "modules.json").exists()

    resumed = trainer_in("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert_equal_bits(weights(straight.model), weights(resumed.model))
    assert resumed.state.best_metric == straight.state.best_metric
    evaluated = [[log["step"] for log in t.state.log_history if "eval_dev_ndcg@10" in log] for t in (straight, resumed)]
    assert evaluated[0] == evaluated[1]


def test_a_handler_of_the_users_own_is_left_alone(tiny_model, data, arguments):
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda *_: heard.append("mine"))
    try:
        trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=2), data=data)
        trainer.add_callback(AtStep(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert trainer.train().global_step == 2
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert heard == ["mine"]


PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from sentence_transformers import SentenceTransformer
from test_guarded import AtStep
from test_trainer import make_data
from embedtune.training.adapters import LOSS_WEIGHTS
from embedtune.training.arguments import TuningArguments
from embedtune.training.trainer import EmbeddingTrainer

model = SentenceTransformer(sys.argv[2], device="cpu")
args = TuningArguments(sys.argv[3], per_device_train_batch_size=4, disable_tqdm=True, use_cpu=True)
trainer = EmbeddingTrainer(model, args, data=make_data())
trainer.add_callback(AtStep(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
trainer.train()
trainer.save_model(sys.argv[3] + "/final")
"""


def test_a_program_that_is_told_to_end_exits_non_zero_without_a_final_model(tiny_model_folder, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tiny_model_folder), str(tmp_path / "out")]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 143, result.stderr
    assert "Stopped at step 2 of" in result.stderr
    assert [path.name for path in complete_checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    assert not (tmp_path / "out" / "final").exists()


# A full disk


@pytest.fixture
def full_disk():
    """A function after which every file larger than so many bytes fails to be written, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("written", ["the model", "the optimiser"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_half(tiny_model, data, arguments, full_disk, written):
    args = arguments(
        eval_strategy="no",
        eval_on_start=False,
        load_best_model_at_end=False,
        save_total_limit=1,
        max_steps=4,
        frozen_layers=0.0,
    )
    trainer = EmbeddingTrainer(tiny_model, args, data=data)
    size = sum(p.numel() * 4 for p in tiny_model.parameters())
    trainer.add_callback(AtStep(2, lambda: full_disk(size // 2 if written == "the model" else int(size * 1.5))))
    words = r"File too large|unexpected pos"  # safetensors' and torch.save's
    with pytest.raises(
        OSError, match=rf"checkpoint-2 could not be written \(.*({words}).*last complete one: .*checkpoint-1"
    ):
        trainer.train()
    full_disk(resource.RLIM_INFINITY)
    folder = Path(args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1"]
    assert fault_of(folder / "checkpoint-1") is None
    again = EmbeddingTrainer(tiny_model, args, data=data)
    assert again.train(resume_from_checkpoint=True).global_step == 4


def test_a_full_disk_leaves_the_model_that_was_saved_before(tiny_model, data, arguments, full_disk, tmp_path):
    trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=1), data=data)
    trainer.save_model(str(tmp_path / "model"))
    (tmp_path / "model" / "notes.txt").write_text("mine")
    before = tiny_model.encode("open the pump")
    trainer.train()
    full_disk(20_000)
    with pytest.raises(Exception, match="File too large"):
        trainer.save_model(str(tmp_path / "model"))
    full_disk(resource.RLIM_INFINITY)
    assert (SentenceTransformer(str(tmp_path / "model"), device="cpu").encode("open the pump") == before).all()
    trainer.save_model(str(tmp_path / "model"))
    saved = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert abs(saved.encode("open the pump") - tiny_model.encode("open the pump")).max() < 1e-6
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert not list((tmp_path / "model").glob(".new-*"))
    assert ".new-" not in (tmp_path / "model" / "README.md").read_text()


def test_saving_into_the_folder_of_the_run_keeps_its_checkpoints(tiny_model, data, arguments):
    trainer = EmbeddingTrainer(tiny_model, arguments(max_steps=1), data=data)
    trainer.train()
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert fault_of(folder / "checkpoint-1") is None
    assert SentenceTransformer(str(folder), device="cpu").encode("pump").shape == (32,)


@pytest.mark.parametrize("limit", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_rotation_never_deletes_the_best_nor_the_last(tiny_model, data, arguments, limit):
    class Worse(TopKEvaluator):
        """Each evaluation is worse than the one before."""

        calls = 0

        def __call__(self, *args, **kwargs):
            self.calls += 1
            return super().__call__(*args, **kwargs) | {self.primary_metric: 1 / self.calls}

    args = arguments(max_steps=4, save_total_limit=limit, load_best_model_at_end=True)
    trainer = EmbeddingTrainer(tiny_model, args, data=data, evaluator=Worse(data, "dev", k=(10,)))
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append({path.name for path in complete_checkpoints(args.output_dir)})

    trainer.add_callback(Look())
    trainer.train()
    assert seen == [{"checkpoint-1"}, *({"checkpoint-1", f"checkpoint-{n}"} for n in (2, 3, 4))]


# Precision


@pytest.mark.parametrize("what", ["train", "evaluate"])
def test_after_bf16_the_model_encodes_in_float32_again(tiny_model, data, arguments, what):
    args = arguments(max_steps=2, bf16=True, load_best_model_at_end=False)
    rows = data.pairs("train", with_ids=True)
    trainer = EmbeddingTrainer(tiny_model, args, data=data, eval_dataset=rows)
    getattr(trainer, what)()
    expected = SentenceTransformer(modules=list(copy.deepcopy(tiny_model).children()), device="cpu")
    assert (tiny_model.encode("open the pump") == expected.encode("open the pump")).all()
    copied = copy.deepcopy(tiny_model)
    nn.init.zeros_(next(iter(copied.parameters())))
    assert not (copied.encode("open the pump") == tiny_model.encode("open the pump")).all(), (
        "a copy uses its own weights"
    )


def test_a_second_run_of_a_bf16_trainer_is_in_bf16_again(tiny_model, data, arguments):
    seen = []

    class Watch(InBatchNegativesLoss):
        def compute_loss_from_embeddings(self, embeddings, labels):
            seen.append(self.model[0].model.encoder.layer[0].output.dense.weight.dtype)
            return super().compute_loss_from_embeddings(embeddings, labels)

    args = arguments(max_steps=1, bf16=True, load_best_model_at_end=False, save_strategy="no", eval_strategy="no")
    trainer = EmbeddingTrainer(tiny_model, args, data=data, loss=Watch(tiny_model))
    dtypes = []
    tiny_model[0].model.encoder.layer[0].output.dense.register_forward_hook(lambda m, i, o: dtypes.append(o.dtype))
    trainer.train()
    tiny_model.encode("open the pump")
    trainer.train()
    assert dtypes[0] == dtypes[-1] == torch.bfloat16
    assert torch.float32 in dtypes
    assert set(seen) == {torch.float32}, "the weights themselves stay in float32"


def test_weights_of_16_bits_are_warned_of_because_small_steps_are_lost_on_them(tiny_model, data, arguments, caplog):
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = copy.deepcopy(tiny_model).to(dtype)
        before = weights(model)
        args = arguments(
            max_steps=1,
            bf16=True,
            learning_rate=1e-6,
            warmup_steps=0,
            load_best_model_at_end=False,
            save_strategy="no",
            eval_strategy="no",
        )
        caplog.clear()
        EmbeddingTrainer(model, args, data=data).train()
        changed = sum(int((parameter != before[name]).sum()) for name, parameter in weights(model).items())
        moved[dtype] = changed / sum(parameter.numel() for parameter in before.values())
        assert ("small steps are rounded away" in caplog.text) == (dtype == torch.bfloat16)
    assert moved[torch.bfloat16] < moved[torch.float32] / 5
