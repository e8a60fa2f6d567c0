"""The parts of endurance.py that kill long runs: generation, training, `tune`, `improve` and a push.

A run is killed at a random moment and started again until it ends; the next one begins anew. The models are tiny and of random
weights. The language model and the Hub are the servers of the tests, on loopback, so their Python code is needed as well.
"""

import argparse
import collections
import hashlib
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import embedtune as et
from embedtune.improvement.rounds import Rounds
from embedtune.questions.requests import batches
from embedtune.questions.requests.ledger import Ledger
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.hits import Hit
from embedtune.training.resilience.checkpoints import complete_checkpoints

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import hub_server
import llm_server

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["anthropic", "bm25s", "embedtune.improvement.improve", "embedtune.publishing.hub", "endurance_runs"]
WORDS = [a + b + c for a in ("ba", "ko", "mi", "ru", "te") for b in ("da", "lo", "ni", "su") for c in ("k", "r", "m")]
THINGS, NICKNAMES, WAYS = WORDS[:24], WORDS[24:32], WORDS[32:44]
NUM_CHUNKS, NUM_WORKERS = 400, 16


def killed_until_done(start: Callable[[], Any], seconds: float, counts: "collections.Counter[str]") -> None:
    """Start a run, kill it at a random moment, and start it again, until it ends by itself."""
    while True:
        process = start()
        process.start()
        process.join(timeout=random.uniform(0.3, 1.2) * seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            counts["killed"] += 1
        elif process.exitcode == 0:
            counts["runs that ended"] += 1
            return
        else:
            raise SystemExit(f"A run failed with exit code {process.exitcode}.")


def undisturbed(start: Callable[[], Any]) -> float:
    """Return the seconds that a run takes."""
    warm = CONTEXT.Process(target=int)  # the server of processes imports all of the libraries, once
    warm.start()
    warm.join()
    begin, process = time.time(), start()
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"An undisturbed run failed with exit code {process.exitcode}.")
    return time.time() - begin


@contextmanager
def folder():
    path = Path(tempfile.mkdtemp(prefix="embedtune-endurance-")).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# Generation


def generate(url: str, key: str, output_dir: Path, mode: str) -> None:
    import anthropic

    batches.POLL_SECONDS, batches.GRACE_SECONDS = 0.02, 0.3
    client = anthropic.Anthropic(api_key=key, base_url=url)
    texts = [f"{' '.join(random.Random(i).choices(WORDS, k=30))} {i}" for i in range(NUM_CHUNKS)]
    chunks = [et.Chunk(f"{i}#0", f"{i}", text, 0, len(text)) for i, text in enumerate(texts)]
    et.generate_questions(
        chunks,
        et.AnthropicLLM("claude-sonnet-5-5", client=client),
        output_dir=output_dir,
        mode=mode,
        num_workers=NUM_WORKERS,
        show_progress_bar=False,
    )


def killed_generation(mode: str, options: argparse.Namespace) -> None:
    """What was paid for is in the ledger, and what was in flight is all that can be paid for twice."""
    counts: collections.Counter[str] = collections.Counter()
    seconds = 0.0
    while counts["killed"] < options.kills:
        with llm_server.serving(seconds=0.05, batch_seconds=0.5) as server, folder() as home:
            start = partial(CONTEXT.Process, target=generate, args=(server.url, server.key, home, mode))
            if not seconds:
                seconds = undisturbed(start)
                continue
            killed_until_done(start, seconds, counts)
            if mode == "live":
                asked = collections.Counter(server.answered)
            else:
                asked = collections.Counter(one["custom_id"] for batch in server.batches for one in batch.requests)
            with Ledger(home) as ledger:
                stored, spent = ledger._number("SELECT COUNT(*) FROM request WHERE reply IS NOT NULL"), ledger.spent()
            counts["requests"] += len(asked)
            counts["replies LOST"] += len(asked) - stored
            counts["billed twice"] += asked.total() - len(asked)
            counts["runs whose ledger says LESS than was billed"] += spent < round(server.microdollars) - 1
    bound = NUM_WORKERS * counts["killed"] if mode == "live" else 0
    print(f"kills, {mode} generation: {dict(counts)}; the bound of what is billed twice is {bound}", flush=True)


# Training and tune


def make_model(path: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "check", "the", "?"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=64)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with folder() as bert:
        BertModel(config).save_pretrained(bert)
        fast.save_pretrained(bert)
        modules = [Transformer(str(bert), max_seq_length=64), Pooling(32, pooling_mode="mean")]
        model = SentenceTransformer(modules=modules, prompts={"query": f"{WORDS[seed]} "}, device="cpu")
        model.save_pretrained(str(path), create_model_card=False)


def world() -> tuple[list[et.Chunk], et.RetrievalDataset]:
    chunks = [et.Chunk(f"{one}#0", one, text := f"check the {one}", 0, len(text)) for one in THINGS]
    questions = [
        et.Question(
            f"{one}/{i}", f"{way} the {one}", (f"{one}#0",), split="test" if at < 8 else "train" if i else "dev"
        )
        for at, one in enumerate(THINGS[:16])
        for i, way in enumerate(WAYS[:8])
    ]
    return chunks, et.build_dataset(chunks, questions, split_by="given")


def arguments(output_dir: Path | str = "unused", **options: Any) -> et.TuningArguments:
    return et.TuningArguments(
        str(output_dir),
        **{"learning_rate": 3e-3, "eval_strategy": "no", "load_best_model_at_end": False, "use_cpu": True} | options,
        per_device_train_batch_size=16,
        disable_tqdm=True,
        report_to="none",
    )


def train(model: Path, home: Path) -> None:
    torch.set_num_threads(1)
    args = arguments(home / "run", num_train_epochs=8, save_strategy="steps", save_steps=3, save_total_limit=2)
    trainer = et.EmbeddingTrainer(SentenceTransformer(str(model), device="cpu"), args, data=world()[1])
    trainer.train(resume_from_checkpoint=bool(complete_checkpoints(home / "run")) or None)
    trainer.save_model(str(home / "model"))


def tune(model: Path, home: Path) -> None:
    torch.set_num_threads(1)
    args = arguments(num_train_epochs=4, save_strategy="steps", save_steps=3)
    et.tune(SentenceTransformer(str(model), device="cpu"), world()[1], output_dir=home, args=args, num_folds=3)


def contents(home: Path) -> dict[str, str]:
    """Return the hash of each file that a run leaves, but checkpoints, cards and reports, without the seconds that it took."""
    return {
        path.relative_to(home).as_posix(): hashlib.sha256(
            re.sub(rb'"seconds": [0-9.e-]+', b"", path.read_bytes())
        ).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.suffix not in (".md", ".html") and not {"run", "checkpoints"} & set(path.parts)
    }


def killed_training(run: Callable[[Path, Path], None], options: argparse.Namespace) -> None:
    """What is killed and goes on ends with the same bytes as what nobody disturbs."""
    counts: collections.Counter[str] = collections.Counter()
    with folder() as home:
        make_model(home / "model")
        seconds = undisturbed(partial(CONTEXT.Process, target=run, args=(home / "model", home / "whole")))
        expected = contents(home / "whole")
        while counts["killed"] < options.kills:
            again = home / f"again-{counts['runs that ended']}"
            killed_until_done(partial(CONTEXT.Process, target=run, args=(home / "model", again)), seconds, counts)
            found = contents(again)
            differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            counts["ended with the same bytes" if not differing else f"DIFFERENT: {differing}"] += 1
    print(f"kills, {run.__name__}: {dict(counts)}, {len(expected)} files compared, {seconds:.0f} s each", flush=True)


# Improve


def improve(home: Path) -> None:
    torch.set_num_threads(1)
    chunks, data = world()
    if (home / "rounds" / "current.json").exists():
        serving = Rounds(home / "rounds").current
        model = serving.load_model(device="cpu", check=False)
        retriever = et.Retriever.load(serving.model_path, model, chunks=chunks)
    else:
        model = SentenceTransformer(str(home / "model"), device="cpu")
        retriever = et.Retriever.from_dataset(model, data, word_weight=0.0)
    with closing(et.FeedbackLog(home / "log.sqlite")) as log:
        et.improve(
            retriever,
            data,
            feedback=log,
            output_dir=home / "rounds",
            args=arguments(num_train_epochs=8, save_strategy="no", group_rows=False, frozen_layers=0.0, dropout=0.0),
            k=3,
            max_wrong=1.0,
            max_loss=0.9,
        )


def log_nicknames(path: Path) -> None:
    """Record questions about the last things, with nicknames that an untrained model is led astray by."""
    with closing(et.FeedbackLog(path)) as log:
        for thing, nickname in zip(THINGS[16:], NICKNAMES, strict=True):
            for way in WAYS:
                number = log.record(f"{way} the {nickname} {thing}", [("nothing", 0.1)], outcome="not in the documents")
                log.name_chunks(number, [Hit(f"{thing}#0", 0.5, f"check the {thing}")], by="Ada")


def killed_improve(options: argparse.Namespace) -> None:
    """After a kill the old round serves or the new one, whole; the next round removes what is left."""
    counts: collections.Counter[str] = collections.Counter()
    with folder() as home:
        base = home / "base"
        make_model(base / "model")
        log_nicknames(base / "log.sqlite")
        undisturbed(partial(CONTEXT.Process, target=improve, args=(base,)))
        Rounds(base / "rounds").switch_to(0)  # again, from the initial model
        shutil.rmtree(base / "rounds" / "0001")
        shutil.copytree(base, home / "timed")
        seconds = undisturbed(partial(CONTEXT.Process, target=improve, args=(home / "timed",)))
        after = Rounds(home / "timed" / "rounds").current.number
        while counts["killed"] < options.kills:
            copy = home / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(base, copy)
            process = CONTEXT.Process(target=improve, args=(copy,))
            process.start()
            if counts["killed"] % 2:
                process.join(timeout=random.uniform(0.1, 1.0) * seconds)
            else:  # about when the new round begins to serve
                while process.is_alive() and not (copy / "rounds" / "0001" / "round.json").exists():
                    time.sleep(0.001)
                process.join(timeout=random.uniform(0, 0.02))
            if process.exitcode is not None:
                continue
            process.kill()
            process.join()
            counts["killed"] += 1
            rounds = Rounds(copy / "rounds")
            now = rounds.current
            whole = now.number in (0, after)
            whole &= np.isfinite(now.load_model(device="cpu", check=False).encode_query(WORDS[0])).all()
            whole &= model_fingerprint(now.load_model(device="cpu", check=False)) == now.model_fingerprint
            counts["the new round serves" if now.number else "the old round serves"] += 1
            counts["NOT WHOLE"] += not whole
            counts["left an interrupted round"] += len(list((copy / "rounds").glob("[0-9]*"))) > len(rounds.all())
            with rounds.new_round() as (_number, path):
                left = {one.name for one in (copy / "rounds").glob("[0-9]*")} - {
                    f"{one.number:04}" for one in rounds.all()
                }
                counts["left after the next round"] += len(left - {path.name})
    print(
        f"kills, improve: {dict(counts)}, undisturbed, round {after} serves at the end, {seconds:.0f} s each",
        flush=True,
    )


# A push


def push(endpoint: str, model: Path, home: Path) -> None:
    from huggingface_hub import constants

    torch.set_num_threads(1)
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = endpoint, False, True
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = str(home / "cache")
    tempfile.tempdir = str(home / "temporary")
    et.push_to_hub(SentenceTransformer(str(model), device="cpu"), "me/handbook", token="hf_secret")


def version_on(hub: Any, hashes: dict[str, int]) -> set[int]:
    """Return the versions that the files on the Hub are of, by weights and by prompts."""
    files = hub.files["models/me/handbook"]
    by_prompt = next(
        n for n in hashes.values() if f'"{WORDS[n]} "' in files["config_sentence_transformers.json"].decode()
    )
    return {hashes.get(hashlib.sha256(files["model.safetensors"]).hexdigest(), -1), by_prompt}


def killed_push(options: argparse.Namespace) -> None:
    """After a kill the Hub holds the old files or the new ones; the next push removes what is left on the disk."""
    counts: collections.Counter[str] = collections.Counter()
    with folder() as home, hub_server.serving() as (hub, endpoint):
        (home / "temporary").mkdir()
        hashes, standing = {}, 0

        def start(version: int) -> Any:
            return CONTEXT.Process(target=push, args=(endpoint, home / f"model-{version}", home))

        for version in (0, 1):
            make_model(home / f"model-{version}", version)
            seconds = undisturbed(partial(start, version))
            files = hub.files["models/me/handbook"]
            hashes[hashlib.sha256(files["model.safetensors"]).hexdigest()] = version
            standing = version
        while counts["killed"] < options.kills:
            new = 1 - standing
            hub.blobs.clear()  # or the weights would be there already
            process = start(new)
            process.start()
            process.join(timeout=random.uniform(0.1, 1.0) * seconds)
            if process.exitcode is None:
                process.kill()
                process.join()
                counts["killed"] += 1
                found = version_on(hub, hashes)
                counts["MIXED" if len(found) > 1 else "the new files" if found == {new} else "the old files"] += 1
                counts["left a folder"] += any((home / "temporary").glob(".embedtune-*"))
            standing = min(version_on(hub, hashes))
        undisturbed(partial(start, 1 - standing))
        counts["left by the next push"] = len(list((home / "temporary").glob(".embedtune-*")))
    print(f"kills, push: {dict(counts)}, {seconds:.0f} s each", flush=True)


RUNS = {
    "live": partial(killed_generation, "live"),
    "batch": partial(killed_generation, "batch"),
    "train": partial(killed_training, train),
    "tune": partial(killed_training, tune),
    "improve": killed_improve,
    "push": killed_push,
}
