"""compare_losses: which loss suits the user's own data, chosen on dev and confirmed on test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.bounds import whole
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import compare
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.runs import Plan, Run, RunTable, loaded, told, train_all
from embedtune.training.losses import LOSSES

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.verdict import Verdict

_DEV = "dev"


@dataclass(frozen=True, eq=False, repr=False)
class LossComparison(RunTable):
    """The result of `compare_losses`. Printing it shows sentences and a table of the dev split.

    Attributes:
        base: The result of the base model on dev.
        runs: One run per loss, the best on dev first. They also hold results on test, which must not choose the loss.
        against_base: Each run compared with the base model, on dev.
        against_best: Each run except the first compared with the first, on dev.
        chosen: The best loss on dev; None if the base model is better there than all of them.
        test: The chosen loss compared with the base model on the test split; None without a choice or a test split.
    """

    against_best: tuple[Verdict, ...]
    chosen: str | None
    test: Verdict | None

    @property
    def sentences(self) -> list[str]:
        """The choice, how certain it is, and its result on the test split."""
        if self.chosen is None:
            return [f"No loss is better than the base model on {_DEV}: {self.against_base[0].headline}."]
        lines = [
            f"{self.chosen} is best on {_DEV} (n = {self.base.num_queries} questions), by {self.base.primary_metric}: "
            f"{told(self.against_base[0])} compared with the base model."
        ]
        for run, verdict in zip(self.runs[1:], self.against_best, strict=True):
            relation = "It is better than" if verdict.decision == "better" else "Cannot tell whether it is better than"
            lines.append(f"{relation} {run.name} ({told(verdict)}).")
        if self.test is not None:
            lines.append(f"On {self.test.before.split}: {self.test.headline}: {self.test.reason} {self.test.sentence}")
        return lines


def compare_losses(
    model: str | Path | SentenceTransformer,
    data: RetrievalDataset,
    *,
    losses: Sequence[str] | Mapping[str, Callable[[SentenceTransformer], nn.Module]] = tuple(LOSSES),
    args: TuningArguments | None = None,
    test_split: str = "test",
    k: Sequence[int] = (1, 3, 5, 10),
    seed: int = 0,
) -> LossComparison:
    """Train with each loss from the same weights, choose one on the dev split, and confirm it on the test split.

    The test split must not choose: the best of several losses there would look better than it is. The dev split also
    chooses each run's checkpoint, so its results are slightly too good for all losses alike. Every run takes the same number
    of epochs. Losses with random negatives have ``num_negatives`` times the rows, which the log says before the runs start.

    Args:
        model: The base model: a name or path for `load_model`, or a SentenceTransformer, which is copied for each run.
        data: Questions and chunks, with a split ``dev``.
        losses: Names that `TuningArguments` knows, or your own names with a function from a model to a loss:
            ``{"hardest": lambda model: TripletMarginLoss(model, negatives="hardest")}``.
        args: Arguments of the trainings. ``loss`` and ``output_dir`` are not used, and no model is kept.
        test_split: The split that confirms the choice, if it exists.
        k: The cut-offs.
        seed: Seed of the intervals.

    Returns:
        The results. Printing them shows sentences and a table.

    Raises:
        ValueError: If there is no dev split, no loss, or an unknown name.

    Example:
        >>> import embedtune as et
        >>> def choose(data):
        ...     comparison = et.compare_losses("minilm", data, losses=["in-batch", "triplet"])
        ...     return et.TuningArguments("out/handbook", loss=comparison.chosen or "in-batch")
    """
    whole("seed", seed, at_least=0)
    if _DEV not in data.qrels:
        raise ValueError(
            f"The dataset has the splits {data.splits}, but no {_DEV!r} to choose a loss on; the test split must not choose. "
            "build_dataset(..., dev_size=0.2) makes one."
        )
    start = loaded(model)
    plans = list(_plans(losses, data, args if args is not None else TuningArguments("unused")))
    splits = [_DEV, *([test_split] if test_split in data.qrels else [])]
    evaluators = [TopKEvaluator(data, split, k=k) for split in splits]
    base = {evaluator.split: evaluator.evaluate(start, name="base") for evaluator in evaluators}
    runs = sorted(train_all(start, plans, evaluators), key=_score, reverse=True)
    on_dev = [run.evaluations[_DEV] for run in runs]
    metric = base[_DEV].primary_metric
    helps = on_dev[0].metrics[metric] > base[_DEV].metrics[metric]
    tested = runs[0].evaluations.get(test_split)
    return LossComparison(
        base=base[_DEV],
        runs=tuple(runs),
        against_base=tuple(compare(base[_DEV], result, seed=seed) for result in on_dev),
        against_best=tuple(compare(result, on_dev[0], seed=seed) for result in on_dev[1:]),
        chosen=runs[0].name if helps else None,
        test=compare(base[test_split], tested, seed=seed) if helps and tested is not None else None,
    )


def _plans(
    losses: Sequence[str] | Mapping[str, Callable[[SentenceTransformer], nn.Module]],
    data: RetrievalDataset,
    args: TuningArguments,
) -> Iterator[Plan]:
    if not losses or isinstance(losses, str):
        raise ValueError(f"losses={losses!r} must be a list of at least one name, such as ['in-batch', 'triplet'].")
    known: Mapping[str, Callable[[SentenceTransformer], nn.Module]] = LOSSES  # type: ignore[assignment]
    if isinstance(losses, Mapping):
        known = losses
    for name in losses:
        if name not in known:
            raise ValueError(
                f"losses has {name!r}, which is not one of {tuple(known)}. Give a loss of your own with a name: "
                "{'mine': MyLoss}."
            )
        yield Plan(name, data, args, known[name])


def _score(run: Run) -> float:
    result = run.evaluations[_DEV]
    return result.metrics[result.primary_metric]
