"""Train a model on question-chunk pairs of your own, and half of its layers twice: on the pairs alone, and with the whole as its teacher.

    python examples/distill.py FOLDER --epochs 2

FOLDER is as for benchmark_dataset.py.
"""

import argparse
import time
from pathlib import Path

from benchmark_dataset import read_dataset
from compare_recipes import accuracies, change
from sentence_transformers import SentenceTransformer

import embedtune as et
from embedtune.training.distill import DistillationLoss, score_candidates


def first_layers(model: SentenceTransformer, share: float = 0.5) -> SentenceTransformer:
    """Keep the first layers of a BERT."""
    backbone = model[0].model
    kept = max(1, int(len(backbone.encoder.layer) * share))
    backbone.encoder.layer = backbone.encoder.layer[:kept]
    backbone.config.num_hidden_layers = kept
    return model


def main(
    folder: str,
    *,
    model_name: str = "minilm",
    epochs: float = 2,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    num_candidates: int = 8,
    seed: int = 42,
    output: str = "out/distill",
) -> None:
    data = read_dataset(Path(folder), dev_size=0)
    print(data)
    evaluators = {split: et.TopKEvaluator(data, split) for split in data.splits if split != "train"}

    def show(name, model, seconds, before=None):
        results = {split: evaluator.evaluate(model, name=name) for split, evaluator in evaluators.items()}
        for split, result in results.items():
            difference = change(before[split], result) if before else ""
            print(f"{name:<18} {split:<16} {accuracies(result)}  {difference}  {seconds:.0f} CPU seconds", flush=True)
        return results

    def trained(name, model, **options):
        args = et.TuningArguments(
            f"{output}/{name}",
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            frozen_layers=0.0,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            seed=seed,
            disable_tqdm=True,
        )
        start = time.process_time()
        trainer = et.EmbeddingTrainer(model, args, data=data, **options)
        trainer.train()
        return trainer.model.eval(), time.process_time() - start

    teacher, seconds = trained("teacher", et.load_model(model_name))
    show("teacher", teacher, seconds)
    show("student, untrained", first_layers(et.load_model(model_name)), 0)
    alone, seconds = trained("alone", first_layers(et.load_model(model_name)))
    before = show("pairs alone", alone, seconds)
    start = time.process_time()
    student = first_layers(et.load_model(model_name))
    rows = score_candidates(teacher, data, model=teacher, path=f"{output}/scores", num_candidates=num_candidates)
    asked = time.process_time() - start
    distilled, seconds = trained("distilled", student, train_dataset=rows, loss=DistillationLoss)
    show("distilled", distilled, asked + seconds, before)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where chunks.jsonl and questions.jsonl are")
    parser.add_argument(
        "--model", dest="model_name", default="minilm", help="a BERT: a name on the Hub, a folder, or minilm"
    )
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-candidates", type=int, default=8)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", default="out/distill", help="where checkpoints and scores go")
    main(**vars(parser.parse_args()))
