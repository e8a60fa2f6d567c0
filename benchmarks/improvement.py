"""Does `improve` learn from its log, and does it detect a wrong log?

    python benchmarks/improvement.py FOLDER
    python benchmarks/improvement.py FOLDER --poison 0 0.3

FOLDER contains chunks.jsonl and questions.jsonl in the format that examples/benchmark_dataset.py describes. Its documents are
divided at random into three parts. The model that serves is tuned on four questions about each chunk of the first. All
questions about the second are asked and logged: those with the relevant chunk among the first five are answered from it; for
the others somebody names the relevant chunk, or with --poison a random one for a share of all. The questions about the third
are the locked test. Then one round of `improve` runs, and its model is evaluated once more with the true chunks.
"""

import argparse
import hashlib
import json
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import embedtune as et
from embedtune.evaluation.verdict import Verdict
from embedtune.improvement.round_data import HELD_OUT
from embedtune.retrieval.hits import Hit

SHOWN = 5


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def draw(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10_000 / 10_000


def part_of(document: str, seed: int) -> str:
    number = draw(f"{seed} {document}")
    return "taught" if number < 0.4 else "asked" if number < 0.8 else "test"


def read_dataset(folder: Path, seed: int, taught_per_chunk: int = 4) -> et.RetrievalDataset:
    chunks = []
    ends = defaultdict(int)  # where each document ends so far: its chunks are taken to be consecutive
    for row in read_lines(folder / "chunks.jsonl"):
        document, start = row.get("doc_id", row["chunk_id"]), ends[row.get("doc_id", row["chunk_id"])]
        ends[document] = start + len(row["text"])
        chunks.append(et.Chunk(row["chunk_id"], document, row["text"], start, ends[document]))
    document_of = {chunk.id: chunk.document_id for chunk in chunks}
    questions, num_taught = [], Counter()
    for row in read_lines(folder / "questions.jsonl"):
        relevant = (row["chunk_id"],) if isinstance(row["chunk_id"], str) else tuple(row["chunk_id"])
        part = part_of(document_of[relevant[0]], seed)
        num_taught[relevant[0]] += 1
        if part == "taught" and num_taught[relevant[0]] > taught_per_chunk:
            continue
        split = {"taught": "dev" if draw(row["question_id"]) < 0.1 else "train"}.get(part, part)
        questions.append(et.Question(row["question_id"], row["question"], relevant, split=split))
    return et.build_dataset(chunks, questions, split_by="given")


def ask_everything(data: et.RetrievalDataset, model, log: et.FeedbackLog, *, poison: float, seed: int) -> None:
    retriever = et.Retriever.from_dataset(model, data, word_weight=0)  # the model alone
    rng = random.Random(seed)
    relevant = data.relevant("asked")
    texts = [data.query_texts[query] for query in relevant]
    for text, chunks, hits in zip(texts, relevant.values(), retriever.search_batch(texts), strict=True):
        said = [rng.choice(retriever.index.ids)] if rng.random() < poison else chunks
        found = {hit.id for hit in hits[:SHOWN]} & set(said)
        outcome = "answered" if found else "not in the documents"
        number = log.record(text, hits, model=retriever.fingerprint, outcome=outcome, cited=sorted(found))
        if not found:
            log.name_chunks(number, [Hit(chunk, 0.0, data.corpus_texts[chunk]) for chunk in said], by="oracle")


def without_the_log(data: et.RetrievalDataset) -> et.RetrievalDataset:
    """Remove the questions that are asked later."""
    return replace(data, qrels={split: table for split, table in data.qrels.items() if split != "asked"})


def measured_truly(data: et.RetrievalDataset, held_out: list[str], old, new) -> Verdict:
    """Compare on the held-out questions with their true relevant chunks."""
    id_of = {text: query for query, text in data.query_texts.items()}
    wanted = {id_of[text] for text in held_out}
    table = data.qrels["asked"].filter(lambda row: row["query-id"] in wanted)
    evaluator = et.TopKEvaluator(replace(data, qrels={"held out, true chunks": table}), "held out, true chunks")
    return et.compare(evaluator.evaluate(old, name="old"), evaluator.evaluate(new, name="new"))


def train_first(data: et.RetrievalDataset, model_name: str, workspace: str, seed: int):
    """Tune the initial model."""
    model = et.load_model(model_name)
    args = et.TuningArguments(
        f"{workspace}/first", num_train_epochs=1, learning_rate=5e-5, dropout=0.0, seed=seed, disable_tqdm=True
    )
    et.EmbeddingTrainer(model, args, data=data).train()
    return model


def improve_once(everything: et.RetrievalDataset, model, workspace: str, poison: float, seed: int, **options) -> None:
    """Log all questions about the second part, run a round, and print its report."""
    log = et.FeedbackLog(Path(workspace, f"feedback-{poison}.sqlite"))
    ask_everything(everything, model, log, poison=poison, seed=seed)
    print(f"\n{poison:.0%} of the log wrong: {len(log)} questions, {len(log.misses())} missed\n")
    data, folder = without_the_log(everything), f"{workspace}/rounds-{poison}"
    retriever = et.Retriever.from_dataset(model, data, word_weight=0)  # the model alone
    try:
        round_ = et.improve(retriever, data, feedback=log, output_dir=folder, seed=seed, **options)
    except ValueError as refusal:
        print(f"Refused before training: {refusal}\n\nThe gate, if it is trained anyway:\n")
        round_ = et.improve(retriever, data, feedback=log, output_dir=folder, seed=seed, max_wrong=1.0, **options)
    print(round_)
    kept = round_.load_data()
    held_out = [kept.query_texts[query] for query in kept.relevant(HELD_OUT)]
    new = round_.load_model(device=str(model.device))
    print("\nThe held-out questions with their true relevant chunks\n")
    print(measured_truly(everything, held_out, model, new))


def main(
    folder: str,
    *,
    poison: Sequence[float] = (0.0,),
    epochs: float = 3,
    learning_rate: float = 2e-5,
    replay: float = 2.0,
    max_loss: float = 0.02,
    keep_index: bool = False,
    model_name: str = "minilm",
    seed: int = 0,
) -> None:
    everything = read_dataset(Path(folder), seed)
    print(everything)
    with tempfile.TemporaryDirectory() as workspace:
        model = train_first(without_the_log(everything), model_name, workspace, seed)
        args = et.TuningArguments(
            "unused", num_train_epochs=epochs, learning_rate=learning_rate, dropout=0.0, seed=seed, disable_tqdm=True
        )
        options = {"args": args, "replay": replay, "max_loss": max_loss, "keep_index": keep_index}
        for share in poison:
            improve_once(everything, model, workspace, share, seed, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder with chunks.jsonl and questions.jsonl")
    parser.add_argument("--poison", type=float, nargs="+", default=[0.0], help="share of questions with a random label")
    parser.add_argument("--epochs", type=float, default=3, help="of the round")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="of the round")
    parser.add_argument("--replay", type=float, default=2.0, help="old questions for each new one")
    parser.add_argument("--max-loss", type=float, default=0.02)
    parser.add_argument("--keep-index", action="store_true", help="train only the query side")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
