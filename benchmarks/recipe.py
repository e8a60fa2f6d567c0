"""What the default recipe gains and costs, beside plain sentence-transformers and other recipes.

    python benchmarks/recipe.py FOLDER... --seeds 0 1 2 --recipes base sentence-transformers default shuffled

Each FOLDER is as for examples/benchmark_dataset.py. Every recipe trains MiniLM on all training questions and is evaluated on every test
split, with the whole corpus as candidates. Runs on one thread; the time is the processor time of training, without evaluation.
Prints one line per set, recipe and split: means over the seeds and, in brackets, the lowest and the highest nDCG@10.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

import torch
from datasets import disable_progress_bars
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

import embedtune as et

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import read_dataset

CUT_OFFS = (1, 3, 5, 10)

# Each differs from the default in these arguments alone. "dev split" holds out a tenth of the training questions and keeps the
# epoch that finds most of them.
RECIPES = {
    "default": {},
    "all layers": {"frozen_layers": 0.0, "learning_rate": 5e-5},
    "dropout": {"dropout": None},
    "shuffled": {
        "group_rows": False, "frozen_layers": 0.0, "dropout": None, "learning_rate": 5e-5, "num_train_epochs": 3,
        "per_device_train_batch_size": 32,
    },
    "dev split": {
        "group_rows": False, "frozen_layers": 0.0, "dropout": None, "learning_rate": 5e-5, "num_train_epochs": 3,
        "per_device_train_batch_size": 32, "eval_strategy": "epoch", "save_strategy": "epoch",
        "load_best_model_at_end": True, "save_only_model": True,
    },
}  # fmt: skip


def trainer_of(recipe: str, model: SentenceTransformer, data: et.RetrievalDataset, args: argparse.Namespace, seed: int):
    common = {
        "output_dir": tempfile.mkdtemp(), "seed": seed, "use_cpu": True, "disable_tqdm": True, "report_to": "none",
        "eval_strategy": "no", "save_strategy": "no", "logging_strategy": "no",
    }  # fmt: skip
    if recipe == "sentence-transformers":
        settings = SentenceTransformerTrainingArguments(
            per_device_train_batch_size=32,
            learning_rate=5e-5,
            warmup_steps=0.1,
            num_train_epochs=args.st_epochs,
            **common,
        )
        loss = MultipleNegativesRankingLoss(model)
        return SentenceTransformerTrainer(model=model, args=settings, train_dataset=data.pairs("train"), loss=loss)
    common |= {"eval_on_start": False, "load_best_model_at_end": False}
    return et.EmbeddingTrainer(model, et.TuningArguments(**(common | RECIPES[recipe])), data=data)


def run(recipe: str, data: et.RetrievalDataset, args: argparse.Namespace, seed: int):
    """Return the processor seconds of a training, and the metrics of every test split."""
    torch.manual_seed(seed)
    model = et.load_model("minilm", device="cpu", max_seq_length=args.max_seq_length)
    seconds = 0.0
    if recipe != "base":
        trainer = trainer_of(recipe, model, data, args, seed)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
    splits = [split for split in data.splits if split.startswith("test")]
    return seconds, {split: et.TopKEvaluator(data, split, k=CUT_OFFS).evaluate(model).metrics for split in splits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--recipes", nargs="+", default=["base", "sentence-transformers", "default"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--st-epochs", type=float, default=2, help="epochs of plain sentence-transformers")
    parser.add_argument("--max-seq-length", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    print("| set | recipe | split | accuracy@1/3/5/10 | nDCG@10 | processor seconds |\n|---|---|---|---|---|---|")
    for folder in args.folders:
        for recipe in args.recipes:
            data = read_dataset(folder, dev_size=0.1 if recipe == "dev split" else 0)
            runs = [run(recipe, data, args, seed) for seed in (args.seeds if recipe != "base" else [0])]
            seconds = fmean(seconds for seconds, _ in runs)
            for split in runs[0][1]:
                found = [metrics[split] for _, metrics in runs]
                accuracy = "/".join(f"{100 * fmean(m[f'accuracy@{k}'] for m in found):.0f}" for k in CUT_OFFS)
                ndcg = [100 * m["ndcg@10"] for m in found]
                spread = f"{fmean(ndcg):.1f} ({min(ndcg):.1f} to {max(ndcg):.1f})"
                print(f"| {folder.name} | {recipe} | {split} | {accuracy} | {spread} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
