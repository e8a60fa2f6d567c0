"""Fine-tune a model on question-chunk pairs of your own, and compare with the base model and BM25.

    python examples/benchmark_dataset.py FOLDER --loss in-batch --epochs 2

FOLDER holds chunks.jsonl, a line for each chunk: {"chunk_id": ..., "text": ..., "doc_id": ...}, and questions.jsonl, a line
for each question: {"question_id": ..., "question": ..., "chunk_id": one id or a list, "split": ...}. Questions whose split
is "train" are trained on; each other split is evaluated on its own.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import embedtune as et
from embedtune.evaluation.verdict import Verdict


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_dataset(folder: Path, dev_size: float) -> et.RetrievalDataset:
    chunks = []
    ends = defaultdict(int)  # how far each document goes: its chunks are taken to follow one another
    for row in read_lines(folder / "chunks.jsonl"):
        document, start = row.get("doc_id", row["chunk_id"]), ends[row.get("doc_id", row["chunk_id"])]
        ends[document] = start + len(row["text"])
        chunks.append(et.Chunk(row["chunk_id"], document, row["text"], start, ends[document]))
    questions = [
        et.Question(row["question_id"], row["question"], as_tuple(row["chunk_id"]), split=split_of(row, dev_size))
        for row in read_lines(folder / "questions.jsonl")
    ]
    return et.build_dataset(chunks, questions, split_by="given")


def as_tuple(chunk_id: str | list[str]) -> tuple[str, ...]:
    return (chunk_id,) if isinstance(chunk_id, str) else tuple(chunk_id)


def split_of(row: dict, dev_size: float) -> str:
    """Keep the given split, but hold some training questions out to choose the checkpoint by."""
    draw = int(hashlib.sha256(row["question_id"].encode()).hexdigest(), 16) % 1000 / 1000
    return "dev" if row["split"] == "train" and draw < dev_size else row["split"]


def main(
    folder: str,
    *,
    model_name: str = "minilm",
    loss: str = "in-batch",
    epochs: float = 2,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    dropout: float | None = 0.0,
    dev_size: float = 0.1,
    seed: int = 42,
    output: str = "out/benchmark",
) -> dict[str, Verdict]:
    data = read_dataset(Path(folder), dev_size)
    print(data, "\n")
    model = et.load_model(model_name)
    evaluators = {split: et.TopKEvaluator(data, split) for split in data.splits if split not in ("train", "dev")}
    base = {split: evaluator.evaluate(model, name="base") for split, evaluator in evaluators.items()}

    args = et.TuningArguments(
        output,
        loss=loss,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=batch_size,
        dropout=dropout,
        seed=seed,
    )
    et.EmbeddingTrainer(model, args, data=data).train()

    verdicts = {}
    for split, evaluator in evaluators.items():
        tuned, bm25 = evaluator.evaluate(model, name=f"tuned, {loss}"), evaluator.evaluate(et.BM25())
        verdicts[split] = et.compare(base[split], tuned, bm25)
        print(f"\n{split}\n\n{verdicts[split]}")
    return verdicts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where chunks.jsonl and questions.jsonl are")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--loss", default="in-batch", help="in-batch, triplet or cosine")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.0, help="0 is faster on a CPU")
    parser.add_argument("--dev-size", type=float, default=0.1, help="share of the training questions for choosing")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", default="out/benchmark", help="where checkpoints go")
    main(**vars(parser.parse_args()))
