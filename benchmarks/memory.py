"""Memory of training: estimate_memory against what a process takes on a CPU, and its estimates for full-size models.

    python benchmarks/memory.py
    python benchmarks/memory.py --part full-size-measured  # 24 GB of memory, and minutes for a step

The measured figure is the growth of the process's resident memory from before the model is loaded to the peak, each run in a
process of its own, in which the allocator gives large blocks back at once. The full-size models have their published shapes and no weights, so nothing is downloaded.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable

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


FULL_SIZE_MEASURED = {
    "gte-Qwen2-1.5B, LoRA, bf16, checkpointing": ESTIMATED["gte-Qwen2-1.5B, LoRA, bf16, checkpointing"],
    "  the same, base in bfloat16": ESTIMATED["  the same, base in bfloat16"],
    "gte-Qwen2-1.5B, all weights, bf16, checkpointing, SGD": (
        GTE_QWEN2,
        {},
        {"bf16": True, "gradient_checkpointing": True, "optim": "sgd"},
    ),
    "jina-embeddings-v3, all weights, bf16, checkpointing": ESTIMATED[
        "jina-embeddings-v3, all weights, bf16, checkpointing"
    ],
    "jina-embeddings-v3, LoRA, bf16, checkpointing": ESTIMATED["jina-embeddings-v3, LoRA, bf16, checkpointing"],
}


def make_data(num_tokens: int, *, num_chunks: int = 64) -> et.RetrievalDataset:
    """Chunks and questions of words that are one token each."""
    pairs = [(f"{i} " + "the " * (num_tokens - 3), [f"{i} " + "of " * 13]) for i in range(10, 10 + num_chunks)]
    return et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)


def arguments(**options) -> et.TuningArguments:
    settings = {"per_device_train_batch_size": 16, "use_cpu": True, "disable_tqdm": True}
    settings |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False, "max_steps": 3}
    return et.TuningArguments(tempfile.mkdtemp(), **(settings | options))


def full_size(config, *, device: str, lora: bool = False, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """A model of the given shape with random weights, or on "meta" with none, behind MiniLM's tokenizer."""
    model = et.load_model("minilm", device="cpu")
    with torch.device(device):
        model[0].model = AutoModel.from_config(config, dtype=dtype)
    modules = [model[0], Pooling(config.hidden_size, "mean")]
    model = SentenceTransformer(modules=modules, device=device)
    model.max_seq_length = 8192
    return et.load_model(model, lora=lora)


def train_and_measure(make_model: Callable[[], SentenceTransformer], data: et.RetrievalDataset, options: dict) -> int:
    """Train for three steps in this process, and return by how much its memory grew at the peak."""
    before = psutil.Process().memory_info().rss
    EmbeddingTrainer(make_model(), arguments(**options), data=data).train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure(name: str, num_tokens: int, batch_size: int) -> int:
    """Measure one line of a table, in this process."""
    if name in FULL_SIZE_MEASURED:
        config, model_options, options = FULL_SIZE_MEASURED[name]
        options = options | {"per_device_train_batch_size": batch_size, "dropout": 0.0, "max_steps": 2}
        return train_and_measure(
            lambda: full_size(config, device="cpu", **model_options), make_data(num_tokens), options
        )
    options = dict(MEASURED[name])
    lora = options.pop("lora", None)
    return train_and_measure(lambda: et.load_model("minilm", device="cpu", lora=lora), make_data(num_tokens), options)


def measured_elsewhere(name: str, num_tokens: int, batch_size: int) -> int:
    """Measure one line of a table, in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        name,
        "--tokens",
        str(num_tokens),
        "--batch-size",
        str(batch_size),
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout
    return int(output.splitlines()[-1])


def print_comparison(name: str, estimated: int, measured: int) -> None:
    print(f"{name:<54}{estimated / 1e9:>9.2f} GB{measured / 1e9:>9.2f} GB{estimated / measured:>8.2f}", flush=True)


def compare_with_measurements(num_tokens: int) -> None:
    print(f"MiniLM, chunks of {num_tokens} tokens, questions of 16, batch 16, on this CPU\n")
    print(f"{'':<54}{'estimated':>12}{'measured':>12}{'ratio':>8}")
    for name, options in MEASURED.items():
        args = arguments(**{key: value for key, value in options.items() if key != "lora"})
        model = et.load_model("minilm", device="cpu", lora=options.get("lora"))
        estimated = et.estimate_memory(model, args, data=make_data(num_tokens)).total
        print_comparison(name, estimated, measured_elsewhere(name, num_tokens, 16))


def compare_full_size(num_tokens: int, batch_size: int, only: str) -> None:
    print(
        f"\nRandom weights, chunks of {num_tokens} tokens, questions of 16, batch {batch_size}, dropout 0, on this CPU\n"
    )
    print(f"{'':<54}{'estimated':>12}{'measured':>12}{'ratio':>8}")
    for name, (config, model_options, options) in FULL_SIZE_MEASURED.items():
        if only not in name:
            continue
        args = arguments(**(options | {"per_device_train_batch_size": batch_size, "dropout": 0.0}))
        model = full_size(config, device="meta", **model_options)
        estimated = et.estimate_memory(model, args, data=make_data(num_tokens), device="cpu").total
        print_comparison(name, estimated, measured_elsewhere(name, num_tokens, batch_size))


def print_full_size(num_tokens: int, batch_size: int) -> None:
    print(f"\nEstimates for a GPU, chunks of {num_tokens} tokens, questions of 16, batch {batch_size}, in GB\n")
    header = ("weights", "gradients", "optimizer", "activations", "total")
    print(f"{'':<54}" + "".join(f"{name:>12}" for name in header))
    data = make_data(num_tokens)
    for name, (config, model_options, options) in ESTIMATED.items():
        model = full_size(config, device="meta", **model_options)
        args = arguments(**(options | {"per_device_train_batch_size": batch_size}))
        estimate = et.estimate_memory(model, args, data=data, device="cuda")
        sizes = "".join(f"{getattr(estimate, part) / 1e9:>12.2f}" for part in header)
        print(f"{name:<54}{sizes}", flush=True)


def main(*, tokens: int, chunk_tokens: int, batch_size: int, part: str, only: str, measured_name: str | None) -> None:
    if measured_name is not None:
        torch.set_num_threads(os.cpu_count() if measured_name in FULL_SIZE_MEASURED else 1)
        print(measure(measured_name, tokens, batch_size))
        return
    torch.set_num_threads(1)
    if part in ("measured", "both"):
        compare_with_measurements(tokens)
    if part in ("full-size", "both"):
        print_full_size(chunk_tokens, batch_size)
    if part == "full-size-measured":
        compare_full_size(chunk_tokens, batch_size, only)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="of a chunk, for MiniLM")
    parser.add_argument("--chunk-tokens", type=int, default=800, help="of a chunk, for the full-size models")
    parser.add_argument("--batch-size", type=int, default=8, help="for the full-size models")
    parser.add_argument("--part", choices=("measured", "full-size", "both", "full-size-measured"), default="both")
    parser.add_argument("--only", default="", help="measure the full-size settings with this in their names")
    parser.add_argument("--measure", dest="measured_name", help=argparse.SUPPRESS)
    main(**vars(parser.parse_args()))
