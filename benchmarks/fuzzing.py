"""Damaged files, replies and configurations: each is read, or refused with an error in words.

    nice -n 15 python benchmarks/fuzzing.py --minutes 30

Each round takes a good example, damages it (bytes changed, removed, repeated, values of JSON replaced by hostile ones), and reads
it in a process of its own, which may hold 4 GB. Counted are inputs that were read, and those that were refused; printed is
whatever else happened: an error of another kind, a process that died, or more than ten seconds.
"""

import argparse
import collections
import json
import logging
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import embedtune as et
from embedtune.evaluation.result import Evaluation
from embedtune.improvement.rounds import Round, Rounds
from embedtune.questions.parsing import parse_questions
from embedtune.retrieval import retriever_files
from embedtune.retrieval.index import ChunkIndex, table_of_texts
from embedtune.retrieval.learned import Saved
from embedtune.retrieval.word_weight import LearnedWords
from embedtune.retrieval.words import WordWeights

PER_PROCESS, SECONDS_EACH = 40, 10.0
REFUSED = (ValueError, TypeError, OSError)
HOSTILE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    1e308,
    float("nan"),
    "",
    "../../x",
    "\x00",
    "a" * 10_000,
    [],
    {},
    [[]] * 50,
]
REPLY = {"questions": [{"style": "keyword", "question": "pump reset", "answer": "Press both."}] * 3}
PAGE = "<html><body><h1>Pump</h1><table><tr><td>a<td>b</table><p>Press <b>both</b> buttons.<a href='x'>more</a></body></html>"
TEXTS = {
    "a.md": "---\ntitle: Pump\n---\n# Restart\n\nPress both buttons.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "a.html": PAGE,
    "a.csv": "id,text\n1,Press both\n2,Turn it\n",
    "a.jsonl": '{"id": "1", "text": "Press both"}\n{"id": "2", "text": "Turn it"}\n',
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(5)
        if kind == 0 and data:
            data[place % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.choice((1, 8, 10**6))]
        elif kind == 2:
            data[place:place] = bytes(rng.choices(range(256), k=rng.randint(1, 20)))
        elif kind == 3:
            data[place:place] = rng.choice((b" ", b"<a ", b"[", b'{"a":', b"```", b"\n", b"|")) * rng.choice((3, 3000))
        else:
            data[place:place] = data[place : place + 200] * rng.choice((2, 50))
    return bytes(data)


def poisoned(content: bytes, rng: random.Random) -> bytes:
    """Replace a value somewhere in JSON."""
    try:
        tree = json.loads(content)
    except ValueError:
        return damaged(content, rng)
    node = tree
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or rng.random() < 0.3:
            node[key] = rng.choice(HOSTILE)
            break
        node = node[key]
    return json.dumps(tree).encode()


def make_examples(home: Path) -> dict[str, Callable[[Path], object]]:
    """Write a good example of each kind of folder, and return how it is read."""
    (home / "documents").mkdir()
    for name, text in TEXTS.items():
        (home / "documents" / name).write_text(text)
    vectors = np.random.default_rng(0).standard_normal((20, 8), dtype=np.float32)
    ChunkIndex(table_of_texts([f"chunk {i} of the pump" for i in range(20)]), vectors, "model").save(home / "index")
    pairs = [(f"the text of chunk {i}", [f"what is number {i}?"]) for i in range(12)]
    data = et.RetrievalDataset.from_pairs(pairs, test_size=0.3, dev_size=0)
    data.save_to_disk(home / "dataset")
    (home / "evaluation").mkdir()
    et.TopKEvaluator(data, k=(1,)).evaluate(et.BM25()).save(home / "evaluation" / "a.json")
    (home / "retriever").mkdir()
    words = LearnedWords(WordWeights.learn(["where is the pump?"]), 1.0)
    retriever_files.write_learned(home / "retriever", Saved(words, 1.0, (), "model"))
    rounds = Rounds(home / "rounds")
    with rounds.new_round() as (number, path):
        Round(path, number, None, "start", "model", "test", "2026-01-01").save()
    rounds.switch_to(0)
    (home / "reply").mkdir()
    (home / "reply" / "a.json").write_text(json.dumps(REPLY))
    return {
        "documents": lambda folder: et.chunk_documents(et.read_documents(folder)),
        "index": lambda folder: ChunkIndex.load(folder).texts(),
        "dataset": lambda folder: et.RetrievalDataset.load_from_disk(folder).relevant("train"),
        "evaluation": lambda folder: Evaluation.load(folder / "a.json").metrics,
        "retriever": retriever_files.read,
        "rounds": lambda folder: (Rounds(folder).current, Rounds(folder).all()),
        "reply": lambda folder: parse_questions((folder / "a.json").read_bytes().decode("utf-8", "replace")),
    }


def run(home: Path, kind: str, read: Callable[[Path], object], seeds: range, found: Any) -> None:
    """Damage one file of an example for each seed, and send what reading made of it."""
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    for seed in seeds:
        found.send((seed, "died"))  # unless another message follows
        rng, place = random.Random(seed), home / f"damaged-{kind}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(home / kind, place)
        victim = rng.choice(sorted(path for path in place.rglob("*") if path.is_file()))
        change = poisoned if victim.suffix == ".json" and rng.random() < 0.5 else damaged
        victim.write_bytes(change(victim.read_bytes(), rng))
        start = time.process_time()
        try:
            read(place)
            outcome = "read"
        except REFUSED:
            outcome = "refused"
        except Exception as err:
            outcome = f"{type(err).__name__}: {str(err)[:100]}"
        if time.process_time() - start > SECONDS_EACH:
            outcome = f"{time.process_time() - start:.0f} s"
        found.send((seed, outcome))


def main(minutes: float, first_seed: int) -> None:
    context = multiprocessing.get_context("fork")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    start, seed = time.time(), first_seed
    with tempfile.TemporaryDirectory(prefix="embedtune-fuzzing-") as name:
        home = Path(name)
        readers = make_examples(home)
        while time.time() < start + 60 * minutes:
            for kind, read in readers.items():
                ours, theirs = context.Pipe(duplex=False)
                seeds = range(seed, seed + PER_PROCESS)
                process = context.Process(target=run, args=(home, kind, read, seeds, theirs))
                process.start()
                theirs.close()
                outcomes = {}
                try:
                    while True:
                        one, outcome = ours.recv()
                        outcomes[one] = outcome
                except EOFError:
                    process.join()
                for one, outcome in outcomes.items():
                    counts[kind, outcome if outcome in ("read", "refused") else "OTHER"] += 1
                    if outcome not in ("read", "refused"):
                        print(f"{kind}, seed {one}: {outcome}", flush=True)
            seed += PER_PROCESS
    for (kind, outcome), number in sorted(counts.items()):
        print(f"{kind:12} {outcome:8} {number:8,}")
    print(f"{sum(counts.values()):,} inputs in {(time.time() - start) / 60:.1f} minutes, from seed {first_seed}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.disable()  # what could not be read is said for each file
    main(chosen.minutes, chosen.seed)
