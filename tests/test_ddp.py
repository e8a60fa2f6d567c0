"""Two processes train each of the models together, on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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
from test_trainer import make_data
from embedtune.models.load import load_model
from embedtune.training.arguments import TuningArguments
from embedtune.training.trainer import EmbeddingTrainer

data, moved = make_data(), {}
for name, options in json.loads(sys.argv[3]).items():
    torch.manual_seed(0)
    model = load_model(root / name.split("-")[0], max_seq_length=160, device="cpu", **options)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    args = TuningArguments(
        str(root / "out" / name), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True,
        ddp_backend="gloo", warmup_steps=0, save_strategy="steps", save_steps=3,
        eval_strategy="steps", eval_steps=3, load_best_model_at_end=True, disable_tqdm=True,
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

WAYS = {
    "gte": {},
    "gte-lora": {"lora": True},
    "jina-adapters": {},
    "jina-full": {"train": "full"},
    "jina-lora": {"train": "lora"},
    "jina-shared": {"mode": "shared"},
}


@pytest.mark.slow
def test_two_processes_train_each_model_to_the_same_weights(tmp_path):
    gte_qwen2_repository(tmp_path / "gte")
    jina_hf_repository(tmp_path / "jina")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    tests = os.path.dirname(__file__)  # noqa: PTH120
    command += [str(tmp_path / "program.py"), str(tmp_path), tests, json.dumps(WAYS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-8000:]
    lines = [line.partition("VECTORS ")[2] for line in result.stdout.splitlines() if "VECTORS " in line]
    vectors = {name: vector for line in lines for name, vector in json.loads(line).items()}
    assert vectors.keys() == WAYS.keys()
    for name, vector in vectors.items():
        plain = SentenceTransformer(str(tmp_path / "saved" / name), device="cpu")
        torch.testing.assert_close(
            torch.tensor(plain.encode_query(["open the pump"])), torch.tensor(vector), atol=1e-6, rtol=0
        )
