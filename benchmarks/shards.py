"""A corpus in shards, encoded, mined for hard negatives and evaluated by one process and by several; and what its files hold and cost.

    python benchmarks/shards.py --chunks 1024 --tokens 200 --processes 1 2 4

MiniLM on CPUs, one thread for each process, started by torchrun (examples/shards.py). Texts are random words, with lengths spread evenly
around the given one; a question is some words of a chunk, and the dataset has the chunks that are asked about. Half of the questions are
mined for, and half are evaluated. Times are from the loaded model on, the longest of any process, waiting included; processor time is
that of all processes together.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as parquet
from encoding import make_texts

import embedtune as et
from embedtune.retrieval.shards import read_shards, write_corpus
from embedtune.retrieval.words import WordIndex

EXAMPLE = Path(__file__).parent.parent / "examples" / "shards.py"
LINE = re.compile(r": (\w+) in ([\d.]+) s, ([\d.]+) s of processor")


def run(folder: Path, processes: int) -> dict[str, object]:
    """Print what each step takes, and return what must not depend on the number of processes."""
    output = folder / str(processes)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--standalone",
        str(EXAMPLE),
    ]
    command += ["--corpus", str(folder / "corpus"), "--data", str(folder / "data"), "--output", str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    found = [(step, float(wall), float(computed)) for step, wall, computed in LINE.findall(done.stdout)]
    for step in ("encoded", "mined", "evaluated"):
        some = [(wall, computed) for name, wall, computed in found if name == step]
        computed, wall = sum(computed for _, computed in some), max(wall for wall, _ in some)
        print(f"| {step} | {processes} | {computed:.1f} | {wall:.1f} |", flush=True)
    files = {path.name: path.read_bytes() for path in (output / "vectors").glob("*.parquet")}
    evaluation = json.loads((output / "evaluation.json").read_text())
    return files | {"evaluation": evaluation, "negatives": parquet.read_table(output / "negatives.parquet").to_pydict()}


def seconds(work):
    start = time.process_time()
    return work(), time.process_time() - start


def main(num_chunks: int, num_tokens: int, num_questions: int, processes: list[int], shards: int) -> None:
    texts = make_texts(et.load_model("minilm", device="cpu"), num_chunks, num_tokens)
    chunks = [et.Chunk(f"{i:09}", f"{i:09}", text, 0, len(text)) for i, text in enumerate(texts)]
    asked = [
        et.Question(f"{one.id}/0", " ".join(one.text.split()[5:13]), (one.id,), split=("train", "test")[i % 2])
        for i, one in enumerate(chunks[:num_questions])
    ]
    data = et.build_dataset(chunks[:num_questions], asked, split_by="given")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(chunks, folder / "corpus", chunks_per_shard=-(-num_chunks // shards))
        data.save_to_disk(folder / "data")
        print(f"{num_chunks} chunks of {num_tokens} tokens in {shards} shards, {num_questions} questions\n")
        print("| step | processes | processor seconds, together | wall-clock seconds |\n|---|---|---|---|")
        found = [run(folder, n) for n in processes]
        size = sum(len(one) for one in found[0].values() if isinstance(one, bytes)) / num_chunks
        index, reading = seconds(lambda: read_shards(folder / str(processes[0]) / "vectors"))
        words, counting = seconds(lambda: WordIndex.build(index.texts()))
    same = "the same vectors, negatives and evaluation" if all(one == found[0] for one in found) else "other results"
    print(
        f"\n{same} by each; {size:.0f} bytes a chunk; per 1,000 chunks, {1000 * reading / num_chunks:.3f} s to read and ",
        end="",
    )
    print(f"{1000 * counting / num_chunks:.2f} s to count words, {len(words.hashes)} different tokens")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", dest="num_chunks", type=int, default=1024)
    parser.add_argument("--tokens", dest="num_tokens", type=int, default=200)
    parser.add_argument("--questions", dest="num_questions", type=int, default=200)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shards", type=int, default=8)
    main(**vars(parser.parse_args()))
