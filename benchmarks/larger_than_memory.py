"""Exact search in a corpus that does not fit into memory: it stays in its file.

    python benchmarks/larger_than_memory.py --chunks 17000000 --queries 100 --limit-mb 300

Once its libraries are loaded, the searching process may not allocate more than the limit (RLIMIT_DATA); what it reads of the
file are pages that the system drops when it needs the room. Reported are the time, how much of it the processor computed, and
by how much the memory that the process holds itself grew. Every query is one of the chunks, so the best chunk is known.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from evaluator import Peak, private_memory

DIM = 384


def write_vectors(path: Path, chunks: int) -> None:
    corpus = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(chunks, DIM))
    rng = np.random.default_rng(0)
    some = rng.standard_normal((50_000, DIM), dtype=np.float32)
    for start in range(0, chunks, len(some)):
        # Drawing all of them would take longer than the search: other signs make other vectors.
        signs = rng.choice(np.array([-1, 1], dtype=np.float32), size=DIM)
        corpus[start : start + len(some)] = (some * signs)[: chunks - start]


def search(path: Path, queries: int, limit_mb: int) -> None:
    import torch

    from embedtune.retrieval.search import top_k

    torch.set_num_threads(1)
    corpus = np.load(path, mmap_mode="r")
    relevant = np.linspace(0, len(corpus) - 1, queries, dtype=np.int64)
    asked = np.array(corpus[relevant])
    top_k(asked, corpus[:5000], 100)  # what torch allocates once
    held = 1024 * int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (held + limit_mb * 2**20,) * 2)
    before, peak, start, computed = private_memory(), Peak(), time.perf_counter(), time.process_time()
    positions, _ = top_k(asked, corpus, 100, show_progress_bar=True)
    seconds, computed = time.perf_counter() - start, time.process_time() - computed
    found = int((positions[:, 0] == relevant).sum())
    print(
        f"{seconds:.0f} s, of which {computed:.0f} s computing; {peak.stop() - before:.0f} MB more held, of "
        f"{limit_mb} MB allowed; found {found} of {queries}"
    )


def main(chunks: int, queries: int, limit_mb: int, folder: str | None) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "corpus.npy"
        write_vectors(path, chunks)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        print(
            f"{chunks} chunks of {DIM} dimensions, {queries} questions: a file of {path.stat().st_size / 1e9:.1f} GB on a "
            f"machine of {memory / 1e9:.1f} GB, 1 thread"
        )
        options = ["--child", str(path), "--queries", str(queries), "--limit-mb", str(limit_mb)]
        subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--limit-mb", type=int, default=300)
    parser.add_argument("--folder", help="where the file is written, and removed again")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        search(Path(args.child), args.queries, args.limit_mb)
    else:
        main(args.chunks, args.queries, args.limit_mb, args.folder)
