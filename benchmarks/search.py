"""Exact search: embedtune's top_k against sentence-transformers' semantic_search, on the same random unit vectors.

    python benchmarks/search.py --chunks 100000 --queries 1000 --threads 1

Both are timed in turn, and the ratio is that of the medians: absolute times depend on the machine and its load.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from sentence_transformers.util import semantic_search

from embedtune.retrieval.search import top_k


def unit_vectors(number: int, dim: int, *, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((number, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(chunks: int, queries: int, dim: int, k: int, threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    corpus, questions = unit_vectors(chunks, dim, seed=0), unit_vectors(queries, dim, seed=1)
    tensors = torch.from_numpy(questions), torch.from_numpy(corpus)
    contenders = {
        "embedtune top_k": lambda: top_k(questions, corpus, k),
        "semantic_search": lambda: semantic_search(*tensors, top_k=k),
        "matrix product alone": lambda: tensors[0] @ tensors[1].T,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            times[name].append(seconds(function))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{chunks} chunks, {queries} questions, {dim} dimensions, k = {k}, {threads} threads, {repeats} repeats\n")
    for name, median in medians.items():
        print(f"{name:<22} {median:8.3f} s   {median / medians['semantic_search']:.2f} of semantic_search")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    main(**vars(parser.parse_args()))
