"""Which loss suits question-chunk pairs of your own, and how much data is enough?

    python examples/which_loss.py FOLDER --epochs 2 --test-split test_unseen_doc

FOLDER is as for benchmark_dataset.py.
"""

import argparse
import logging
from pathlib import Path

from benchmark_dataset import read_dataset

import embedtune as et
from embedtune.training.experiments.learning_curve import LearningCurve
from embedtune.training.experiments.loss_comparison import LossComparison


def main(
    folder: str,
    *,
    model_name: str = "minilm",
    epochs: float = 2,
    learning_rate: float = 5e-5,
    num_negatives: int = 1,
    dev_size: float = 0.3,
    test_split: str = "test",
    only: str | None = None,
    seed: int = 42,
) -> tuple[LossComparison | None, LearningCurve | None]:
    data = read_dataset(Path(folder), dev_size)
    print(data, "\n")
    args = et.TuningArguments(
        "unused",
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        num_negatives=num_negatives,
        dropout=0.0,
        seed=seed,
        disable_tqdm=True,
    )
    comparison = curve = None
    if only != "curve":
        comparison = et.compare_losses(model_name, data, args=args, test_split=test_split)
        print(f"\n{comparison}\n")
    if only != "losses":
        curve = et.learning_curve(model_name, data, args=args, split=test_split)
        print(f"\n{curve}")
    return comparison, curve


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    logging.getLogger("embedtune").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where chunks.jsonl and questions.jsonl are")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--num-negatives", type=int, default=1, help="drawn for each question by triplet and cosine")
    parser.add_argument("--dev-size", type=float, default=0.3, help="share of the training questions for choosing")
    parser.add_argument("--test-split", default="test", help="the questions that the choice is confirmed with")
    parser.add_argument("--only", choices=["losses", "curve"])
    parser.add_argument("--seed", type=int, default=42)
    main(**vars(parser.parse_args()))
