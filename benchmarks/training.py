"""Training: embedtune, sentence-transformers' own trainer, and a hand-written loop, on the same rows with the same loss.

    python benchmarks/training.py                      # MiniLM on a CPU; all-MiniLM-L6-v2 comes with embedtune[minilm]
    python benchmarks/training.py --quick              # a tiny model, in about a minute
    python benchmarks/training.py --model gte-qwen2-1.5b --lora --device cuda      # full size, random weights
    python benchmarks/training.py --model jina-v3 --device cuda

Rows are triplets of a chunk, a question about it and a random other question, with the triplet margin loss. The contenders take
turns, and ratios are ratios of medians, because absolute times depend on the machine and its load. With one thread, times are CPU
times of the process, otherwise wall-clock times. The share of the peak counts each distinct token once, and compares with the
fastest matrix product of the same run. Peak memory is measured in a separate process per contender.
"""

import argparse
import itertools
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import torch
from datasets import Dataset, disable_progress_bars
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    JinaEmbeddingsV3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from embedtune import EmbeddingTrainer, TripletMarginLoss, TuningArguments, load_model
from embedtune.models.lora import add_lora
from embedtune.training.dropout import set_dropout

CONTENDERS = ("sentence-transformers", "hand-written loop", "embedtune")
WORDS = [f"w{i}" for i in range(3000)]
SIZES = {
    "tiny": BertConfig(
        vocab_size=3004, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    ),
    "minilm": None,
    "gte-qwen2-1.5b": Qwen2Config(
        vocab_size=151646,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        is_causal=False,
    ),
    "jina-v3": JinaEmbeddingsV3Config(),
}


# Data and models


def vocabulary(model):
    """Return words of one token each."""
    tokens = model.tokenizer.get_vocab()
    return (
        WORDS if WORDS[0] in tokens else sorted(t for t in tokens if t.isalpha() and t.isascii() and len(t) > 3)[:3000]
    )


def triplets(model, args, *, chunk_tokens, questions):
    """Return a table of rows in random order."""
    rng, words = random.Random(0), vocabulary(model)

    def text(tokens):
        return " ".join(rng.choices(words, k=tokens))

    rows = []
    num_chunks = max(2, -(-args.rows // (questions * args.negatives)))
    lengths = [round(chunk_tokens * rng.uniform(1 - args.spread, 1 + args.spread)) - 2 for _ in range(num_chunks)]
    chunks = [text(length) for length in lengths]
    asked = [[text(rng.randint(10, 18)) for _ in range(questions)] for _ in chunks]
    for i, chunk in enumerate(chunks):
        others = [question for j, group in enumerate(asked) if j != i for question in group]
        for question in asked[i]:
            negatives = (
                [text(14) for _ in range(args.negatives)] if questions == 1 else rng.choices(others, k=args.negatives)
            )
            rows += [(chunk, question, negative) for negative in negatives]
    rng.shuffle(rows)
    return Dataset.from_dict(
        dict(zip(("chunk", "question", "other_question"), map(list, zip(*rows, strict=True)), strict=True))
    )


def build_model(args):
    """Return the model to train: MiniLM, or a model of random weights."""
    torch.manual_seed(0)
    config = SIZES[args.model]
    if config is None:
        model = load_model("minilm", device=args.device, max_seq_length=512)
    else:
        model = random_model(config)
        if args.weights == "bf16":
            model.to(torch.bfloat16)
        model.to(args.device)
    if args.lora:
        add_lora(model, lora=True)
    set_dropout(model, args.dropout)
    return model


def random_model(config):
    """Return a SentenceTransformer of random weights, with a tokenizer of made-up words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    with tempfile.TemporaryDirectory() as folder:
        AutoModel.from_config(SIZES["tiny"]).save_pretrained(folder)
        fast.save_pretrained(folder)
        transformer = Transformer(folder, max_seq_length=config.max_position_embeddings)
    transformer.model = AutoModel.from_config(config)
    if getattr(transformer.model, "pooler", None) is not None:
        transformer.model.pooler = None
    pooling = Pooling(config.hidden_size, "lasttoken" if config.model_type == "qwen2" else "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")


# The contenders


class Stock(SentenceTransformerTrainer):
    """The stock trainer with the same arguments."""

    training_args_class = TuningArguments


class Contender:
    """Something that trains on a given number of rows."""

    def __init__(self, name, args, rows):
        self.name, self.model = name, build_model(args)
        self.batch_size = 1 if name == "hand-written loop" else args.batch_size
        settings = TuningArguments(
            tempfile.mkdtemp(),
            per_device_train_batch_size=self.batch_size,
            use_cpu=args.device == "cpu",
            bf16=(args.precision if name == "embedtune" else args.stock_precision or args.precision) == "bf16",
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            disable_tqdm=True,
            report_to="none",
            optim=args.optim,
            mini_batch_num_tokens=args.mini_batch_num_tokens if name == "embedtune" else None,
        )
        trainer = EmbeddingTrainer if name == "embedtune" else Stock
        loss = TripletMarginLoss(self.model)
        self.trainer = trainer(model=self.model, args=settings, train_dataset=rows, loss=loss)
        self.trainer.accelerator.prepare_model(self.model)  # adds autocast
        self.trainer.current_gradient_accumulation_steps = 1
        if args.gradient_checkpointing:
            self.model[0].model.activation_checkpointing_enable()
        self.trainer.create_optimizer()
        self.optimizer = self.trainer.optimizer
        self.accumulate = 8 if name == "hand-written loop" else 1
        if name == "hand-written loop":
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5)
        self.batches = itertools.chain.from_iterable(self.epochs())

    def epochs(self):
        loader = self.trainer.get_train_dataloader()
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield loader

    def run(self, num_rows):
        """Train on ``num_rows`` rows and return the seconds."""
        self.model.train()
        clock = (
            time.process_time if self.model.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        )
        start = clock()
        for number in range(1, -(-num_rows // self.batch_size) + 1):
            batch = self.trainer._prepare_inputs(next(self.batches))
            self.trainer.training_step(self.model, batch)
            if number % self.accumulate == 0:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize()
        return clock() - start


# What is measured


def useful_flops(model, rows, args):
    """Return floating-point operations per row if each distinct text is encoded once: 6 per weight and token, plus attention."""
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lora" not in name]
    weights = sum(m.weight.numel() for m in linear)
    config = model[0].model.config
    texts = {text for column in ("chunk", "question", "other_question") for text in rows[column]}
    lengths = [len(ids) for ids in model.tokenizer(sorted(texts), truncation=True)["input_ids"]]
    passes = 2 if args.lora else 3  # forward and, of a frozen layer, half of the backward pass
    attention = 4 * config.hidden_size * config.num_hidden_layers * sum(length**2 for length in lengths) * 3
    return (2 * passes * weights * sum(lengths) + attention) / len(rows)


def matmul_peak(args):
    """Return the operations per second of the fastest matrix product, in the precision of the run."""
    dtype = torch.bfloat16 if "bf16" in (args.precision, args.weights) else torch.float32
    size = 512 if args.quick else 2048 if args.device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=args.device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        start = time.process_time() if args.device == "cpu" and args.threads == 1 else time.perf_counter()
        _ = a @ b
        if args.device != "cpu":
            torch.accelerator.synchronize()
        end = time.process_time() if args.device == "cpu" and args.threads == 1 else time.perf_counter()
        best = max(best, 2 * size**3 / (end - start))
    return best


def peak_memory(name, cell):
    """Return the peak memory of a separate process with a model, its optimizer and some batches."""
    command = [sys.executable, __file__, "--memory-of", name, "--cell", json.dumps(cell), *sys.argv[1:]]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    if output.returncode:
        return "out of memory" if "OutOfMemory" in output.stderr else "failed"
    return f"{float(output.stdout.split()[-1]):.0f} MB"


def most_memory():
    """Return the peak memory of this process in megabytes; ``getrusage`` would include the parent process."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure_memory(args):
    cell = json.loads(args.cell)
    model = build_model(args)
    rows = triplets(model, args, **cell)
    del model
    contender = Contender(args.memory_of, args, rows)
    contender.run(2 * args.batch_size)
    if args.device == "cpu":
        print(most_memory())
    else:
        print(torch.accelerator.max_memory_allocated() / 2**20)


def measure(args, cell):
    rows = triplets(build_model(args), args, **cell)
    contenders = [Contender(name, args, rows) for name in CONTENDERS if name not in args.without]
    speeds = {contender.name: [] for contender in contenders}
    peaks = []
    for contender in contenders:
        contender.run(args.batch_size)  # warm
    for repeat in range(args.repeats):
        peaks.append(matmul_peak(args))
        for contender in contenders[:: 1 if repeat % 2 else -1]:
            speeds[contender.name].append(len(rows) / contender.run(len(rows)))
    flops = useful_flops(contenders[0].model, rows, args)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, speed in medians.items():
        ratio = speed / medians.get("sentence-transformers", speed)
        memory = peak_memory(name, cell) if args.memory else "-"
        share = speed * flops / max(peaks)
        label = f"{cell['questions']} x {args.negatives} | {cell['chunk_tokens']} | {name}"
        print(f"| {label} | {speed:.2f} | {ratio:.2f} | {share:.0%} | {memory} |", flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="minilm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 2, 5], help="per chunk")
    parser.add_argument("--chunk-tokens", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--spread", type=float, default=0.2, help="relative spread of chunk lengths")
    parser.add_argument("--negatives", type=int, default=1, help="per question; the article has 5")
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--rows", type=int, default=80, help="rows per contender and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--stock-precision", choices=("fp32", "bf16"), help="precision of the other contenders, if different"
    )
    parser.add_argument("--weights", choices=("fp32", "bf16"), default="fp32", help="of random models")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument(
        "--optim", default="adamw_torch_fused", help="optimizer of the trainers, such as paged_adamw_8bit"
    )
    parser.add_argument("--mini-batch-num-tokens", type=int, default=None, help="cache gradients (embedtune only)")
    parser.add_argument("--without", nargs="*", default=[], choices=CONTENDERS)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rows")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.model, args.questions, args.chunk_tokens = "tiny", [1, 5], [64]
        args.rows, args.batch_size, args.repeats, args.memory = 20, 10, 1, False
    return args


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    disable_progress_bars()
    warnings.filterwarnings("ignore")
    if args.memory_of:
        measure_memory(args)
        return
    print(
        f"{args.model} on {args.device}, {args.threads} threads, {args.precision}, dropout {args.dropout}, batches of {args.batch_size}"
    )
    print(f"{args.repeats} repeats of {args.rows} rows; matrix product {matmul_peak(args) / 1e9:.0f} GFLOP/s\n")
    print("| questions x negatives | tokens a chunk | | rows/s | ratio | share of the peak | peak memory |")
    print("|---|---|---|---|---|---|---|")
    for chunk_tokens, questions in itertools.product(args.chunk_tokens, args.questions):
        measure(args, {"chunk_tokens": chunk_tokens, "questions": questions})


if __name__ == "__main__":
    main()
