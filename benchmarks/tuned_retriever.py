"""The tuned retriever beside the base model, BM25 and its own halves, on datasets of your own.

    python benchmarks/tuned_retriever.py FOLDER... --seeds 0 1 2

Each FOLDER is as for examples/benchmark_dataset.py. MiniLM with at most 256 tokens, all training questions, the whole corpus as
candidates, one thread. Prints a table of accuracy@1/3/5/10 and nDCG@10 in %, means over the seeds, and the nDCG@10 of the worst and the best
seed in brackets; then the difference of the tuned retriever's nDCG@10 with its 95% interval, which covers seeds and, for unseen documents,
counts documents. On stderr the processor time of everything from the base model to the saved retriever, one evaluation included.
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
from embedtune.evaluation.result import Evaluation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import read_dataset

ROWS = ("base model", "BM25", "tuned model alone", "tuned words alone", "tuned retriever")


def train(data: et.RetrievalDataset, splits: list[str], seed: int) -> tuple[dict[str, list[Evaluation]], float, str]:
    """Return the results of each split, the processor time, and what was learned."""
    model = et.load_model("minilm", device="cpu", max_seq_length=256)
    args = et.TuningArguments(
        "unused", seed=seed, use_cpu=True, disable_tqdm=True, report_to=[], eval_strategy="no", save_strategy="no",
        logging_strategy="no", load_best_model_at_end=False, check_saved=False,
    )  # fmt: skip
    start = time.process_time()
    run = et.tune(model, data, output_dir=tempfile.mkdtemp(), args=args, test_split=splits[-1])
    seconds = time.process_time() - start
    retriever = run.retriever
    alone = retriever.with_word_weight(0), et.BM25(weights=retriever.fusion.weights)
    rows = dict(zip(ROWS, (model, et.BM25(), *alone, retriever), strict=True))
    found = {
        split: [et.TopKEvaluator(data, split).evaluate(one, name=name) for name, one in rows.items()]
        for split in splits
    }
    return found, seconds, f"multiple {retriever.words.multiple:g}"


def over_seeds(results: tuple[Evaluation, ...], documents: tuple[str, ...] | None) -> Evaluation:
    first, *others = results
    return replace(first, repeats=tuple(other.per_query for other in others), documents=documents)


def shown(result: Evaluation) -> str:
    shares = "/".join(f"{100 * result.metrics[f'accuracy@{k}']:.0f}" for k in (1, 3, 5, 10))
    by_seed = 100 * result.per_seed_metrics["ndcg@10"].mean(axis=1)
    spread = f" ({by_seed.min():.1f} to {by_seed.max():.1f})" if by_seed.max() > by_seed.min() else ""
    return f"{shares} {100 * result.metrics['ndcg@10']:.1f}{spread}"


def difference(before: Evaluation, after: Evaluation) -> str:
    comparison = et.compare(before, after).comparisons[0]
    change = comparison.metrics["ndcg@10"]
    return f"{change.difference:+.3f} ({change.low:+.3f} to {change.high:+.3f}), {comparison.decision}"


def measure(folder: Path, seeds: list[int]) -> None:
    data = read_dataset(folder, dev_size=0)
    splits = [split for split in data.splits if split.startswith("test")]
    runs = [train(data, splits, seed) for seed in seeds]
    for split in splits:
        relevant = data.relevant(split)
        of = document_of_questions(data, relevant)
        unseen = set(of.values()).isdisjoint(document_of_questions(data, data.relevant("train")).values())
        results = [
            over_seeds(found, tuple(of[query] for query in sorted(relevant)) if unseen else None)
            for found in zip(*(run[0][split] for run in runs), strict=True)
        ]
        base, bm25, *_, tuned = results
        about = f"{len(set(of.values()))} unseen documents" if unseen else f"{len(set(base.clusters))} seen chunks"
        cells = [folder.name, f"{base.num_queries} about {about}", *map(shown, results)]
        print("| " + " | ".join([*cells, difference(base, tuned), difference(bm25, tuned)]) + " |", flush=True)
    seconds = ", ".join(f"{run[1]:.0f}" for run in runs)
    print(
        f"  {folder.name}: {seconds} processor seconds; {', '.join(run[2] for run in runs)}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    print("| set | questions | " + " | ".join(ROWS) + " | retriever against base | against BM25 |")
    print("|" + "---|" * (len(ROWS) + 4))
    for folder in options.folders:
        measure(folder, options.seeds)
