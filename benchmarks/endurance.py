"""What is left after kills, beside other readers and writers, and on a full disk.

    python benchmarks/endurance.py                        # a few minutes
    python benchmarks/endurance.py readers --seconds 60   # one part

Every part counts what was lost, what was mixed of two versions, and what failed without a word. A full disk is a tmpfs of a few
megabytes, which only root may mount; elsewhere that part is left out.
"""

import argparse
import collections
import errno
import itertools
import multiprocessing
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from endurance_runs import PRELOADED, RUNS, folder
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import embedtune as et
from embedtune.retrieval.index import ChunkIndex, table_of_texts
from embedtune.storage import merged_folder, read_folder

SIZE, DIM = 2000, 64
CONTEXT = multiprocessing.get_context("forkserver")


# What is saved: two versions of each, and how to tell which one was loaded


def save_index(path: Path, version: int) -> None:
    texts = [f"version {version} of chunk {i}" for i in range(SIZE)]
    vectors = np.full((SIZE, DIM), float(version), dtype=np.float32)
    ChunkIndex(table_of_texts(texts), vectors, f"model {version}").save(path)


def load_index(path: Path) -> set[int]:
    index = ChunkIndex.load(path)
    by_texts = {int(text.split()[1]) for text in index.texts()}
    return by_texts | {int(value) for value in np.unique(index.vectors)} | {int(index.model_fingerprint.split()[1])}


def save_dataset(path: Path, version: int) -> None:
    pairs = [(f"chunk {i} of version {version}", [f"what is {i} of version {version}"]) for i in range(60)]
    et.RetrievalDataset.from_pairs(pairs, test_size=0.2, dev_size=0).save_to_disk(path)


def load_dataset(path: Path) -> set[int]:
    data = et.RetrievalDataset.load_from_disk(path)
    return {int(text.split()[-1]) for text in [*data.corpus_texts.values(), *data.query_texts.values()]}


def save_model(path: Path, version: int) -> None:
    tokenizer = Tokenizer(WordLevel({f"word{i}": i for i in range(200)}, unk_token="word0"))
    static = StaticEmbedding(tokenizer, embedding_weights=np.full((200, 8), float(version), dtype=np.float32))
    model = SentenceTransformer(modules=[static], prompts={"query": f"word{version} "}, device="cpu")
    with merged_folder(path) as folder:  # as the trainer saves
        model.save_pretrained(str(folder), create_model_card=False)


def load_model(path: Path) -> set[int]:
    def load(folder: Path) -> set[int]:
        model = SentenceTransformer(str(folder), device="cpu")
        by_weights = int(model.encode("word1")[0])
        return {by_weights, int(model.prompts["query"].strip().removeprefix("word"))}

    return read_folder(path, load)


KINDS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], set[int]]]] = {
    "index": (save_index, load_index),
    "dataset": (save_dataset, load_dataset),
    "model": (save_model, load_model),
}


def save_over_and_over(kind: str, path: Path, seconds: float, saves: "multiprocessing.Queue[int]") -> None:
    end, number = time.time() + seconds, 0
    while time.time() < end:
        KINDS[kind][0](path, number % 2 + 1)
        number += 1
    saves.put(number)


def save_until_killed(kind: str, path: Path, saved) -> None:
    number = 0
    while True:
        KINDS[kind][0](path, number % 2 + 1)
        number += 1
        saved.send(number)


def load_over_and_over(
    kind: str, path: Path, seconds: float, found: "multiprocessing.Queue[collections.Counter[str]]"
) -> None:
    counts: collections.Counter[str] = collections.Counter()
    end = time.time() + seconds
    while time.time() < end:
        try:
            counts["one version" if len(KINDS[kind][1](path)) == 1 else "MIXED"] += 1
        except Exception as err:
            counts[f"{type(err).__name__}: {str(err)[:60]}"] += 1
    found.put(counts)


def readers(options: argparse.Namespace) -> None:
    """Two processes read what one or two others replace."""
    for (kind, (save, _)), num_writers in itertools.product(KINDS.items(), (1, 2)):
        with folder() as home:
            path = home / kind
            save(path, 1)
            saves, found = CONTEXT.Queue(), CONTEXT.Queue()
            both = [CONTEXT.Process(target=load_over_and_over, args=(kind, path, options.seconds, found)) for _ in "ab"]
            arguments = (kind, path, options.seconds, saves)
            writers = [CONTEXT.Process(target=save_over_and_over, args=arguments) for _ in range(num_writers)]
            for process in (*both, *writers):
                process.start()
            total = sum((found.get() for _ in both), collections.Counter())
            number = sum(saves.get() for _ in writers)
            left = sorted(p.name for p in home.iterdir() if p != path)
            print(
                f"readers beside {num_writers} writers, {kind}: {number} saves, loads {dict(total)}, left over {left}",
                flush=True,
            )


def kills(options: argparse.Namespace) -> None:
    """A writer is killed at a random moment; then its artefact is read, and written once more."""
    for kind, (save, load) in KINDS.items():
        with folder() as home:
            path, counts = home / kind, collections.Counter()
            save(path, 1)
            while counts["killed"] < options.kills:
                ours, theirs = CONTEXT.Pipe(duplex=False)
                writer = CONTEXT.Process(target=save_until_killed, args=(kind, path, theirs))
                writer.start()
                theirs.close()
                ours.recv()  # it is past its imports, and saves
                time.sleep(random.uniform(0, 0.5))
                writer.kill()
                writer.join()
                counts["killed"] += 1
                counts["left over by kills"] += sum(p != path for p in home.iterdir())
                try:
                    counts["whole" if len(load(path)) == 1 else "MIXED"] += 1
                except Exception as err:
                    counts[f"LOST {type(err).__name__}: {str(err)[:60]}"] += 1
                save(path, 1)
            counts["left over by the next writer"] = sum(p != path for p in home.iterdir())
            print(f"kills, {kind}: {dict(counts)}", flush=True)


def write_log(
    path: Path, seconds: float, num_threads: int, found: "multiprocessing.Queue[tuple[list[float], list[str]]]"
) -> None:
    times: list[float] = []
    errors: list[str] = []
    end = time.time() + seconds

    def work() -> None:
        log = et.FeedbackLog(path)
        while time.time() < end:
            start = time.time()
            try:
                log.record("where is it", [("c#1", 0.5)])
                times.append(time.time() - start)
            except Exception as err:
                errors.append(f"{type(err).__name__}: {err}")

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.put((times, errors))


def feedback(options: argparse.Namespace) -> None:
    """Many processes, several threads each, record in one log."""
    for num_processes, num_threads in ((8, 8), (40, 4)):
        with folder() as home:
            found = CONTEXT.Queue()
            arguments = (home / "log.sqlite", options.seconds / 2, num_threads, found)
            processes = [CONTEXT.Process(target=write_log, args=arguments) for _ in range(num_processes)]
            for process in processes:
                process.start()
            parts = [found.get() for _ in processes]
            times = np.array([one for part, _ in parts for one in part])
            errors = collections.Counter(error for _, part in parts for error in part)
            stored = len(et.FeedbackLog(home / "log.sqlite"))
            p50, p99 = np.quantile(times, [0.5, 0.99])
            print(
                f"feedback log, {num_processes} processes x {num_threads} threads: {len(times)} records returned, {stored} in the "
                f"file, median {1000 * p50:.0f} ms, 99% {p99:.2f} s, worst {times.max():.2f} s, errors {dict(errors)}",
                flush=True,
            )


def killed_log(options: argparse.Namespace) -> None:
    """Processes that record are killed; what `record` had returned must be in the file."""
    with folder() as home:
        path, promised, counts = home / "log.sqlite", set(), collections.Counter()
        for _ in range(options.kills):
            ours, theirs = CONTEXT.Pipe(duplex=False)
            writer = CONTEXT.Process(target=record_for_ever, args=(path, theirs))
            writer.start()
            theirs.close()
            promised.add(ours.recv())
            time.sleep(random.uniform(0, 0.3))
            writer.kill()
            writer.join()
            with_end = True
            while with_end:
                try:
                    promised.add(ours.recv())
                except EOFError:
                    with_end = False
            counts["killed"] += 1
        stored = {question.number for question in et.FeedbackLog(path).questions()}
        print(
            f"kills, feedback log: {dict(counts)}, {len(promised)} records returned, {len(promised - stored)} LOST",
            flush=True,
        )


def record_for_ever(path: Path, promised) -> None:
    log = et.FeedbackLog(path)
    while True:
        promised.send(log.record("where is it", [("c#1", 0.5)]))


def threads(options: argparse.Namespace) -> None:
    """Eight threads add, update, remove and search in one retriever, while it is moved to another model."""
    model, rng = et.load_model("minilm", device="cpu"), random.Random(0)
    words = ["pump", "door", "lamp", "roof", "gate", "wall", "fan", "belt", "hose", "tank", "valve", "motor"]

    def chunk(name: str) -> et.Chunk:
        text = " ".join(rng.choices(words, k=8))
        return et.Chunk(f"{name}#0", name, text, 0, len(text))

    retriever = et.Retriever.from_chunks(model, [chunk(f"start{i}") for i in range(400)])
    expected = {f"start{i}#0" for i in range(400)}
    done: collections.Counter[str] = collections.Counter()
    end = time.time() + options.seconds / 4

    def work(name: str) -> None:
        i = 0
        while time.time() < end:
            retriever.add([chunk(f"{name}-{i}")])
            if i % 3:
                retriever.remove([f"{name}-{i}#0"])
            else:
                expected.add(f"{name}-{i}#0")
                retriever.update([chunk(f"{name}-{i}")])
            if not all(hit.text for hit in retriever.search("pump door", k=5)):
                done["wrong searches"] += 1
            i += 1
        done["rounds"] += i

    workers = [threading.Thread(target=work, args=(f"thread{i}",)) for i in range(8)]
    for worker in workers:
        worker.start()
    with folder() as home:
        other = et.load_model("minilm", device="cpu", truncate_dim=64)
        moved = et.reindex(retriever, other, path=home / "moved", show_progress_bar=False)
        missing = set(retriever.index.ids) & set(moved.index.ids) ^ set(moved.index.ids)
        for worker in workers:
            worker.join()
        print(
            f"8 threads in one retriever: {done['rounds']} rounds of add, update or remove, and search; chunks lost "
            f"{len(expected - set(retriever.index.ids))}, chunks that came back {len(set(retriever.index.ids) - expected)}, wrong "
            f"searches {done['wrong searches']}; a move meanwhile has {len(moved)} chunks, {len(missing)} of them removed since",
            flush=True,
        )


def disk(_options: argparse.Namespace) -> None:
    """A disk that is full, and one that is read-only: an error with the path, and the old artefact."""
    if os.geteuid() != 0:
        print("full and read-only disks: left out, since only root may mount a tmpfs")
        return
    for kind, (save, load) in KINDS.items():
        for state in ("full", "read-only"):
            with small_disk() as home:
                path = home / kind
                save(path, 1)
                spoil(home, state)
                try:
                    save(path, 2)
                    said = "NO ERROR"
                except OSError as err:
                    said = f"{type(err).__name__} {errno.errorcode.get(err.errno or 0, err.errno)}"
                    said += "" if str(path) in str(err) else f" WITHOUT THE PATH: {err}"
                mend(home, state)
                left = [p.name for p in home.iterdir() if p != path]
                print(f"{state} disk, {kind}: {said}; afterwards version {load(path)}, left over {left}", flush=True)


def spoil(home: Path, state: str) -> None:
    if state == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", home], check=True)
        return
    with (home / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def mend(home: Path, state: str) -> None:
    if state == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", home], check=True)
    else:
        (home / "filler").unlink()


@contextmanager
def small_disk() -> Iterator[Path]:
    with folder() as home:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", home], check=True)
        try:
            yield home
        finally:
            subprocess.run(["umount", "-l", home], check=True)


PARTS = {
    "kills": kills,
    "log": killed_log,
    **RUNS,
    "readers": readers,
    "feedback": feedback,
    "threads": threads,
    "disk": disk,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; by default all")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=30)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    CONTEXT.set_forkserver_preload(
        [
            "sentence_transformers",
            "embedtune.retrieval.index",
            "embedtune.serving.feedback",
            "embedtune.dataset",
            *PRELOADED,
        ]
    )
    for name in chosen.parts or PARTS:
        PARTS[name](chosen)
