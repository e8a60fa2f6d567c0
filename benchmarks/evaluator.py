"""TopKEvaluator compared with InformationRetrievalEvaluator of sentence-transformers on the same vectors: time and memory.

    python benchmarks/evaluator.py --chunks 1000000 --queries 1000

Each contender runs in its own process with one thread and reads its vectors from files. Reported are the processor time of the
evaluation without loading, and the growth of the process's anonymous memory: with ``mapped`` the corpus stays in its file, whose
pages the system may drop at any time and which are not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONTENDERS = ("sentence-transformers", "embedtune", "embedtune mapped")
KS = (1, 3, 5, 10)


def write_vectors(folder: Path, chunks: int, queries: int, dim: int) -> None:
    """Write unit vectors; each query is near one chunk."""
    rng = np.random.default_rng(0)
    corpus = np.lib.format.open_memmap(folder / "corpus.npy", mode="w+", dtype=np.float32, shape=(chunks, dim))
    for start in range(0, chunks, 50_000):
        rows = rng.standard_normal((min(50_000, chunks - start), dim), dtype=np.float32)
        corpus[start : start + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    relevant = rng.choice(chunks, size=queries, replace=False)
    noisy = corpus[relevant] + 0.22 * rng.standard_normal((queries, dim), dtype=np.float32)
    np.save(folder / "queries.npy", noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
    np.save(folder / "relevant.npy", relevant)


class Ready:
    """An encoder with precomputed vectors."""

    similarity_fn_name = "cosine"

    def __init__(self, folder: Path, *, mapped: bool) -> None:
        self.corpus = np.load(folder / "corpus.npy", mmap_mode="r" if mapped else None)
        self.queries = np.load(folder / "queries.npy")

    def encode_queries(self, _texts):
        return self.queries

    def encode_documents(self, _texts):
        return self.corpus


def private_memory() -> float:
    """Return the anonymous memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def run(contender: str, folder: Path) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    import embedtune as et

    torch.set_num_threads(1)
    ready = Ready(folder, mapped=contender.endswith("mapped"))
    relevant = np.load(folder / "relevant.npy").tolist()
    corpus = {f"c{i:09}": str(i) for i in range(len(ready.corpus))}
    queries = {f"q{i:09}": str(i) for i in range(len(relevant))}
    pairs = {f"q{i:09}": f"c{chunk:09}" for i, chunk in enumerate(relevant)}
    if contender == "sentence-transformers":
        options = {f"{name}_at_k": list(KS) for name in ("mrr", "ndcg", "accuracy", "precision_recall", "map")}
        vectors = torch.from_numpy(ready.corpus)

        class Model:
            similarity_fn_name = "cosine"
            similarity = staticmethod(
                lambda a, b: torch.nn.functional.normalize(a) @ torch.nn.functional.normalize(b).T
            )
            encode_query = staticmethod(lambda *_, **__: torch.from_numpy(ready.queries))

        evaluator = InformationRetrievalEvaluator(queries, corpus, {q: {c} for q, c in pairs.items()}, **options)
        evaluate = lambda: evaluator.compute_all_metrics(Model, corpus_embeddings=vectors)["cosine"]["ndcg@k"][10]  # noqa: E731
        evaluator.score_functions = {"cosine": Model.similarity}
    else:
        data = et.RetrievalDataset(
            Dataset.from_dict({"_id": list(corpus), "text": list(corpus.values())}),
            Dataset.from_dict({"_id": list(queries), "text": list(queries.values())}),
            {
                "test": Dataset.from_dict(
                    {"query-id": list(pairs), "corpus-id": list(pairs.values()), "score": [1] * len(pairs)}
                )
            },
        )
        ours = et.TopKEvaluator(data, k=KS)
        evaluate = lambda: ours.evaluate(ready).metrics["ndcg@10"]  # noqa: E731
    before, start = private_memory(), time.process_time()
    peak = Peak()
    ndcg = evaluate()
    seconds = time.process_time() - start
    return {"seconds": seconds, "grown": peak.stop() - before, "ndcg@10": ndcg}


class Peak:
    """Records the peak memory of this process."""

    def __init__(self) -> None:
        import threading

        self.highest, self.done = private_memory(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.done.wait(0.02):
            self.highest = max(self.highest, private_memory())

    def stop(self) -> float:
        self.done.set()
        self.thread.join()
        return self.highest


def main(chunks: int, queries: int, dim: int, repeats: int, only: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_vectors(Path(name), chunks, queries, dim)
        print(
            f"{chunks} chunks, {queries} questions, {dim} dimensions, 1 thread, {repeats} repeats: the fastest of each\n"
        )
        results: dict[str, list[dict]] = {}
        for _ in range(repeats):
            for contender in [c for c in CONTENDERS if only in c]:
                command = [sys.executable, __file__, "--child", contender, "--folder", name]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                results.setdefault(contender, []).append(json.loads(output.splitlines()[-1]))
    reference = min(r["seconds"] for r in next(iter(results.values())))
    for contender, runs in results.items():
        best = min(runs, key=lambda r: r["seconds"])
        print(
            f"{contender:<22} {best['seconds']:7.2f} s  {best['seconds'] / reference:5.2f}   {best['grown']:7.0f} MB more   "
            f"nDCG@10 {best['ndcg@10']:.6f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="substring of the names of the contenders to run")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(run(args.child, Path(args.folder))))
    else:
        main(args.chunks, args.queries, args.dim, args.repeats, args.only)
