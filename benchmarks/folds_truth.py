"""Whether the intervals of folds over a few documents contain what the same retriever gains on all the others.

    python benchmarks/folds_truth.py FOLDER --documents 20 --repeats 40

FOLDER is as for examples/benchmark_dataset.py. Each repetition draws documents, judges a cheap model (MiniLM's word embeddings, averaged)
on their questions by five folds, then trains on all of them and evaluates on the questions of all other documents: the truth. The whole
corpus is searched every time.
"""

import argparse
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
from benchmark_dataset import read_dataset


def cheap_model() -> SentenceTransformer:
    minilm = et.load_model("minilm", device="cpu")
    table = minilm[0].auto_model.embeddings.word_embeddings.weight.detach().clone()
    tokenizer = minilm.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


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
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    data = with_all_in_train(read_dataset(args.folder, dev_size=0))
    documents = document_of_questions(data, data.relevant("train"))
    base = cheap_model()
    before = Retriever.from_dataset(base, data, word_weight=0, show_progress_bar=False)
    held = 0
    for seed in range(args.repeats):
        few, split = parts(data, documents, args.documents, seed)
        settings = et.TuningArguments(
            tempfile.mkdtemp(), seed=seed, use_cpu=True, disable_tqdm=True, report_to=[], eval_strategy="no",
            save_strategy="no", logging_strategy="no", learning_rate=2e-3, num_train_epochs=3, check_saved=False,
        )  # fmt: skip
        found = et.cross_validate(base, few, output_dir=tempfile.mkdtemp(), args=settings, seed=seed)
        change = found.verdict.comparisons[0].metrics["ndcg@10"]
        retriever = fit(before, few, settings)
        truth = compare(*evaluations(before, retriever, et.TopKEvaluator(split, "test"))[:2]).comparisons[0]
        true_difference = truth.metrics["ndcg@10"].difference
        held += change.low <= true_difference <= change.high
        print(
            f"{seed + 1:3} {found.verdict.num_queries:5} questions: {change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f}), "
            f"on the others {true_difference:+.3f}; {held} of {seed + 1} intervals contain it",
            flush=True,
        )


if __name__ == "__main__":
    main()
