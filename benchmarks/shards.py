"""Encoding a corpus in shards by one process and by two, what its files hold, and what reading them and counting words costs.

    python benchmarks/shards.py --chunks 1024 --tokens 200 --processes 1 2

MiniLM on CPUs, one thread for each process, started by torchrun. Texts are random words, with lengths spread evenly around the given
one. Processor time is from the loaded model to the last shard.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from encoding import make_texts

import embedtune as et
from embedtune.retrieval.shards import read_shards, write_corpus
from embedtune.retrieval.words import WordIndex

EXAMPLE = Path(__file__).parent.parent / "examples" / "encode_corpus.py"
LINE = re.compile(r"encoded in ([\d.]+) s, ([\d.]+) s of processor")


def encoded(corpus: Path, output: Path, processes: int) -> dict[str, bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += [str(EXAMPLE), "--corpus", str(corpus), "--output", str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found = [(float(wall), float(computed)) for wall, computed in LINE.findall(done.stdout)]
    print(
        f"| {processes} | {sum(computed for _, computed in found):.1f} | {max(wall for wall, _ in found):.1f} |",
        flush=True,
    )
    return {path.name: path.read_bytes() for path in (output / "vectors").glob("*.parquet")}


def seconds(work):
    start = time.process_time()
    return work(), time.process_time() - start


def main(num_chunks: int, num_tokens: int, processes: list[int], shards: int) -> None:
    texts = make_texts(et.load_model("minilm", device="cpu"), num_chunks, num_tokens)
    chunks = [et.Chunk(f"{i:09}", f"{i // 5:09}", text, 0, len(text)) for i, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(chunks, folder / "corpus", chunks_per_shard=-(-num_chunks // shards))
        print(f"{num_chunks} chunks of {num_tokens} tokens in {shards} shards\n")
        print("| processes | processor seconds, together | wall-clock seconds |\n|---|---|---|")
        files = [encoded(corpus=folder / "corpus", output=folder / str(n), processes=n) for n in processes]
        size = sum(map(len, files[0].values())) / num_chunks
        index, reading = seconds(lambda: read_shards(folder / str(processes[0]) / "vectors"))
        words, counting = seconds(lambda: WordIndex.build(index.texts()))
    same = "the same bytes" if all(one == files[0] for one in files) else "other bytes"
    print(
        f"\n{same} by each; {size:.0f} bytes a chunk; per 1,000 chunks, {1000 * reading / num_chunks:.3f} s to read and ",
        end="",
    )
    print(f"{1000 * counting / num_chunks:.2f} s to count words, {len(words.hashes)} different tokens")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", dest="num_chunks", type=int, default=1024)
    parser.add_argument("--tokens", dest="num_tokens", type=int, default=200)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shards", type=int, default=8)
    main(**vars(parser.parse_args()))
