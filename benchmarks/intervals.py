"""How often the interval of a difference contains the true difference, and how often a verdict is false.

    python benchmarks/intervals.py --trials 1000

Simulates two retrievers that answer the same questions. Documents, chunks and questions differ in difficulty and in what training
gains; documents have unequal numbers of questions (log-normal). With folds, each of five retrievers finds a little more or less than
the others, the same for all documents of its fold: `noise` is the standard deviation of that, in nDCG@10. Without a gain, every
"better" or "worse" is false. The standard error of a share of 1,000 trials is 0.7 points.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from embedtune.evaluation.statistics import paired_interval, permutation_p_values

# An advantage of 1 in this model is worth this much nDCG@10, for small advantages.
NDCG_OF_ADVANTAGE = 0.237


@dataclass(frozen=True)
class World:
    gain: float
    noise: float
    num_folds: int = 5
    sizes: float = 0.8  # standard deviation of the logarithm of a document's number of questions


def ndcg(ease: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rank = np.maximum(1, np.ceil(np.exp(1.2 - 1.2 * (ease + rng.normal(0, 0.5, ease.shape)))))
    return np.where(rank <= 10, 1 / np.log2(rank + 1), 0.0)


def draw(world: World, num_documents: int, num_seeds: int, rng: np.random.Generator):
    """Return the differences of each seed, of shape ``(num_seeds, num_questions)``, and the documents of the questions."""
    sizes = np.maximum(1, rng.lognormal(2.3, world.sizes, num_documents).round()).astype(int)
    document = np.repeat(np.arange(num_documents), sizes)
    fold = rng.permutation(np.arange(num_documents) % world.num_folds)[document]
    n = len(document)
    chunk = np.unique(document * 1000 + rng.integers(0, 1 + sizes[document] // 4), return_inverse=True)[1]
    ease = 0.3 + rng.normal(0, 0.5, num_documents)[document] + rng.normal(0, 0.5, n)[chunk] + rng.normal(0, 0.9, n)
    gain = world.gain + rng.normal(0, 0.35, num_documents)[document] + rng.normal(0, 0.4, n)[chunk]
    before = ndcg(ease, rng)
    noise = rng.normal(0, world.noise / NDCG_OF_ADVANTAGE, (num_seeds, world.num_folds))
    return np.stack([ndcg(ease + gain + of_folds[fold], rng) for of_folds in noise]) - before, document


def measure(world: World, num_documents: int, num_seeds: int, trials: int) -> tuple[float, float]:
    """Return the share of intervals that contain the true difference, and of trials with a decision."""
    truth = np.mean([draw(world, 4000, 1, np.random.default_rng(10_000 + i))[0].mean() for i in range(30)])
    held = decided = 0
    for trial in range(trials):
        by_seed, document = draw(world, num_documents, num_seeds, np.random.default_rng(trial))
        values = by_seed.mean(axis=0)[:, None]
        low, high = paired_interval(
            values, document, num_resamples=1000, seed=trial, by_seed=by_seed.mean(axis=1)[:, None]
        )
        held += bool(low[0] <= truth <= high[0])
        if not low[0] <= 0 <= high[0]:
            decided += bool(permutation_p_values(values, document, num_resamples=1000, seed=trial)[0] <= 0.05)
    return held / trials, decided / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--documents", type=int, nargs="+", default=[6, 8, 12, 20, 40, 60])
    args = parser.parse_args()
    print(
        "| noise of a fold | seeds | documents | contains the truth: no gain | gain 0.07 | decided: no gain | gain 0.07 |"
    )
    print("|---|---|---|---|---|---|---|")
    for noise, num_seeds in ((0.0, 1), (0.005, 1), (0.01, 1), (0.01, 3)):
        for num_documents in args.documents:
            found = [measure(World(gain, noise), num_documents, num_seeds, args.trials) for gain in (0.0, 0.3)]
            shares = " | ".join(f"{100 * share:.1f}%" for column in zip(*found, strict=True) for share in column)
            print(f"| {noise:g} | {num_seeds} | {num_documents} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
