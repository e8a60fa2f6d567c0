"""Evidence by five folds beside evidence by one fixed split: how wide the intervals are, and what the folds cost.

    python benchmarks/folds_and_split.py FOLDER... --sample

Each FOLDER is as for examples/benchmark_dataset.py, with a split of questions about documents that are not trained on; --sample is the
package's handbook. MiniLM with at most 256 tokens, the default recipe, one thread. The intervals are of the difference of the tuned retriever's
nDCG@10 to the base model, by document. Time is processor time: of all folds, evaluations included, over that of one training on all questions.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from datasets import disable_progress_bars

import embedtune as et
from embedtune.dataset.folds import document_of_questions
from embedtune.evaluation.comparison import Comparison
from embedtune.training.experiments.cross_validation import retriever_before, with_all_in_train
from embedtune.training.fit import fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import read_dataset


def sample() -> et.RetrievalDataset:
    handbook = et.load_sample()
    chunks = et.chunk_documents(handbook.documents, max_tokens=250, tokenizer=et.load_model("minilm", device="cpu"))
    return et.build_dataset(chunks, handbook.questions_for(chunks), test_size=0.2, dev_size=0)


def arguments() -> et.TuningArguments:
    return et.TuningArguments(
        tempfile.mkdtemp(), use_cpu=True, disable_tqdm=True, report_to=[], eval_strategy="no", save_strategy="no",
        logging_strategy="no", load_best_model_at_end=False, check_saved=False,
    )  # fmt: skip


def by_split(before: et.Retriever, data: et.RetrievalDataset, split: str) -> Comparison:
    """Train on everything but a split, and compare on it."""
    after = fit(before, with_all_in_train(data, locked=[split]), arguments())
    of = document_of_questions(data, data.relevant(split))
    documents = tuple(of[query] for query in sorted(of))
    evaluator = et.TopKEvaluator(data, split)
    return et.compare(*(replace(evaluator.evaluate(one), documents=documents) for one in (before, after))).comparisons[
        0
    ]


def measure(name: str, data: et.RetrievalDataset, split: str) -> None:
    base = et.load_model("minilm", device="cpu", max_seq_length=256)
    before = retriever_before(base, data, show_progress_bar=False)
    fixed = by_split(before, data, split)
    start = time.process_time()
    fit(before, with_all_in_train(data), arguments())
    one = time.process_time() - start
    start = time.process_time()
    folds = et.cross_validate(before, data, output_dir=tempfile.mkdtemp(), args=arguments()).verdict.comparisons[0]
    cost = (time.process_time() - start) / one
    cells = [name]
    for comparison in (fixed, folds):
        change = comparison.metrics["ndcg@10"]
        count = f"{comparison.other.num_queries} about {len(set(comparison.other.clusters))} documents"
        cells += [count, f"{change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f})", comparison.decision]
    widths = [comparison.metrics["ndcg@10"].high - comparison.metrics["ndcg@10"].low for comparison in (fixed, folds)]
    root = (folds.other.num_queries / fixed.other.num_queries) ** 0.5
    print("| " + " | ".join([*cells, f"{widths[0] / widths[1]:.1f}", f"{root:.1f}", f"{cost:.1f}"]) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--split", default="test_unseen_doc", help="the fixed split of the folders")
    parser.add_argument("--sample", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    print(
        "| set | fixed split: questions | difference | verdict | folds: questions | difference | verdict "
        "| times narrower | root of n | cost of the folds |\n" + "|---" * 10 + "|"
    )
    if options.sample:
        measure("the sample", sample(), "test")
    for folder in options.folders:
        measure(folder.name, read_dataset(folder, dev_size=0), options.split)
