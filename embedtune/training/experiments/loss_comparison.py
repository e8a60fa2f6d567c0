"""compare_losses: which loss suits the user's own data, chosen on dev and confirmed on test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import compare
from embedtune.tables import html_table, text_table
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.runs import Plan, Run, base_row, header, loaded, row, told, train_all
from embedtune.training.trainer import LOSSES

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation
    from embedtune.evaluation.verdict import Verdict

_CHOICE_SPLIT = "dev"


@dataclass(frozen=True, eq=False, repr=False)
class LossComparison:
    """What `compare_losses` found. Printing it shows sentences and a table of the dev split.

    Attributes:
        base: The base model's result on dev.
        runs: A run for each loss, best on dev first. Their results on test are for the record: who chooses by them has no test
            left.
        against_base: Each run compared with the base model, on dev.
        against_best: Each run but the first compared with the first, on dev.
        chosen: The loss that is best on dev; None if the base model is better than all of them there.
        test: The chosen loss compared with the base model on the test split, or None if there is no such split or choice.
    """

    base: Evaluation
    runs: tuple[Run, ...]
    against_base: tuple[Verdict, ...]
    against_best: tuple[Verdict, ...]
    chosen: str | None
    test: Verdict | None

    @property
    def sentences(self) -> list[str]:
        """The choice, how sure it is, and what it is worth on questions that did not make it."""
        if self.chosen is None:
            return [f"No loss retrieves better than the base model on {_CHOICE_SPLIT}: keep the base model."]
        metric = self.base.primary_metric
        lines = [
            f"{self.chosen} is best on {_CHOICE_SPLIT} (n = {self.base.num_queries} questions), by {metric}: "
            f"{told(self.against_base[0])} against the base model."
        ]
        for run, verdict in zip(self.runs[1:], self.against_best, strict=True):
            relation = "is better than" if verdict.decision == "better" else "cannot be told apart from"
            lines.append(f"It {relation} {run.name} ({told(verdict)}).")
        if self.test is not None:
            lines.append(f"On {self.test.before.split}: {self.test.sentence}")
        return lines

    def __repr__(self) -> str:
        return "\n".join([*self.sentences, "", text_table(*self._table)])

    def _repr_html_(self) -> str:
        first, *others = map(escape, self.sentences)
        paragraphs = "".join(f"<p>{line}</p>" for line in [f"<strong>{first}</strong>", *others])
        return paragraphs + html_table(*self._table)

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [row(run, verdict) for run, verdict in zip(self.runs, self.against_base, strict=True)]
        return header(self.base), [base_row(self.base), *rows]


def compare_losses(
    model: str | Path | SentenceTransformer,
    data: RetrievalDataset,
    *,
    losses: Sequence[str] | Mapping[str, Callable[[SentenceTransformer], nn.Module]] = (
        "in-batch",
        "triplet",
        "cosine",
    ),
    args: TuningArguments | None = None,
    test_split: str = "test",
    k: Sequence[int] = (1, 3, 5, 10),
    seed: int = 0,
) -> LossComparison:
    """Train with each loss from the same weights, choose one on the dev split, and say on the test split what it is worth.

    The choice must not be made on test: the best of several losses there would look better than it is. The dev split also chooses
    each run's checkpoint, so its figures are a little too good for all losses alike. Every run takes the same number of
    epochs; losses with drawn negatives have ``num_negatives`` times the rows, which the table shows and the log says before
    the runs start.

    Args:
        model: What to start from: anything that `load_model` takes, or a SentenceTransformer, which is copied for each run
            and not changed.
        data: Questions and chunks, with a split ``dev``.
        losses: Names that `TuningArguments` knows, or names of your own with a function from a model to a loss:
            ``{"hardest": lambda model: TripletMarginLoss(model, negatives="hardest")}``.
        args: Arguments of the trainings; ``loss`` and ``output_dir`` are not used, and no model is kept.
        test_split: The questions that the choice is confirmed with, if there is such a split.
        k: The cut-offs.
        seed: Draws the intervals.

    Raises:
        ValueError: If there is no dev split or nothing to choose from, or a name is unknown.

    Example:
        >>> import embedtune as et
        >>> def choose(data):
        ...     comparison = et.compare_losses("minilm", data, losses=["in-batch", "triplet"])
        ...     return et.TuningArguments("out/handbook", loss=comparison.chosen or "in-batch")
    """
    if _CHOICE_SPLIT not in data.qrels:
        raise ValueError(
            f"A loss is chosen on a split {_CHOICE_SPLIT!r}, and there are only {data.splits}. build_dataset(..., dev_size=0.2) "
            "makes one; the test split must not choose."
        )
    start = loaded(model)
    plans = list(_plans(losses, data, args if args is not None else TuningArguments("unused")))
    splits = [_CHOICE_SPLIT, *([test_split] if test_split in data.qrels else [])]
    evaluators = [TopKEvaluator(data, split, k=k) for split in splits]
    base = {evaluator.split: evaluator.evaluate(start, name="base") for evaluator in evaluators}
    runs = sorted(train_all(start, plans, evaluators), key=_score, reverse=True)
    on_dev = [run.evaluations[_CHOICE_SPLIT] for run in runs]
    metric = base[_CHOICE_SPLIT].primary_metric
    helps = on_dev[0].metrics[metric] > base[_CHOICE_SPLIT].metrics[metric]
    tested = runs[0].evaluations.get(test_split)
    return LossComparison(
        base=base[_CHOICE_SPLIT],
        runs=tuple(runs),
        against_base=tuple(compare(base[_CHOICE_SPLIT], result, seed=seed) for result in on_dev),
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
        raise ValueError(f"losses={losses!r} leaves nothing to compare. Give a list such as ['in-batch', 'triplet'].")
    if isinstance(losses, Mapping):
        yield from (Plan(name, data, args, loss) for name, loss in losses.items())
        return
    for name in losses:
        if name not in LOSSES:
            raise ValueError(
                f"{name!r} is none of {tuple(LOSSES)}. A loss of your own goes in with a name: {{'mine': MyLoss}}."
            )
        yield Plan(name, data, args, LOSSES[name])


def _score(run: Run) -> float:
    result = run.evaluations[_CHOICE_SPLIT]
    return result.metrics[result.primary_metric]
