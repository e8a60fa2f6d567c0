"""Two processes train together, on CPUs: the same as one process would, for every loss and model, and as orderly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_repositories import gte_qwen2_repository, jina_hf_repository
from sentence_transformers import SentenceTransformer

PROGRAM = """
import json, sys
from pathlib import Path
import torch
import torch.distributed as dist

root = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from model_repositories import load_family
from test_trainer import make_data
from embedtune.training.encode_once import trainer as encode_once_trainer
from embedtune.training.arguments import TuningArguments
from embedtune.training.trainer import EmbeddingTrainer

data, moved = make_data(), {}
for name, options in json.loads(sys.argv[3]).items():
    encode_once_trainer.tokens_per_pass = lambda *_: 20 if "passes" in name else None
    torch.manual_seed(0)
    model = load_family(root / name.split("-")[0], max_seq_length=160, device="cpu", **options)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    args = TuningArguments(
        str(root / "out" / name), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True,
        ddp_backend="gloo", warmup_steps=0, save_strategy="steps", save_steps=3,
        eval_strategy="steps", eval_steps=3, load_best_model_at_end=True, disable_tqdm=True, frozen_layers=0.0,
    )
    trainer = EmbeddingTrainer(model, args, data=data)
    assert dist.get_world_size() == 2
    trainer.train()
    trainer.save_model(str(root / "saved" / name))
    after = {n: p.detach() for n, p in model.named_parameters() if n in before}
    moved[name] = [n for n in after if not torch.equal(after[n], before[n])]
    mine = torch.cat([p.flatten() for p in after.values()])
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(*both), name
    assert len(moved[name]) == len(before), (name, set(before) - set(moved[name]))
    if dist.get_rank() == 0:
        vectors = {name: model.encode_query(["open the pump"]).tolist()}
        print("VECTORS", json.dumps(vectors))
dist.destroy_process_group()
"""

TESTS = Path(__file__).parent

WAYS = {
    "gte": {},
    "gte-lora": {"lora": True},
    "gte-passes": {},  # not as many in each process
    "jina-adapters": {},
    "jina-full": {"train": "full"},
    "jina-lora": {"train": "lora"},
    "jina-shared": {"mode": "shared"},
}


def launch(tmp_path, program, *arguments, **options):
    """Run a program in two processes, as ``torchrun --nproc_per_node=2`` does."""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    command += [str(tmp_path / "program.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path, timeout=600, **options
    )


@pytest.mark.slow
def test_two_processes_train_each_model_to_the_same_weights(tmp_path):
    gte_qwen2_repository(tmp_path / "gte")
    jina_hf_repository(tmp_path / "jina")
    result = launch(tmp_path, PROGRAM, tmp_path, TESTS, json.dumps(WAYS))
    assert result.returncode == 0, result.stderr[-8000:]
    lines = [line.partition("VECTORS ")[2] for line in result.stdout.splitlines() if "VECTORS " in line]
    vectors = {name: vector for line in lines for name, vector in json.loads(line).items()}
    assert vectors.keys() == WAYS.keys()
    for name, vector in vectors.items():
        plain = SentenceTransformer(str(tmp_path / "saved" / name), device="cpu")
        torch.testing.assert_close(
            torch.tensor(plain.encode_query(["open the pump"])), torch.tensor(vector), atol=1e-6, rtol=0
        )


OTHER_TRAININGS = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist

root = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from test_trainer import make_data
import embedtune as et

data = make_data()


def train(name, build):
    torch.manual_seed(0)
    model = et.load_model(root / "gte", max_seq_length=160, device="cpu")
    args = et.TuningArguments(
        str(root / "out" / name), num_train_epochs=3, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        ddp_backend="gloo", save_strategy="no", eval_strategy="epoch", load_best_model_at_end=False, disable_tqdm=True,
    )
    trainer = build(model, args)
    trainer.train()
    return trainer.model, trainer


def same_everywhere(values):
    both = [None, None]
    dist.all_gather_object(both, values)
    assert both[0] == both[1]
    return both[0]


def weights(model):
    return [p.detach().sum().item() for p in model.parameters() if p.requires_grad]


model, trainer = train("frozen", lambda model, args: et.FrozenIndexTrainer(et.freeze_index(model), args, data=data))
texts = data.corpus["text"]
same_everywhere(weights(model))
kept = model.encode_document(texts)
index = trainer.loss.index.encode_documents(texts)
assert abs(kept - index).max() < 1e-6
base = et.load_model(root / "gte", max_seq_length=160, device="cpu")
assert abs(kept - base.encode_document(texts)).max() < 1e-6
assert abs(model.encode_query(texts) - base.encode_query(texts)).max() > 1e-4
print("DONE")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_mine_the_same_negatives_again_and_train_the_query_side_alike(tmp_path):
    gte_qwen2_repository(tmp_path / "gte")
    result = launch(tmp_path, OTHER_TRAININGS, tmp_path, TESTS)
    assert result.returncode == 0, result.stderr[-8000:]
    assert result.stdout.count("DONE") == 2


# One loss and one gradient

GRADIENTS = """
import json, os
from datetime import timedelta
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from embedtune.training.losses import CosineEmbeddingLoss, InBatchNegativesLoss, TripletMarginLoss

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(6, 5)

    def forward(self, features):
        return {"sentence_embedding": torch.tanh(self.layer(features["x"]))}


torch.manual_seed(1)
columns = [torch.randn(8, 6) for _ in range(3)]
ids = torch.tensor([[0, 3], [1, 1], [2, 2], [3, 0], [4, 4], [0, 3], [6, 6], [7, 1]])  # rows 0, 3 and 5 answer each other
signs = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, 1])
losses = {
    "in-batch": (lambda m: InBatchNegativesLoss(m), 2, ids),
    "in-batch without ids": (lambda m: InBatchNegativesLoss(m), 2, None),
    "in-batch with negatives": (lambda m: InBatchNegativesLoss(m), 3, ids),
    "triplet": (lambda m: TripletMarginLoss(m), 3, None),
    "hardest triplet": (lambda m: TripletMarginLoss(m, negatives="hardest"), 2, ids),
    "cosine": (lambda m: CosineEmbeddingLoss(m), 2, signs),
    "hardest cosine": (lambda m: CosineEmbeddingLoss(m, negatives="hardest"), 2, ids),
}
mine = slice(rank * 4, rank * 4 + 4) if world > 1 else slice(None)
result = {}
for name, (make, width, labels) in losses.items():
    model = DistributedDataParallel(Model()) if world > 1 else Model()
    features = [{"x": column[mine]} for column in columns[:width]]
    loss = make(model)(features, None if labels is None else labels[mine])
    loss.backward()
    loss = loss.detach()
    if world > 1:
        dist.all_reduce(loss)
    result[name] = [loss.item() / world, *(p.grad.flatten().tolist() for p in model.parameters())]
if rank == 0:
    print("RESULT", json.dumps(result), flush=True)
if world > 1:
    dist.barrier()
os._exit(0)  # to take the process group down may wait for ever: one of its threads wants the lock of whoever waits for it
"""


def result_of(done):
    assert done.returncode == 0, done.stderr[-8000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def test_two_processes_have_the_loss_and_the_gradient_of_one_with_the_joint_batch(tmp_path):
    together = result_of(launch(tmp_path, GRADIENTS))
    command = [sys.executable, str(tmp_path / "program.py")]
    alone = result_of(subprocess.run(command, capture_output=True, text=True, check=False))
    assert len(together) == 7
    for name, values in together.items():
        for together_one, alone_one in zip(values, alone[name], strict=True):
            expected = torch.tensor(alone_one)
            error = (torch.tensor(together_one) - expected).norm()
            assert error <= 1e-5 * expected.norm(), (name, float(error))
        assert torch.tensor(values[1]).abs().max() > 1e-3, name


UNEVEN = """
import os
from datetime import timedelta
import torch
import torch.distributed as dist

from embedtune.training.losses import CosineEmbeddingLoss, TripletMarginLoss

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
# Question 0 is answered by both chunks, so it has no negative. Question 1 has chunk 0 as its negative.
labels = torch.tensor([[0, 1]] if rank == 0 else [[1, 1]])
for make in (CosineEmbeddingLoss, TripletMarginLoss):
    torch.manual_seed(rank)
    question, chunk = (torch.randn(1, 4, requires_grad=True) for _ in range(2))
    loss = make(torch.nn.Identity(), negatives="hardest").compute_loss_from_embeddings([question, chunk], labels)
    loss.backward()
    assert torch.isfinite(loss) and (loss == 0) == (rank == 0 and make is TripletMarginLoss)
    assert chunk.grad.abs().max() > 0, "it is the other question's negative, or its own question's positive"
    dist.barrier()
print("DONE", flush=True)
os._exit(0)
"""


def test_a_process_without_a_hardest_negative_takes_part_in_the_backward_pass_of_the_others(tmp_path):
    result = launch(tmp_path, UNEVEN)
    assert result.returncode == 0, result.stderr[-8000:]
    assert result.stdout.count("DONE") == 2


# Checkpoints and signals

INTERRUPTED = """
import os, signal, sys
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from sentence_transformers import SentenceTransformer
from test_guarded import AtStep
from test_trainer import make_data
from embedtune.training.arguments import TuningArguments
from embedtune.training.resilience.checkpoints import complete_checkpoints
from embedtune.training.trainer import EmbeddingTrainer


def trainer_in(folder):
    torch.manual_seed(0)
    model = SentenceTransformer(sys.argv[2], device="cpu")
    args = TuningArguments(
        folder, num_train_epochs=3, per_device_train_batch_size=2, learning_rate=1e-3, use_cpu=True, ddp_backend="gloo",
        disable_tqdm=True, save_total_limit=1,
    )
    return EmbeddingTrainer(model, args, data=make_data())


straight = trainer_in("straight")
straight.train()
stopped = trainer_in("stopped")
if dist.get_rank() == 1:  # the other process is not told
    stopped.add_callback(AtStep(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
try:
    stopped.train()
    raise AssertionError("not stopped")
except SystemExit as stop:
    assert stop.code == 143, stop.code
names = [path.name for path in complete_checkpoints("stopped")]
assert names[0] == "checkpoint-4", names
assert {f"rng_state_{rank}.pth" for rank in range(2)} <= {path.name for path in Path("stopped/checkpoint-4").iterdir()}
resumed = trainer_in("stopped")
resumed.train(resume_from_checkpoint=True)
for name, parameter in resumed.model.named_parameters():
    assert torch.equal(parameter, straight.model.get_parameter(name)), name
print("DONE", resumed.state.global_step, straight.state.global_step)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_one_step_and_the_run_goes_on_to_the_same_bits(
    tmp_path, tiny_model_folder
):
    result = launch(tmp_path, INTERRUPTED, TESTS, tiny_model_folder)
    assert result.returncode == 0, result.stderr[-8000:]
    assert result.stdout.count("DONE") == 2
