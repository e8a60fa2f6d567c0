"""The tuned retriever beside the base model, BM25 and its own halves, on datasets of your own.

    python benchmarks/tuned_retriever.py FOLDER... --seeds 0 1 2

Each FOLDER is as for examples/benchmark_dataset.py. MiniLM with at most 256 tokens, all training questions, the whole corpus as
candidates, one thread. Prints accuracy@1/3/5/10 and nDCG@10 in % for each set, seed, test split and retriever, and the processor
time of everything from the base model to the saved retriever, one evaluation included.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import disable_progress_bars

import embedtune as et

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import read_dataset


def measure(folder: Path, seed: int) -> None:
    data = read_dataset(folder, dev_size=0)
    model = et.load_model("minilm", device="cpu", max_seq_length=256)
    args = et.TuningArguments(
        "unused", seed=seed, use_cpu=True, disable_tqdm=True, report_to=[], eval_strategy="no", save_strategy="no",
        logging_strategy="no", load_best_model_at_end=False, check_saved=False,
    )  # fmt: skip
    splits = [split for split in data.splits if split.startswith("test")]
    start = time.process_time()
    run = et.tune(model, data, output_dir=tempfile.mkdtemp(), args=args, test_split=splits[-1])
    seconds = time.process_time() - start
    rows = {
        "base model": model,
        "BM25": et.BM25(),
        "tuned model alone": run.retriever.with_word_weight(0),
        "tuned words alone": et.BM25(weights=run.retriever.fusion.weights),
        "tuned retriever": run.retriever,
    }
    for split in splits:
        for name, retriever in rows.items():
            metrics = et.TopKEvaluator(data, split).evaluate(retriever).metrics
            shares = "/".join(f"{100 * metrics[f'accuracy@{k}']:.0f}" for k in (1, 3, 5, 10))
            print(
                f"{folder.name:16} seed {seed} {split:16} {name:18} {shares:13} {100 * metrics['ndcg@10']:.1f}",
                flush=True,
            )
    print(f"{folder.name:16} seed {seed} {seconds:.0f} s, multiple {run.retriever.words.multiple:g}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    for folder in options.folders:
        for seed in options.seeds:
            measure(folder, seed)
