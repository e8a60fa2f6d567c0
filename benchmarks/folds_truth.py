"""Whether the intervals of folds over a few documents contain what the same retriever gains on all the others.

    python benchmarks/folds_truth.py FOLDER --documents 20 --repeats 40

FOLDER is as for examples/benchmark_dataset.py. Each repetition draws documents, judges a cheap model (MiniLM's word embeddings, averaged)
on their questions by five folds, then trains on all of them and evaluates on the questions of all other documents: the truth. The
chunks of all documents are searched every time; --corpus says how many documents that are, the first of the folder.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import disable_progress_bars
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import embedtune as et
from embedtune.dataset.folds import document_of_questions
from embedtune.evaluation.verdict import compare
from embedtune.retrieval.retriever import Retriever
from embedtune.training.experiments.cross_validation import with_all_in_train
from embedtune.training.fit import evaluations, fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import as_tuple, read_dataset, read_lines


def cheap_model() -> SentenceTransformer:
    minilm = et.load_model("minilm", device="cpu")
    table = minilm[0].auto_model.embeddings.word_embeddings.weight.detach()
    axes = torch.linalg.eigh(table.T @ table).eigenvectors[:, -64:]  # the 64 principal ones: six times as fast to train
    table = table @ axes
    tokenizer = minilm.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


def first_documents(folder: Path, num_documents: int) -> Path:
    """Write the first documents of a folder, and their questions, to a folder of their own."""
    chunks, questions = (read_lines(folder / name) for name in ("chunks.jsonl", "questions.jsonl"))
    documents = set(list(dict.fromkeys(row["doc_id"] for row in chunks))[:num_documents])
    chunks = [row for row in chunks if row["doc_id"] in documents]
    known = {row["chunk_id"] for row in chunks}
    questions = [row for row in questions if known.issuperset(as_tuple(row["chunk_id"]))]
    written = Path(tempfile.mkdtemp())
    for name, rows in (("chunks.jsonl", chunks), ("questions.jsonl", questions)):
        (written / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return written


def parts(data: et.RetrievalDataset, documents: dict[str, str], num_documents: int, seed: int):
    """Return the dataset with the questions about some documents, and with those about the others."""
    rng = np.random.default_rng(seed)
    chosen = set(rng.permutation(sorted(set(documents.values())))[:num_documents].tolist())
    rows = data.qrels["train"]
    is_chosen = np.array([documents.get(query) in chosen for query in rows["query-id"][:]])
    few, rest = rows.select(np.flatnonzero(is_chosen)), rows.select(np.flatnonzero(~is_chosen))
    return replace(data, qrels={"train": few}), replace(data, qrels={"train": few, "test": rest})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--corpus", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    data = with_all_in_train(read_dataset(first_documents(args.folder, args.corpus), dev_size=0))
    documents = document_of_questions(data, data.relevant("train"))
    base = cheap_model()
    before = Retriever.from_dataset(base, data, word_weight=0, show_progress_bar=False)
    held = np.zeros(2, dtype=int)
    for seed in range(args.repeats):
        few, split = parts(data, documents, args.documents, seed)
        settings = et.TuningArguments(
            tempfile.mkdtemp(), seed=seed, use_cpu=True, disable_tqdm=True, report_to=[], eval_strategy="no",
            save_strategy="no", logging_strategy="no", learning_rate=2e-3, num_train_epochs=3, check_saved=False,
        )  # fmt: skip
        judged = et.cross_validate(base, few, output_dir=tempfile.mkdtemp(), args=settings, seed=seed).verdict
        true = evaluations(before, fit(before, few, settings), et.TopKEvaluator(split, "test"))
        line = f"{seed + 1:3} {judged.num_queries:5} questions"
        # The tuned retriever, and the tuned model alone, beside the base model.
        for column, (after, true_after) in enumerate(((judged.after, true[1]), (judged.baselines[1], true[3]))):
            change = compare(judged.before, after).comparisons[0].metrics["ndcg@10"]
            truth = true_after.metrics["ndcg@10"] - true[0].metrics["ndcg@10"]
            held[column] += change.low <= truth <= change.high
            line += f" | {after.name} {change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f}), others {truth:+.3f}"
        print(f"{line} | held {held[0]}, {held[1]} of {seed + 1}", flush=True)


if __name__ == "__main__":
    main()
