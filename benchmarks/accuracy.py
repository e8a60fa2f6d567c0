"""What a minute of computing buys: accuracy on held-out questions against the processor time spent on training.

    python benchmarks/accuracy.py FOLDER --minutes 1 2 4 --loss triplet

FOLDER is as for examples/benchmark_dataset.py. embedtune and sentence-transformers' own trainer fit the same model to the same rows
with the same loss, batch size and constant learning rate, each until its time is up; the evaluations between do not count. On one
thread the time is the process's own CPU time, else the clock's.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import disable_progress_bars
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from transformers import TrainerCallback

import embedtune as et

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from benchmark_dataset import read_dataset


class Stock(SentenceTransformerTrainer):
    """The stock trainer, which takes the same arguments."""

    training_args_class = et.TuningArguments


class Minutes(TrainerCallback):
    """Evaluates when so many minutes of training are over, and stops after the last."""

    def __init__(self, minutes, evaluate, clock):
        self.left, self.evaluate, self.clock = list(minutes), evaluate, clock
        self.paused = 0.0

    def on_train_begin(self, *_, **__):
        self.start = self.clock()

    def on_step_end(self, _args, state, control, **_kwargs):
        spent = self.clock() - self.start - self.paused
        if spent < 60 * self.left[0]:
            return
        before = self.clock()
        self.evaluate(spent / 60, state.epoch)
        self.paused += self.clock() - before
        self.left.pop(0)
        control.should_training_stop = not self.left


def train(name: str, args: argparse.Namespace, data: et.RetrievalDataset) -> None:
    model = et.load_model("minilm", max_seq_length=args.max_seq_length)
    splits = [split for split in data.splits if split not in ("train", "dev")]
    evaluators = {split: et.TopKEvaluator(data, split) for split in splits}

    def evaluate(minutes, epochs):
        was_training = model.training
        for split, evaluator in evaluators.items():
            metrics = evaluator.evaluate(model).metrics
            found = "/".join(f"{100 * metrics[f'accuracy@{k}']:.0f}" for k in (3, 5, 10))
            print(f"| {name} | {minutes:.1f} | {epochs:.1f} | {split} | {found} |", flush=True)
        model.train(was_training)

    if name == "base":
        evaluate(0, 0)
        return
    settings = et.TuningArguments(
        tempfile.mkdtemp(),
        loss=args.loss,
        per_device_train_batch_size=args.batch_size,
        num_train_epochs=10_000,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        dropout=0.0,
        seed=args.seed,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
    )
    clock = time.process_time if args.threads == 1 else time.perf_counter
    tuned = et.EmbeddingTrainer(model, settings, data=data, callbacks=[Minutes(args.minutes, evaluate, clock)])
    if name == "embedtune":
        tuned.train()
        return
    # The same rows, loss and dropout, for the stock trainer.
    callbacks = [Minutes(args.minutes, evaluate, clock)]
    Stock(model=model, args=tuned.args, train_dataset=tuned.train_dataset, loss=tuned.loss, callbacks=callbacks).train()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 2, 4])
    parser.add_argument("--loss", choices=("triplet", "cosine", "in-batch"), default="triplet")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--contenders", nargs="+", default=["base", "sentence-transformers", "embedtune"])
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    disable_progress_bars()
    data = read_dataset(args.folder, dev_size=0)
    print(f"{data}\n\n{args.loss}, batches of {args.batch_size}, learning rate {args.learning_rate}\n")
    print("| | minutes | epochs | questions | accuracy@3/5/10 |\n|---|---|---|---|---|")
    for name in args.contenders:
        train(name, args, data)


if __name__ == "__main__":
    main()
