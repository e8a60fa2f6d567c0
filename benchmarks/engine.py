"""What a retriever in Milvus finds of what the exact one finds, and how long it takes.

    python benchmarks/engine.py path/to/folder --chunks 100000 --questions 200

The folder has chunks.jsonl (text) and questions.jsonl (question, chunk_id). Its chunks are followed by more that are made of two
halves of two of them. Vectors are drawn in clusters, one for each five chunks, and a question's near that of its chunk. Words
count 20 times the spread of similarities, the default.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from embedtune.retrieval.engine import EngineParts
from embedtune.retrieval.engine_words import sparse_query
from embedtune.retrieval.fusion import Fusion
from embedtune.retrieval.index import ChunkIndex, table_of_texts
from embedtune.retrieval.tokens import hashed_tokens
from embedtune.retrieval.word_weight import DEFAULT_MULTIPLE, spread_of
from embedtune.retrieval.words import K1, B

DIM = 384


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def corpus(folder, num_chunks, num_questions, draw):
    chunks = read(folder / "chunks.jsonl")[:num_chunks]
    texts = [chunk["text"] for chunk in chunks]
    for first, second in draw.integers(len(chunks), size=(num_chunks - len(chunks), 2)):
        one, other = texts[first].split(" "), texts[second].split(" ")
        texts.append(" ".join([*one[: len(one) // 2], *other[len(other) // 2 :]]))
    centres = unit(draw.standard_normal((num_chunks // 5, DIM)))
    # A common direction and clusters, so that similarities spread as those of a model do.
    noise = unit(draw.standard_normal((num_chunks, DIM)))
    vectors = unit(0.4 * centres[:1] + 0.6 * centres[draw.integers(len(centres), size=num_chunks)] + 0.7 * noise)
    row_of = {chunk["chunk_id"]: row for row, chunk in enumerate(chunks)}
    asked = [(one["question"], np.ravel(one["chunk_id"])[0]) for one in read(folder / "questions.jsonl")]
    asked = [(question, row_of[chunk]) for question, chunk in asked if chunk in row_of]
    asked = [asked[row] for row in draw.permutation(len(asked))[:num_questions]]
    near = vectors[[row for _, row in asked]]
    return texts, vectors, [question for question, _ in asked], unit(near + unit(draw.standard_normal(near.shape)))


def named(index, ranking):
    return [[index.ids[position] for position in row if position >= 0] for row in ranking.positions]


def seconds(work):
    start, computed = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - start, time.process_time() - computed


def places(index, questions, asked, best):
    """How deep the best chunks of each question are in an exact ranking by vectors or by words, whichever is higher, from 0."""
    words, counts = index.words, index.words.counts.tocsc()
    lengths = words.lengths / words.statistics.mean_length
    found = []
    for question, vector, rows in zip(questions, asked, best, strict=True):
        tokens = np.unique(hashed_tokens(question, pairs=False))
        query, scores = sparse_query(tokens, words.statistics.idf(tokens)), np.zeros(len(index))
        for token in tokens:
            place = np.searchsorted(words.hashes, token)
            if (weight := query.get(int(token % np.uint64(2**32 - 1)))) and words.hashes[
                place % len(words.hashes)
            ] == token:
                some = counts[:, [place]]
                scores[some.indices] += weight * some.data / (some.data + K1 * (1 - B + B * lengths[some.indices]))
        by_words, by_vectors = (np.argsort(np.argsort(-one, kind="stable")) for one in (scores, index.vectors @ vector))
        found.append(np.minimum(by_words, by_vectors)[rows])
    return np.array(found)


def main(folder, num_chunks, num_questions, address, in_memory):
    texts, vectors, questions, asked = corpus(folder, num_chunks, num_questions, np.random.default_rng(0))
    index = ChunkIndex(table_of_texts(texts), vectors, "drawn by a benchmark")
    fusion = Fusion(DEFAULT_MULTIPLE * spread_of(index))
    index.words.prepare()
    exact, _, computed = seconds(
        lambda: [fusion.rank(index, [q], v[None], 10) for q, v in zip(questions, asked, strict=True)]
    )
    print(f"{num_chunks} chunks, {len(questions)} questions, words count {fusion.word_weight:.2f}")
    print(f"in memory: {computed / len(questions) * 1e3:.0f} ms of processor time a question", flush=True)
    deep = places(index, questions, asked, np.concatenate([one.positions for one in exact]))
    shares = ", ".join(f"{np.mean(deep < depth):.1%} ({depth})" for depth in (100, 200, 500, 1000))
    print(f"of the exact 10 best are among the first by vectors or by words: {shares}", flush=True)
    if in_memory:
        return
    parts = EngineParts.create(index, address, name="chunks", token="", num_words=len(index.words.hashes))
    lengths, mean_length = index.words.lengths, index.words.statistics.mean_length
    _, wall, computed = seconds(lambda: parts.write(index.chunks, index.vectors, lengths, mean_length=mean_length))
    print(f"written in {computed:.0f} s of processor time ({wall:.0f} s)", flush=True)
    _, wall, computed = seconds(lambda: parts.words.count(index.words.hashes, index.words.num_chunks_with))
    print(f"{len(index.words.hashes)} words counted in {computed:.0f} s ({wall:.0f} s)", flush=True)
    _, wall, computed = seconds(lambda: parts.client.flush("chunks"))
    print(f"indexed in {computed:.0f} s ({wall:.0f} s)", flush=True)
    parts.finish(len(index), int(lengths.sum()))
    _, wall, computed = seconds(lambda: list(parts.candidates(fusion, questions[:1], asked[:1], 10)))
    print(f"first question {computed:.1f} s ({wall:.0f} s)", flush=True)

    def ask(row):
        one = slice(row, row + 1)
        [(_, some)] = parts.candidates(fusion, questions[one], asked[one], 10)
        return named(some.main, fusion.rank_parts(some, questions[one], asked[one], 10))[0]

    found, wall, computed = seconds(lambda: [ask(row) for row in range(len(questions))])
    best = [named(index, one)[0] for one in exact]
    for k in (1, 10):
        recall = np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in zip(found, best, strict=True)])
        print(f"of the exact {k} best are found {recall:.1%}")
    print(
        f"the same 10 in the same order for {np.mean([a == b for a, b in zip(found, best, strict=True)]):.1%} of the questions"
    )
    print(
        f"in Milvus: {computed / len(questions) * 1e3:.0f} ms of processor time a question ({wall / len(questions) * 1e3:.0f} ms)"
    )
    print(
        f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB of memory, texts and exact index included"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--address", help="of a server; by default Milvus Lite, in a temporary folder")
    parser.add_argument("--in-memory", action="store_true", help="stop before anything is written")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        main(args.folder, args.chunks, args.questions, args.address or f"{place}/chunks.db", args.in_memory)
