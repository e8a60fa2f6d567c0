"""Train one model in several ways on question-chunk pairs of your own, and compare what each costs and gains.

    python examples/compare_recipes.py FOLDER in-batch mined
    python examples/compare_recipes.py FOLDER in-batch query-lora query-linear query-route
    python examples/compare_recipes.py FOLDER triplet triplet-shuffled --batch-size 128

FOLDER is as for benchmark_dataset.py. Every recipe begins with the same base model and sees the same questions.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmark_dataset import read_dataset
from sentence_transformers import SentenceTransformer

import embedtune as et
from embedtune.evaluation.result import Evaluation
from embedtune.training.frozen_index import FrozenIndexLoss

Build = Callable[[SentenceTransformer, et.RetrievalDataset, et.TuningArguments], et.EmbeddingTrainer]


def in_batch(model, data, args):
    return et.EmbeddingTrainer(model, args, data=data)


def mined(model, data, args):
    """In-batch negatives, and for each question one chunk that the base model ranks high."""
    return et.EmbeddingTrainer(model, args, data=data, train_dataset=et.mine_hard_negatives(model, data))


def triplet(model, data, args):
    """The article's loss: the chunk against its question and five random others, rows about one chunk together."""
    return et.EmbeddingTrainer(model, args, data=data, loss=et.TripletMarginLoss)


def triplet_shuffled(model, data, args):
    """The same rows, in random order."""
    args.group_rows = False
    return et.EmbeddingTrainer(model, args, data=data, loss=et.TripletMarginLoss)


def triplet_mined(model, data, args):
    """The triplet loss, anchored at the question, with one mined chunk as its negative."""
    rows = et.mine_hard_negatives(model, data, loss="triplet")
    return et.EmbeddingTrainer(model, args, data=data, train_dataset=rows, loss=et.TripletMarginLoss)


def triplet_hardest(model, data, args):
    """The triplet loss, anchored at the question, with the nearest wrong chunk of the batch as its negative."""
    return et.EmbeddingTrainer(model, args, data=data, loss=et.TripletMarginLoss(model, negatives="hardest"))


def query_side(query: str, learning_rate: float, *, against_held_out: bool = False) -> Build:
    """The query side alone, against every chunk that may be trained on, or even those of held-out documents."""

    def build(model, data, args):
        args.learning_rate = learning_rate
        model = et.freeze_index(model, query=query)
        corpus = replace(data, qrels={"train": data.qrels["train"]}) if against_held_out else data
        return et.FrozenIndexTrainer(model, args, data=data, loss=FrozenIndexLoss(model, corpus))

    return build


RECIPES: dict[str, Build] = {
    "in-batch": in_batch,
    "mined": mined,
    "triplet": triplet,
    "triplet-shuffled": triplet_shuffled,
    "triplet-mined": triplet_mined,
    "triplet-hardest": triplet_hardest,
    "query-lora": query_side("lora", 2e-4),
    "query-linear": query_side("linear", 1e-3),
    "query-route": query_side("route", 5e-5),
    "query-linear-all": query_side("linear", 1e-3, against_held_out=True),
    "query-route-all": query_side("route", 5e-5, against_held_out=True),
}


def main(
    folder: str,
    recipes: list[str],
    *,
    model_name: str = "minilm",
    epochs: float = 2,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    seed: int = 42,
    output: str = "out/recipes",
) -> None:
    data = read_dataset(Path(folder), dev_size=0.1)
    print(data)
    evaluators = {split: et.TopKEvaluator(data, split) for split in data.splits if split not in ("train", "dev")}
    base = {split: e.evaluate(et.load_model(model_name), name="base") for split, e in evaluators.items()}
    for split, result in base.items():
        print(f"{'base':<16} {split:<16} {accuracies(result)}")
    for name in recipes:
        args = et.TuningArguments(
            f"{output}/{name}",
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            dropout=0.0,
            seed=seed,
            disable_tqdm=True,
        )
        model = et.load_model(model_name)
        start = time.process_time()
        trainer = RECIPES[name](model, data, args)
        trainer.train()
        seconds = time.process_time() - start
        for split, evaluator in evaluators.items():
            tuned = evaluator.evaluate(trainer.model, name=name)
            print(
                f"{name:<16} {split:<16} {accuracies(tuned)}  {change(base[split], tuned)}  {seconds:.0f} CPU seconds"
            )


def change(before: Evaluation, after: Evaluation) -> str:
    verdict = et.compare(before, after)
    change = verdict.metrics[verdict.primary_metric]
    interval = f"{change.low:+.3f} to {change.high:+.3f}"
    return f"{verdict.primary_metric} {change.difference:+.3f} ({interval}) {verdict.decision}"


def accuracies(result: Evaluation) -> str:
    return "@1/3/5/10 " + "/".join(f"{100 * result.metrics[f'accuracy@{k}']:.0f}" for k in (1, 3, 5, 10))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where chunks.jsonl and questions.jsonl are")
    parser.add_argument("recipes", nargs="+", choices=RECIPES, help="what to compare")
    parser.add_argument("--model", dest="model_name", default="minilm", help="a name on the Hub, a folder, or minilm")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of the recipes that train the whole model")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", default="out/recipes", help="where checkpoints go")
    main(**vars(parser.parse_args()))
