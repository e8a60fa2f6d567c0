"""The time of one question, by vectors, by words and by both, beside NumPy, bm25s and sentence-transformers.

    python benchmarks/retriever.py

Random unit vectors, and texts of 60 words whose frequencies follow Zipf's law. One thread. All contenders answer each question in
turn, in one process. Printed are medians of processor time, so that other programs on the machine disturb little, and ratios
to NumPy's matrix product and partition, the least that exact search takes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import bm25s
import numpy as np
import pyarrow
import torch
from sentence_transformers.util import semantic_search
from threadpoolctl import threadpool_limits

from embedtune.retrieval.fusion import Fusion
from embedtune.retrieval.index import ChunkIndex, table_of_texts
from embedtune.retrieval.parts import IndexParts
from embedtune.retrieval.words import K1, B, WordIndex, WordWeights

K, DEPTH, WORD_WEIGHT = 10, 100, 2.0
SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstvwz" for vowel in "aeiou"]


def vocabulary(size: int) -> np.ndarray:
    """Return words of one to five syllables, which share parts as those of a language do."""
    rng = np.random.default_rng(0)
    words: dict[str, None] = {}
    while len(words) < size:
        words["".join(rng.choice(SYLLABLES, size=rng.integers(1, 6)))] = None
    return np.array(list(words))


def make_texts(number: int, length: int, words: np.ndarray, *, seed: int) -> list[str]:
    frequencies = 1 / np.arange(1, len(words) + 1)
    rows = np.random.default_rng(seed).choice(words, size=(number, length), p=frequencies / frequencies.sum())
    return [" ".join(row) for row in rows]


def make_vectors(number: int, dim: int, *, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((number, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def timed(function: Callable[[], object]) -> tuple[float, object]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def product_and_partition(vector: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    scores = corpus @ vector
    best = np.argpartition(-scores, K)[:K]
    return best[np.argsort(-scores[best])]


def reciprocal_ranks(*rankings: list[int]) -> list[int]:
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, position in enumerate(ranking):
            scores[position] = scores.get(position, 0) + 1 / (60 + rank + 1)
    return sorted(scores, key=scores.__getitem__, reverse=True)[:K]


def build_bm25s(texts: list[str]) -> bm25s.BM25:
    index = bm25s.BM25(k1=K1, b=B, method="lucene")
    index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
    return index


def by_bm25s(index: bm25s.BM25, question: str, k: int) -> list[int]:
    tokens = bm25s.tokenize([question], stopwords=None, show_progress=False)
    return index.retrieve(tokens, k=k, show_progress=False)[0][0].tolist()


def measure(num_chunks: int, dim: int, num_questions: int, words: np.ndarray) -> None:
    texts, vectors = make_texts(num_chunks, 60, words, seed=1), make_vectors(num_chunks, dim, seed=2)
    questions, asked = make_texts(num_questions, 8, words, seed=3), make_vectors(num_questions, dim, seed=4)
    weights = WordWeights.learn(make_texts(500, 8, words, seed=5))
    index = ChunkIndex(table_of_texts(texts), vectors, model_fingerprint="")
    tensor = torch.from_numpy(vectors)

    built, index.__dict__["words"] = timed(lambda: WordIndex.build(texts))
    first, _ = timed(lambda: index.words.scores(questions[:1], weights))
    built_bm25s, lexical = timed(lambda: build_bm25s(texts))

    def by_ranks(i: int) -> list[int]:
        found = semantic_search(torch.from_numpy(asked[i : i + 1]), tensor, top_k=DEPTH)[0]
        return reciprocal_ranks([hit["corpus_id"] for hit in found], by_bm25s(lexical, questions[i], DEPTH))

    def by_fusion(fusion: Fusion, i: int) -> object:
        return fusion.rank(index, questions[i : i + 1], asked[i : i + 1], K)

    contenders: dict[str, Callable[[int], object]] = {
        "NumPy: product, argpartition": lambda i: product_and_partition(asked[i], vectors),
        "embedtune, vectors": lambda i: by_fusion(Fusion(0), i),
        "embedtune, vectors and words": lambda i: by_fusion(Fusion(WORD_WEIGHT, weights), i),
        "bm25s, words alone": lambda i: by_bm25s(lexical, questions[i], K),
        "semantic_search, bm25s, RRF": by_ranks,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for search in contenders.values():
        search(0)  # what each does once
    for i in range(num_questions):
        for name, search in contenders.items():
            times[name].append(timed(partial(search, i))[0])

    print(f"\n{num_chunks} chunks, {dim} dimensions, {num_questions} questions, 1 thread")
    medians = {name: 1000 * statistics.median(found) for name, found in times.items()}
    floor = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"  {name:<30} {median:8.2f} ms a question  {median / floor:6.2f}")

    new = pyarrow.concat_tables([table_of_texts(make_texts(1, 60, words, seed=6))]).set_column(0, "_id", [["new"]])
    fusion, before = Fusion(WORD_WEIGHT, weights), IndexParts.of(index)
    added, longer = timed(lambda: before.changed(set(), new, make_vectors(1, dim, seed=7)))
    again, _ = timed(lambda: fusion.rank_parts(longer, questions[:1], asked[:1], K))
    later = [
        timed(partial(fusion.rank_parts, longer, questions[i : i + 1], asked[i : i + 1], K))[0]
        for i in range(num_questions)
    ]
    memory = sum(array.nbytes for array in index.words.arrays().values()) / 1e6
    print(
        f"  build the words: {built:.1f} s (bm25s {built_bm25s:.1f} s), {memory:.0f} MB; first question {first:.2f} s"
    )
    print(
        f"  add one chunk: {1000 * added:.1f} ms; first question after it {1000 * again:.1f} ms, a later one "
        f"{1000 * statistics.median(later):.1f} ms"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--questions", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        known = vocabulary(50_000)
        for size in options.chunks:
            measure(size, options.dim, options.questions, known)
