"""Memory of training: estimate_memory compared with the measured memory, and estimates for full-size models.

    python benchmarks/memory.py                                   # MiniLM, and the estimates for full-size models
    python benchmarks/memory.py --part full-size                  # also trains those that fit for two steps: minutes per step
    python benchmarks/memory.py --part full-size --device cuda

On a CPU, the measured figure is the growth of the process's resident memory from before the model is loaded to the peak. Each run has a
process of its own, in which the allocator frees large blocks at once. On a GPU, it is PyTorch's peak allocation. The full-size models
have their published shapes and random weights, so nothing is downloaded.
"""

import argparse
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

MINILM = {
    "fp32": {},
    "fp32, dropout 0": {"dropout": 0.0},
    "fp32, gradient checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "fp32, LoRA": {"lora": True},
}
FULL_SIZE = {
    "gte-Qwen2-1.5B, all weights, fp32": (GTE_QWEN2, {}, {}),
    "gte-Qwen2-1.5B, all weights, bf16, checkpointing": (GTE_QWEN2, {}, {"bf16": True, "gradient_checkpointing": True}),
    "gte-Qwen2-1.5B, all weights, bf16, checkpointing, 8-bit AdamW": (
        GTE_QWEN2,
        {},
        {"bf16": True, "gradient_checkpointing": True, "optim": "paged_adamw_8bit"},
    ),
    "gte-Qwen2-1.5B, all weights, bf16, checkpointing, SGD": (
        GTE_QWEN2,
        {},
        {"bf16": True, "gradient_checkpointing": True, "optim": "sgd"},
    ),
    "gte-Qwen2-1.5B, LoRA, bf16": (GTE_QWEN2, {"lora": True}, {"bf16": True}),
    "gte-Qwen2-1.5B, LoRA, bf16, checkpointing": (
        GTE_QWEN2,
        {"lora": True},
        {"bf16": True, "gradient_checkpointing": True},
    ),
    "gte-Qwen2-1.5B, LoRA on bfloat16, checkpointing": (
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
    "jina-embeddings-v3, LoRA on bfloat16, checkpointing": (
        JINA_V3,
        {"lora": True, "dtype": torch.bfloat16},
        {"bf16": True, "gradient_checkpointing": True},
    ),
}


def make_data(num_tokens: int, *, num_chunks: int = 64) -> et.RetrievalDataset:
    """Chunks and questions of words that are one token each."""
    pairs = [(f"{i} " + "the " * (num_tokens - 3), [f"{i} " + "of " * 13]) for i in range(10, 10 + num_chunks)]
    return et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)


def arguments(device: str, **options) -> et.TuningArguments:
    settings = {"per_device_train_batch_size": 16, "use_cpu": device == "cpu", "disable_tqdm": True, "max_steps": 3}
    settings |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
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


def measure(name: str, num_tokens: int, batch_size: int, device: str) -> int:
    """Train for some steps in this process, and return the bytes that it held at most."""
    before = psutil.Process().memory_info().rss
    if name in FULL_SIZE:
        torch.set_num_threads(os.cpu_count() or 1)
        config, model_options, options = FULL_SIZE[name]
        model = full_size(config, device=device, **model_options)
        options = options | {"per_device_train_batch_size": batch_size, "dropout": 0.0, "max_steps": 2}
    else:
        options = dict(MINILM[name])
        model = et.load_model("minilm", device="cpu", lora=options.pop("lora", None))
    EmbeddingTrainer(model, arguments(device, **options), data=make_data(num_tokens)).train()
    if device != "cpu":
        return torch.accelerator.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measured_elsewhere(name: str, num_tokens: int, batch_size: int, device: str) -> str:
    """Measure one line of a table, in a process of its own, and return gigabytes."""
    numbers = ["--tokens", str(num_tokens), "--batch-size", str(batch_size)]
    command = [sys.executable, __file__, "--measure", name, "--device", device, *numbers]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    return f"{int(run.stdout.splitlines()[-1]) / 1e9:.2f}" if run.returncode == 0 else run.stderr.splitlines()[-1]


def compare_minilm(num_tokens: int) -> None:
    print(f"MiniLM, chunks of {num_tokens} tokens, questions of 16, batch 16, on this CPU, in GB\n")
    print(f"{'':<64}{'estimated':>12}{'measured':>12}")
    for name, options in MINILM.items():
        args = arguments("cpu", **{key: value for key, value in options.items() if key != "lora"})
        model = et.load_model("minilm", device="cpu", lora=options.get("lora"))
        estimated = et.estimate_memory(model, args, data=make_data(num_tokens)).total
        print(f"{name:<64}{estimated / 1e9:>12.2f}{measured_elsewhere(name, num_tokens, 16, 'cpu'):>12}", flush=True)


def compare_full_size(num_tokens: int, batch_size: int, device: str, only: str, *, measured: bool) -> None:
    dropout = {"dropout": 0.0} if measured else {}
    for_device = device if measured else "cuda"
    print(
        f"\nFull size, for a {for_device}, chunks of {num_tokens} tokens, questions of 16, batch {batch_size}, in GB\n"
    )
    header = ("weights", "gradients", "optimizer", "activations", "total")
    print(f"{'':<64}" + "".join(f"{name:>12}" for name in (*header, *(["measured"] if measured else []))))
    available = psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info(device)[0]
    for name, (config, model_options, options) in FULL_SIZE.items():
        if only not in name:
            continue
        model = full_size(config, device="meta", **model_options)
        args = arguments("cpu", **(options | dropout | {"per_device_train_batch_size": batch_size}))
        estimate = et.estimate_memory(model, args, data=make_data(num_tokens), device=for_device)
        print(f"{name:<64}" + "".join(f"{getattr(estimate, part) / 1e9:>12.2f}" for part in header), end="", flush=True)
        if measured:
            fits = estimate.total < available
            print(f"{measured_elsewhere(name, num_tokens, batch_size, device) if fits else '-':>12}", end="")
        print(flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="of a chunk, for MiniLM")
    parser.add_argument("--chunk-tokens", type=int, default=800, help="of a chunk, for the full-size models")
    parser.add_argument("--batch-size", type=int, default=8, help="for the full-size models")
    parser.add_argument(
        "--part", choices=("minilm", "estimates", "full-size"), nargs="+", default=["minilm", "estimates"]
    )
    parser.add_argument("--device", default="cpu", help="on which the full-size models are trained")
    parser.add_argument("--only", default="", help="the full-size settings with this in their names")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
    torch.set_num_threads(1)
    if args.measure:
        print(measure(args.measure, args.tokens, args.batch_size, args.device))
        return
    if "minilm" in args.part:
        compare_minilm(args.tokens)
    for part in ("estimates", "full-size"):
        if part in args.part:
            measured = part == "full-size"
            compare_full_size(args.chunk_tokens, args.batch_size, args.device, args.only, measured=measured)


if __name__ == "__main__":
    main()
