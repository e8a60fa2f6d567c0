"""What fine-tuning forgets, and what merging with the base restores.

    python benchmarks/forgetting.py FOLDER --general FOLDER --epochs 2

Both folders contain chunks.jsonl and questions.jsonl (see examples/benchmark_dataset.py). The model is tuned on the training
questions of the first folder and evaluated on all questions of the second.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch

import embedtune as et

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from benchmark_dataset import read_dataset


def general_of(folder: str) -> et.RetrievalDataset:
    """Combine all test questions of a folder in one split."""
    data = read_dataset(Path(folder), 0)
    judgements = [row for split in data.splits if split != "train" for row in data.qrels[split]]
    return et.RetrievalDataset(data.corpus, data.queries, {"test": type(data.corpus).from_list(judgements)})


def main(folder: str, *, general: str, loss: str, epochs: float, learning_rate: float, output_dir: str) -> None:
    torch.set_num_threads(1)
    data, other = read_dataset(Path(folder), 0.1), general_of(general)
    base = et.load_model("minilm", device="cpu")
    tuned = copy.deepcopy(base)
    args = et.TuningArguments(
        output_dir, loss=loss, num_train_epochs=epochs, learning_rate=learning_rate, dropout=0.0, seed=42, disable_tqdm=True,
        per_device_train_batch_size=32,
    )  # fmt: skip
    et.EmbeddingTrainer(tuned, args, data=data).train()
    merge = et.merge_with_base(tuned, base, data=data)
    print(f"alpha = {merge.alpha}; on the dev split: ", end="")
    print(", ".join(f"{a}: {e.metrics['ndcg@10']:.3f}" for a, e in merge.evaluations.items()))
    for split in [split for split in data.splits if split not in ("train", "dev")]:
        evaluator = et.TopKEvaluator(data, split)
        before = evaluator.evaluate(base, name="base")
        for name, model in (("tuned", tuned), ("merged", merge.model)):
            print(f"{split}, {name}: {et.compare(before, evaluator.evaluate(model, name=name)).sentence}")
    for name, model in (("tuned", tuned), ("merged", merge.model)):
        print(f"embedtune's general knowledge, {name}: {et.check_forgetting(base, model).sentence}")
        print(f"{Path(general).name}, {name}: {et.check_forgetting(base, model, data=other).sentence}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="dataset to tune on")
    parser.add_argument("--general", required=True, help="dataset to evaluate forgetting on")
    parser.add_argument("--loss", default="in-batch", help="in-batch, triplet or cosine")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--output-dir", default="out/forgetting", help="folder for checkpoints")
    main(**vars(parser.parse_args()))
