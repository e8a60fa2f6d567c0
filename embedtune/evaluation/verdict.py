"""A verdict on two results for the same questions: better, worse, or cannot tell, with the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from embedtune.evaluation.bootstrap import paired_interval
from embedtune.tables import Row, html_table, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformerTrainer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.report.curve import Log
    from embedtune.evaluation.result import Evaluation

Decision = Literal["better", "worse", "cannot tell"]

_FEW_QUERIES = 20


@dataclass(frozen=True)
class MetricChange:
    """What became of one metric.

    Attributes:
        before: Its mean before.
        after: Its mean after.
        difference: After minus before.
        low: Lower bound of the difference's paired bootstrap interval.
        high: Upper bound.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What `compare` found. Printing it shows the sentence, the notes and the tables.

    Attributes:
        decision: ``"better"``, ``"worse"`` or ``"cannot tell"``, by the primary metric.
        metrics: Each metric's change, by name, ``"accuracy@3"`` for instance.
        fixed: For each k the ids of the questions that are hits after and were none before.
        broken: For each k the ids of the questions that were hits before and are none after.
        before: The result before.
        after: The result after.
        baselines: Other results for the same questions.
        against_baselines: What the decision would be if each baseline stood in the place of ``before``.
        num_clusters: About how many chunks the questions are: the number of independent observations.
        num_changed: For how many of these chunks the primary metric changed.
        confidence: The level of the intervals.
    """

    decision: Decision
    metrics: Mapping[str, MetricChange]
    fixed: Mapping[int, tuple[str, ...]]
    broken: Mapping[int, tuple[str, ...]]
    before: Evaluation
    after: Evaluation
    baselines: tuple[Evaluation, ...]
    against_baselines: tuple[Decision, ...]
    num_clusters: int
    num_changed: int
    confidence: float

    @property
    def num_queries(self) -> int:
        """How many questions were asked."""
        return self.before.num_queries

    @property
    def num_chunks(self) -> int:
        """How many chunks there were to choose from."""
        return self.before.num_chunks

    @property
    def primary_metric(self) -> str:
        """The metric that the decision rests on."""
        return self.before.primary_metric

    @property
    def sentence(self) -> str:
        """The decision with its figures, and every baseline that is not behind."""
        metric = self.primary_metric
        change = self.metrics[metric]
        sentence = (
            f"{self.decision.capitalize()} (n = {self.num_queries} questions about {self.num_clusters} chunks): "
            f"{metric} went from {change.before:.3f} to {change.after:.3f} ({_signed(change.difference)}, "
            f"{_percent(self.confidence)} interval {_interval(change)})"
        )
        for baseline, decision in zip(self.baselines, self.against_baselines, strict=True):
            if decision != "better":
                relation = "is better" if decision == "worse" else "cannot be told apart from it"
                sentence += f"; {baseline.name} {relation}, at {baseline.metrics[metric]:.3f}"
        return sentence + "."

    @property
    def notes(self) -> list[str]:
        """What else a reader should know, a sentence each."""
        k = self.before.k[-1]
        accuracy, change = self.metrics[f"accuracy@{k}"], self.metrics[self.primary_metric]
        notes = [
            f"A right chunk is among the first {k} for {accuracy.after:.1%} of the questions, before for "
            f"{accuracy.before:.1%}: {len(self.fixed[k])} fixed, {len(self.broken[k])} broken."
        ]
        if self.decision == "cannot tell" and not change.low <= 0 <= change.high:
            notes.append(f"The questions of only {self.num_changed} chunks changed, which can be chance.")
        elif self.decision == "cannot tell" and self.num_changed:
            notes.append(
                f"These questions can tell a difference of about {(change.high - change.low) / 2:.3f} or more; four times "
                "as many could tell half of it."
            )
        if self.num_queries < _FEW_QUERIES:
            notes.append(f"{self.num_queries} questions can tell very little: ask a hundred or more.")
        return notes

    def to_html(
        self,
        path: str | Path,
        *,
        data: RetrievalDataset | None = None,
        trainer: SentenceTransformerTrainer | None = None,
        log_history: Log | None = None,
    ) -> Path:
        """Write a report: one HTML file to send, print or read on a phone; it needs no network.

        It holds this verdict, each retriever's accuracy with intervals, where the right chunks stand, every question
        with what ranked above its right chunk, and what is needed to repeat it. The texts of questions and chunks are in
        the file: treat it as confidential as the documents are.

        Args:
            path: Where to write it. An older file stays until the new one is whole.
            data: The dataset that was evaluated, to show the chunks' texts rather than their ids.
            trainer: What trained the model, to show the training curve, the settings, and how much of the chunks the model
                does not read.
            log_history: The curve alone, ``trainer.state.log_history`` or what a checkpoint's ``trainer_state.json`` holds.

        Returns:
            The path.

        Raises:
            ValueError: If ``data`` is not what was evaluated.
        """
        from embedtune.evaluation.report.page import write_report

        return write_report(self, path, data=data, trainer=trainer, log_history=log_history)

    def plot(self) -> Figure:
        """Draw each retriever's accuracy@k with its interval, for a notebook or a paper.

        ``verdict.plot().savefig("accuracy.pdf")`` writes it to a file. Needs matplotlib (``pip install 'embedtune[plot]'``).

        Raises:
            OptionalDependencyError: If matplotlib is not installed.
        """
        from embedtune.evaluation.report.figure import accuracy_figure

        return accuracy_figure(self)

    def __repr__(self) -> str:
        lines = [self.sentence, *self.notes, "", self._title]
        return "\n".join([*lines, *(f"\n{text_table(header, rows)}" for header, rows in self._tables())])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(line)}</p>" for line in [*self.notes, self._title])
        tables = "".join(html_table(header, rows) for header, rows in self._tables())
        return f"<p><strong>{escape(self.sentence)}</strong></p>{notes}{tables}"

    @property
    def _title(self) -> str:
        return (
            f"{self.before.name} -> {self.after.name} on {self.before.split}: {self.num_queries} questions about "
            f"{self.num_clusters} chunks, {self.num_chunks} chunks to choose from"
        )

    def _tables(self) -> Iterator[tuple[Row, list[Row]]]:
        ks = self.before.k
        shown = [*(f"accuracy@{k}" for k in ks), *(f"{kind}@{ks[-1]}" for kind in ("recall", "mrr", "ndcg", "map"))]
        names = [baseline.name for baseline in self.baselines]
        yield (
            ["metric", "before", "after", "difference", _percent(self.confidence) + " interval", *names],
            [
                [
                    metric,
                    f"{change.before:.3f}",
                    f"{change.after:.3f}",
                    _signed(change.difference),
                    _interval(change),
                    *(f"{baseline.metrics[metric]:.3f}" for baseline in self.baselines),
                ]
                for metric, change in ((metric, self.metrics[metric]) for metric in shown)
            ],
        )
        yield (
            ["questions", "fixed", "broken"],
            [[f"in top {k}", str(len(self.fixed[k])), str(len(self.broken[k]))] for k in ks],
        )


def compare(
    before: Evaluation,
    after: Evaluation,
    *,
    baselines: Sequence[Evaluation] = (),
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """Say whether a retriever got better, and how sure that is.

    The decision rests on the nDCG at the largest k: better or worse if the paired bootstrap interval of its difference
    (see `paired_interval`; questions about one chunk are drawn together) excludes zero and enough chunks changed for that
    not to be chance, else "cannot tell". The other metrics' intervals are for reading: among twenty of them one excludes
    zero by chance.

    Args:
        before: The result to compare with.
        after: The result to judge.
        baselines: Results of other retrievers, BM25 for instance, to stand in the same table.
        confidence: The level of the intervals.
        num_resamples: How many bootstrap resamples to draw.
        seed: Draws them.

    Raises:
        ValueError: If the results are not for the same questions, judgements, corpus and k, or an option is out of range.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs(
        ...     [("Press both buttons.", ["How do I restart?"]), ("Turn the key left.", ["Which way does the key turn?"])],
        ...     test_size=0.5,
        ...     dev_size=0,
        ... )
        >>> bm25 = et.TopKEvaluator(data, k=(1, 2)).evaluate(et.BM25())
        >>> et.compare(bm25, bm25).decision
        'cannot tell'
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is no level. Give a number between 0 and 1, such as 0.95.")
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} draws nothing. Give some thousands.")
    _check_comparable([before, after, *baselines])
    bootstrap = _Bootstrap(_clusters(before), confidence, num_resamples, seed)
    judgement = _judge(before, after, bootstrap)
    return Verdict(
        decision=judgement.decision,
        metrics=judgement.metrics,
        fixed={k: _newly_hit(before, after, k) for k in before.k},
        broken={k: _newly_hit(after, before, k) for k in before.k},
        before=before,
        after=after,
        baselines=tuple(baselines),
        against_baselines=tuple(_judge(baseline, after, bootstrap).decision for baseline in baselines),
        num_clusters=int(bootstrap.clusters.max()) + 1,
        num_changed=judgement.num_changed,
        confidence=confidence,
    )


class _Bootstrap(NamedTuple):
    clusters: NDArray[np.int64]
    confidence: float
    num_resamples: int
    seed: int


class _Judgement(NamedTuple):
    decision: Decision
    metrics: dict[str, MetricChange]
    num_changed: int


def _check_comparable(results: Sequence[Evaluation]) -> None:
    first = results[0]
    for other in results[1:]:
        if other.fingerprint != first.fingerprint:
            raise ValueError(
                f"{other.name!r} and {first.name!r} cannot be compared: their questions, judgements or corpora differ "
                f"(fingerprints {other.fingerprint[:8]} and {first.fingerprint[:8]}). Evaluate both with the same evaluator."
            )
        if other.k != first.k:
            raise ValueError(
                f"{other.name!r} was evaluated at k={other.k} and {first.name!r} at k={first.k}. Evaluate both with the "
                "same evaluator."
            )


def _clusters(result: Evaluation) -> NDArray[np.int64]:
    """Number the chunks that questions were written for, and return each question's, of shape ``(num_queries,)``."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(chunks[0], len(number)) for chunks in result.per_query["relevant"][:]])


def _judge(before: Evaluation, after: Evaluation, bootstrap: _Bootstrap) -> _Judgement:
    names = list(before.metrics)
    differences = np.stack([after.per_query_metrics[n] - before.per_query_metrics[n] for n in names], axis=1)
    low, high = paired_interval(
        differences,
        bootstrap.clusters,
        confidence=bootstrap.confidence,
        num_resamples=bootstrap.num_resamples,
        seed=bootstrap.seed,
    )
    metrics = {
        n: MetricChange(
            before.metrics[n], after.metrics[n], float(differences[:, i].mean()), float(low[i]), float(high[i])
        )
        for i, n in enumerate(names)
    }
    primary = names.index(before.primary_metric)
    sums = np.bincount(bootstrap.clusters, weights=differences[:, primary])
    num_changed = int(np.count_nonzero(np.abs(sums) > 1e-12))
    return _Judgement(_decide(metrics[before.primary_metric], num_changed, bootstrap.confidence), metrics, num_changed)


def _decide(change: MetricChange, num_changed: int, confidence: float) -> Decision:
    # Were the two alike, each changed chunk would be as likely to get worse as better, and m of them would all go the
    # same way with a chance of 2 ** (1 - m). Below six, that is too likely for 95 %, whatever the bootstrap makes of it.
    if 2.0 ** (1 - num_changed) > 1 - confidence or change.low <= 0 <= change.high:
        return "cannot tell"
    return "better" if change.low > 0 else "worse"


def _newly_hit(before: Evaluation, after: Evaluation, k: int) -> tuple[str, ...]:
    metric = f"accuracy@{k}"
    flipped = after.per_query_metrics[metric] > before.per_query_metrics[metric]
    return tuple(before.per_query.select(np.flatnonzero(flipped))["query-id"][:])


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # adding zero makes -0.0 positive


def _interval(change: MetricChange) -> str:
    return f"{_signed(change.low)} to {_signed(change.high)}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
