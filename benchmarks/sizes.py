"""How small the vectors of a tuned retriever may become, and what that costs in quality.

    python benchmarks/sizes.py FOLDER...

Each FOLDER is as for examples/benchmark_dataset.py. MiniLM with at most 256 tokens is tuned on all training questions, and all
test questions judge. Each row is the same retriever with other vectors: the chunks' are compressed by
sentence-transformers' quantize_embeddings, and a question's stay as they are (they take no room). "Binary, rescored" ranks by
binary vectors and then the first 50 by int8 ones. With fewer dimensions the first of both are taken, of unit length again. Words
count in the spread of similarities that the new vectors have. Printed is the difference of nDCG@10 from float32, with its 95% interval
and the verdict, for the whole retriever and for vectors alone; and the bytes of a chunk's vector.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import disable_progress_bars
from sentence_transformers.util import quantize_embeddings
from tuned_retriever import difference

import embedtune as et

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import read_dataset

DEPTH = 50


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def int8(vectors):
    start, step = vectors.min(axis=0), (vectors.max(axis=0) - vectors.min(axis=0)) / 255
    return unit((quantize_embeddings(vectors, "int8").astype(np.float32) + 128.5) * step + start)


def binary(vectors):
    return unit(np.where(vectors > 0, np.float32(1), np.float32(-1)))


class Shortened:
    """A retriever whose vectors have fewer dimensions."""

    def __init__(self, retriever, dim):
        self.retriever, self.dim = retriever, dim

    def rank(self, queries, _, k):
        index = self.retriever.index
        vectors = unit(self.retriever.encoder.encode_queries(queries)[:, : self.dim])
        return self.retriever.fusion.rank(index, queries, vectors, k)


class Rescored:
    """A retriever by small vectors, whose first hits are ranked again by one with larger ones."""

    def __init__(self, small, large):
        self.small, self.large = small, large

    def rank(self, queries, documents, k):
        first, _ = self.small.rank(queries, documents, max(k, DEPTH))
        positions, scores = self.large.rank(queries, documents, len(documents))
        kept = (positions[:, :, None] == first[:, None, :]).any(axis=2)
        best = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(positions, best, 1), np.take_along_axis(scores, best, 1)


def with_vectors(retriever, vectors, *, is_alone):
    index = replace(retriever.index, vectors=vectors)
    words = {"word_weight": 0.0} if is_alone else {"words": retriever.words}
    return et.Retriever(retriever.model, index, **words)


def variants(retriever, is_alone):
    vectors, dim = np.asarray(retriever.index.vectors), retriever.index.vectors.shape[1]

    def made(other):
        return with_vectors(retriever, other, is_alone=is_alone)

    yield "float32", 4 * dim, made(vectors)
    yield "float16", 2 * dim, made(unit(vectors.astype(np.float16).astype(np.float32)))
    yield "int8", dim, made(int8(vectors))
    yield "binary", dim // 8, made(binary(vectors))
    yield "binary, rescored by int8", dim // 8 + dim, Rescored(made(binary(vectors)), made(int8(vectors)))
    for fewer in (dim // 2, dim // 4, dim // 8):
        yield f"float32, {fewer} dimensions", 4 * fewer, Shortened(made(unit(vectors[:, :fewer])), fewer)
    yield f"int8, {dim // 2} dimensions", dim // 2, Shortened(made(int8(unit(vectors[:, : dim // 2]))), dim // 2)


def measure(folder):
    data = read_dataset(folder, dev_size=0)
    split = next(split for split in data.splits if split.startswith("test") and "unseen" in split)
    model = et.load_model("minilm", device="cpu", max_seq_length=256)
    args = et.TuningArguments(
        "unused", use_cpu=True, disable_tqdm=True, report_to=[], eval_strategy="no", save_strategy="no",
        logging_strategy="no", load_best_model_at_end=False, check_saved=False,
    )  # fmt: skip
    retriever = et.tune(model, data, output_dir=tempfile.mkdtemp(), args=args, test_split=split).retriever
    evaluator, rows = et.TopKEvaluator(data, split), {}
    for is_alone in (False, True):
        for name, size, one in variants(retriever, is_alone):
            result = evaluator.evaluate(one, name=name)
            rows.setdefault((name, size), []).append(result)
    first = next(iter(rows.values()))
    for (name, size), results in rows.items():
        cells = [folder.name, name, str(size)]
        for before, after in zip(first, results, strict=True):
            score = f"{100 * after.metrics['ndcg@10']:.1f}"
            cells += [score, "" if before is after else difference(before, after)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    print("| set | vectors | bytes | retriever: nDCG@10 | against float32 | vectors alone: nDCG@10 | against float32 |")
    print("|" + "---|" * 7)
    for folder in options.folders:
        measure(folder)
