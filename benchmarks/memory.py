"""Memory of training: estimate_memory against what a process takes on a CPU, and its estimates for full-size models.

    python benchmarks/memory.py

The measured figure is the growth of the process's resident memory from before the model is loaded to the peak, each run in a
process of its own, in which the allocator gives large blocks back at once. The full-size models have their published shapes and no weights, so nothing is downloaded.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings

import psutil
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModel, JinaEmbeddingsV3Config, Qwen2Config

import embedtune as et
from embedtune.training.trainer import EmbeddingTrainer

ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": "0"}  # of glibc

GTE_QWEN2 = Qwen2Config(
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
    vocab_size=151646,
    max_position_embeddings=131072,
)
JINA_V3 = JinaEmbeddingsV3Config()  # its defaults are the published shapes

MEASURED = {
    "fp32": {},
    "fp32, dropout 0": {"dropout": 0.0},
    "fp32, gradient checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "fp32, LoRA": {"lora": True},
}
ESTIMATED = {
    "gte-Qwen2-1.5B, all weights, fp32": (GTE_QWEN2, {}, {}),
    "gte-Qwen2-1.5B, all weights, bf16, checkpointing": (GTE_QWEN2, {}, {"bf16": True, "gradient_checkpointing": True}),
    "  the same, 8-bit AdamW": (
        GTE_QWEN2,
        {},
        {"bf16": True, "gradient_checkpointing": True, "optim": "paged_adamw_8bit"},
    ),
    "gte-Qwen2-1.5B, LoRA, bf16": (GTE_QWEN2, {"lora": True}, {"bf16": True}),
    "gte-Qwen2-1.5B, LoRA, bf16, checkpointing": (
        GTE_QWEN2,
        {"lora": True},
        {"bf16": True, "gradient_checkpointing": True},
    ),
    "  the same, base in bfloat16": (
        GTE_QWEN2,
        {"lora": True, "dtype": torch.bfloat16},
        {"bf16": True, "gradient_checkpointing": True},
    ),
    "jina-embeddings-v3, all weights, bf16, checkpointing": (
        JINA_V3,
        {},
        {"bf16": True, "gradient_checkpointing": True},
    ),
    "jina-embeddings-v3, LoRA, bf16, checkpointing": (
        JINA_V3,
        {"lora": True},
        {"bf16": True, "gradient_checkpointing": True},
    ),
    "  the same, its base in bfloat16": (
        JINA_V3,
        {"lora": True, "dtype": torch.bfloat16},
        {"bf16": True, "gradient_checkpointing": True},
    ),
}


def make_data(num_tokens: int, *, num_chunks: int = 64) -> et.RetrievalDataset:
    """Chunks and questions of words that are one token each."""
    pairs = [(f"{i} " + "the " * (num_tokens - 3), [f"{i} " + "of " * 13]) for i in range(10, 10 + num_chunks)]
    return et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)


def arguments(**options) -> et.TuningArguments:
    settings = {"per_device_train_batch_size": 16, "use_cpu": True, "disable_tqdm": True}
    settings |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 3}
    return et.TuningArguments(tempfile.mkdtemp(), **(settings | options))


def skeleton(config, *, lora: bool = False, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """A model of the given shape without weights, behind MiniLM's tokenizer."""
    model = et.load_model("minilm", device="cpu")
    with torch.device("meta"):
        model[0].model = AutoModel.from_config(config, dtype=dtype)
    modules = [model[0], Pooling(config.hidden_size, "mean")]
    model = SentenceTransformer(modules=modules, device="meta")
    model.max_seq_length = 8192
    return et.load_model(model, lora=lora)


def measure(options: dict, num_tokens: int) -> int:
    """Train in this process, and return by how much its memory grew at the peak."""
    data = make_data(num_tokens)
    process = psutil.Process()
    before = process.memory_info().rss
    model = et.load_model("minilm", device="cpu", lora=options.pop("lora", None))
    trainer = EmbeddingTrainer(model, arguments(**options), data=data)
    trainer.train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def compare_with_measurements(num_tokens: int) -> None:
    print(f"MiniLM, chunks of {num_tokens} tokens, questions of 16, batch 16, on this CPU\n")
    print(f"{'':<34}{'estimated':>12}{'measured':>12}{'ratio':>8}")
    for name, options in MEASURED.items():
        command = [sys.executable, __file__, "--measure", json.dumps(options), "--tokens", str(num_tokens)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout
        measured = int(output.splitlines()[-1])
        lora = options.get("lora")
        args = arguments(**{key: value for key, value in options.items() if key != "lora"})
        model = et.load_model("minilm", device="cpu", lora=lora)
        estimated = et.estimate_memory(model, args, data=make_data(num_tokens)).total
        row = f"{name:<34}{estimated / 1e9:>9.2f} GB{measured / 1e9:>9.2f} GB{estimated / measured:>8.2f}"
        print(row, flush=True)


def print_full_size(num_tokens: int, batch_size: int) -> None:
    print(f"\nEstimates for a GPU, chunks of {num_tokens} tokens, questions of 16, batch {batch_size}, in GB\n")
    header = ("weights", "gradients", "optimizer", "activations", "total")
    print(f"{'':<54}" + "".join(f"{name:>12}" for name in header))
    data = make_data(num_tokens)
    for name, (config, model_options, options) in ESTIMATED.items():
        model = skeleton(config, **model_options)
        args = arguments(**(options | {"per_device_train_batch_size": batch_size}))
        estimate = et.estimate_memory(model, args, data=data, device="cuda")
        sizes = "".join(f"{getattr(estimate, part) / 1e9:>12.2f}" for part in header)
        print(f"{name:<54}{sizes}", flush=True)


def main(tokens: int, chunk_tokens: int, batch_size: int, part: str, measure_options: str | None) -> None:
    torch.set_num_threads(1)
    if measure_options is not None:
        print(measure(json.loads(measure_options), tokens))
        return
    if part != "full-size":
        compare_with_measurements(tokens)
    if part != "measured":
        print_full_size(chunk_tokens, batch_size)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="of a chunk, for MiniLM")
    parser.add_argument("--chunk-tokens", type=int, default=800, help="of a chunk, for the full-size models")
    parser.add_argument("--batch-size", type=int, default=8, help="for the full-size models")
    parser.add_argument("--part", choices=("measured", "full-size", "both"), default="both")
    parser.add_argument("--measure", dest="measure_options", help=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
