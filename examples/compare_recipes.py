"""Train one model in several ways on question-chunk pairs of your own, and compare what each costs and gains.

    python examples/compare_recipes.py FOLDER in-batch mined remined
    python examples/compare_recipes.py FOLDER in-batch query-lora query-linear query-route

FOLDER is as for benchmark_dataset.py. Every recipe begins with the same base model and sees the same questions.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from benchmark_dataset import read_dataset

import embedtune as et

Build = Callable[[et.RetrievalDataset, et.TuningArguments], et.EmbeddingTrainer]


def in_batch(data, args):
    return et.EmbeddingTrainer(et.load_model("minilm"), args, data=data)


def mined(data, args):
    """In-batch negatives, and for each question one chunk that the base model ranks high."""
    model = et.load_model("minilm")
    return et.EmbeddingTrainer(model, args, data=data, train_dataset=et.mine_hard_negatives(model, data))


def remined(data, args):
    """The same, mined anew at every epoch."""
    model = et.load_model("minilm")
    remine = et.RemineNegatives(model, data)
    return et.EmbeddingTrainer(model, args, data=data, train_dataset=remine.dataset, callbacks=[remine])


def triplet_mined(data, args):
    """The triplet loss, anchored at the question, with one mined chunk as its negative."""
    model = et.load_model("minilm")
    rows = et.mine_hard_negatives(model, data, loss="triplet")
    return et.EmbeddingTrainer(model, args, data=data, train_dataset=rows, loss=et.TripletMarginLoss)


def triplet_hardest(data, args):
    """The triplet loss, anchored at the question, with the nearest wrong chunk of the batch as its negative."""
    model = et.load_model("minilm")
    return et.EmbeddingTrainer(model, args, data=data, loss=et.TripletMarginLoss(model, negatives="hardest"))


def query_side(query: str, learning_rate: float) -> Build:
    """The query side alone, against every chunk that may be trained on."""

    def build(data, args):
        args.learning_rate = learning_rate
        return et.FrozenIndexTrainer(et.freeze_index(et.load_model("minilm"), query=query), args, data=data)

    return build


RECIPES: dict[str, Build] = {
    "in-batch": in_batch,
    "mined": mined,
    "remined": remined,
    "triplet-mined": triplet_mined,
    "triplet-hardest": triplet_hardest,
    "query-lora": query_side("lora", 2e-4),
    "query-linear": query_side("linear", 1e-3),
    "query-route": query_side("route", 5e-5),
}


def main(folder: str, recipes: list[str], *, epochs: float, learning_rate: float, seed: int, output: str) -> None:
    data = read_dataset(Path(folder), dev_size=0.1)
    print(data)
    evaluators = {split: et.TopKEvaluator(data, split) for split in data.splits if split not in ("train", "dev")}
    model = et.load_model("minilm")
    base = {split: evaluator.evaluate(model, name="base") for split, evaluator in evaluators.items()}
    for split, result in base.items():
        print(f"{'base':<16} {split:<16} {accuracies(result)}")
    for name in recipes:
        args = et.TuningArguments(
            output,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            dropout=0.0,
            seed=seed,
            disable_tqdm=True,
        )
        start = time.process_time()
        trainer = RECIPES[name](data, args)
        trainer.train()
        seconds = time.process_time() - start
        for split, evaluator in evaluators.items():
            tuned = evaluator.evaluate(trainer.model, name=name)
            verdict = et.compare(base[split], tuned)
            change = verdict.metrics[verdict.primary_metric]
            print(
                f"{name:<16} {split:<16} {accuracies(tuned)}  {verdict.primary_metric} {change.difference:+.3f} "
                f"({change.low:+.3f} to {change.high:+.3f}) {verdict.decision:<12} {seconds:.0f} CPU seconds",
                flush=True,
            )


def accuracies(result: et.Evaluation) -> str:
    return "@1/3/5/10 " + "/".join(f"{100 * result.metrics[f'accuracy@{k}']:.0f}" for k in (1, 3, 5, 10))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where chunks.jsonl and questions.jsonl are")
    parser.add_argument("recipes", nargs="+", choices=RECIPES, help="what to compare")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of the recipes that train the whole model")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", default="out/recipes", help="where checkpoints go")
    main(**vars(parser.parse_args()))
