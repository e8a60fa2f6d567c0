"""How long one question takes: exact search, a graph (FAISS) and hybrid search, over chunks with random vectors.

    python benchmarks/retriever.py --chunks 100000 --threads 1

Processor seconds of the search alone, without embedding the question; the median of twenty questions.
"""

import argparse
import statistics
import time

import numpy as np
import pyarrow
import torch

from embedtune.retrieval.fusion import by_both, by_vectors
from embedtune.retrieval.index import ChunkIndex


def random_index(num_chunks: int, dim: int) -> ChunkIndex:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((num_chunks, dim), dtype=np.float32)
    words = rng.zipf(1.3, size=(num_chunks, 60)) % 50_000
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    ids = [f"{i:09}#0" for i in range(num_chunks)]
    table = pyarrow.table({"_id": ids, "text": texts})
    return ChunkIndex(table, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), model_fingerprint="")


def main(chunks: int, dim: int, threads: int) -> None:
    torch.set_num_threads(threads)
    index = random_index(chunks, dim)
    questions = [f"w{i} w{7 * i} w{50 * i}" for i in range(1, 21)]
    vectors = random_index(20, dim).vectors
    contenders = {
        "exact": lambda i: by_vectors(index, vectors[i : i + 1], 10),
        "graph": lambda i: by_vectors(index, vectors[i : i + 1], 10, approximate=True),
        "hybrid": lambda i: by_both(index, vectors[i : i + 1], questions[i : i + 1], 10),
    }
    for name, search in contenders.items():
        start = time.process_time()
        search(0)
        first = time.process_time() - start
        times = []
        for i in range(20):
            start = time.process_time()
            search(i)
            times.append(time.process_time() - start)
        print(f"{name:<8} {1000 * statistics.median(times):8.1f} ms a question, {first:8.2f} s the first")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threads", type=int, default=1)
    main(**vars(parser.parse_args()))
