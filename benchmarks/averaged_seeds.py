"""Is the average of several seeds' weights better than one seed? On datasets of your own.

    python benchmarks/averaged_seeds.py FOLDER... --seeds 0 1 2

Each FOLDER is as for examples/benchmark_dataset.py. MiniLM with at most 256 tokens, all training questions, one thread. The weights of the seeds'
models are averaged ("model soup", Wortsman et al., 2022, without a choice of ingredients), and the average is evaluated alone and in the
retriever, beside the single seeds. Prints accuracy@1/3/5/10 and nDCG@10 in %, for single seeds their mean and in brackets their range.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import torch
from datasets import disable_progress_bars

import embedtune as et
from embedtune.training.experiments.cross_validation import retriever_before, with_all_in_train
from embedtune.training.fit import fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import read_dataset

CUT_OFFS = (1, 3, 5, 10)


def average(models: list) -> object:
    """Average the weights of models, each as much as any other."""
    mean = models[0]
    for position, model in enumerate(models[1:], start=2):
        mean = et.merge_with_base(model, mean, alpha=1 / position).model
    return mean


def shown(found: list[dict[str, float]]) -> str:
    accuracy = "/".join(f"{100 * fmean(metrics[f'accuracy@{k}'] for metrics in found):.0f}" for k in CUT_OFFS)
    ndcg = [100 * metrics["ndcg@10"] for metrics in found]
    spread = f" ({min(ndcg):.1f} to {max(ndcg):.1f})" if len(ndcg) > 1 else ""
    return f"{accuracy} {fmean(ndcg):.1f}{spread}"


def measure(folder: Path, seeds: list[int]) -> None:
    data = read_dataset(folder, dev_size=0)
    splits = [split for split in data.splits if split.startswith("test")]
    before = retriever_before(et.load_model("minilm", device="cpu", max_seq_length=256), data, show_progress_bar=False)
    training = with_all_in_train(data, locked=splits)
    singles = []
    for seed in seeds:
        args = et.TuningArguments(
            tempfile.mkdtemp(), seed=seed, use_cpu=True, disable_tqdm=True, report_to=[], eval_strategy="no",
            save_strategy="no", logging_strategy="no", load_best_model_at_end=False, check_saved=False,
        )  # fmt: skip
        singles.append(fit(before, training, args))
    averaged = et.Retriever.from_dataset(
        average([single.model for single in singles]), training, words=singles[0].words, show_progress_bar=False
    )
    for split in splits:
        evaluator = et.TopKEvaluator(data, split, k=CUT_OFFS)
        cells = [
            shown(
                [
                    evaluator.evaluate(retriever.with_word_weight(0) if alone else retriever).metrics
                    for retriever in group
                ]
            )
            for alone in (True, False)
            for group in (singles, [averaged])
        ]
        print("| " + " | ".join([folder.name, split, *cells]) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    print(
        "| set | split | one model alone | averaged model alone | one retriever | averaged retriever |\n"
        + "|---" * 6
        + "|"
    )
    for one in options.folders:
        measure(one, options.seeds)
