"""The record of a verdict: which result is better, by how much, and what a reader should know about the evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from scipy import stats

from embedtune.evaluation.comparison import MIN_DOCUMENTS
from embedtune.evaluation.statistics import standard_error
from embedtune.tables import Row, html_table, signed, text_table

if TYPE_CHECKING:
    from embedtune.evaluation.comparison import Comparison, Decision, MetricChange
    from embedtune.evaluation.result import Evaluation

_FEW_QUERIES = 20
_SMALL_DIFFERENCE = 0.03


@dataclass(frozen=True, eq=False, repr=False)
class VerdictRecord:
    """The data of a `Verdict`, and what follows from it. Printing it shows the sentence, the notes and the tables.

    Attributes:
        before: The result before.
        after: The result after, which is judged.
        comparisons: The result after compared with ``before``, then with each of the other results.
        fixed: For each k the ids of the questions that are hits after and were misses before.
        broken: For each k the ids of the questions that were hits before and are misses after.
        confidence_level: The level of the decision and of the intervals of ``metrics``; the intervals of the comparisons with
            the other results hold together at this level.
        warnings: Signs that the gain comes from a leak, a sentence each.
    """

    before: Evaluation
    after: Evaluation
    comparisons: tuple[Comparison, ...]
    fixed: Mapping[int, tuple[str, ...]]
    broken: Mapping[int, tuple[str, ...]]
    confidence_level: float
    warnings: tuple[str, ...] = ()

    @property
    def decision(self) -> Decision:
        """``"better"``, ``"worse"`` or ``"cannot tell"``, by the primary metric."""
        return self.comparisons[0].decision

    @property
    def metrics(self) -> Mapping[str, MetricChange]:
        """The change of each metric, by name: ``"accuracy@3"`` for instance."""
        return self.comparisons[0].metrics

    @property
    def p_value(self) -> float:
        """P-value of the paired permutation test on the primary metric, after compared with before."""
        return self.comparisons[0].p_value

    @property
    def baselines(self) -> tuple[Evaluation, ...]:
        """The other results for the same questions."""
        return tuple(comparison.other for comparison in self.comparisons[1:])

    @property
    def against_baselines(self) -> tuple[Decision, ...]:
        """Whether ``after`` is better or worse than each of the other results."""
        return tuple(comparison.decision for comparison in self.comparisons[1:])

    @property
    def num_changed(self) -> int:
        """The number of chunks for which the primary metric changed."""
        return self.comparisons[0].num_changed

    @property
    def num_clusters(self) -> int:
        """The number of documents, or of chunks, that are asked about: the number of independent observations."""
        return int(self.before.clusters.max()) + 1

    @property
    def unit(self) -> str:
        """What questions are grouped by: ``"documents"`` or ``"chunks"``."""
        return "chunks" if self.before.documents is None else "documents"

    @property
    def num_queries(self) -> int:
        """The number of questions."""
        return self.before.num_queries

    @property
    def num_chunks(self) -> int:
        """The size of the corpus."""
        return self.before.num_chunks

    @property
    def primary_metric(self) -> str:
        """The metric that decides."""
        return self.before.primary_metric

    def num_queries_needed(self, difference: float = _SMALL_DIFFERENCE, *, power: float = 0.8) -> int | None:
        """Return how many questions like these, about proportionally many chunks, would show a difference of the primary metric.

        ``n * ((z(1 - alpha / 2) + z(power)) * error / difference) ** 2`` (Cohen, "Statistical Power Analysis for the
        Behavioral Sciences", 1988, chapter 2), with the cluster-robust standard error of the difference seen here.

        Args:
            difference: The difference to detect.
            power: The probability of detecting it.

        Returns:
            The number, or None if no question changed, so that it cannot be estimated.
        """
        after, before = (run.per_query_metrics[self.primary_metric] for run in (self.after, self.before))
        error = float(standard_error((after - before)[:, None], self.before.clusters)[0])
        quantiles = stats.norm.ppf((1 + self.confidence_level) / 2) + stats.norm.ppf(power)
        return math.ceil(self.num_queries * (quantiles * error / difference) ** 2) or None

    @property
    def sentence(self) -> str:
        """The decision with its figures, and every other result that is not worse."""
        metric = self.primary_metric
        change = self.metrics[metric]
        sentence = (
            f"{self.decision.capitalize()} (n = {self.num_queries} questions about {self.num_clusters} {self.unit}): "
            f"{metric} went from {change.before:.3f} to {change.after:.3f} ({signed(change.difference)}, "
            f"{_percent(self.confidence_level)} interval {_interval(change)})"
        )
        for baseline, decision in zip(self.baselines, self.against_baselines, strict=True):
            if decision != "better":
                relation = "is better" if decision == "worse" else "may be as good"
                sentence += f"; {baseline.name} {relation}, at {baseline.metrics[metric]:.3f}"
        return sentence + "."

    @property
    def advice(self) -> str:
        """Why this result does not speak for fine-tuning, in a sentence, or an empty string."""
        if self.decision == "worse":
            return f"Do not use this model: {self.before.name} finds more."
        if self.decision == "cannot tell":
            return f"Do not fine-tune on this evidence: {self.before.name} may be as good."
        for bm25, decision in zip(self.baselines, self.against_baselines, strict=True):
            if bm25.model.startswith("BM25") and "questions" not in bm25.model and decision != "better":
                relation = "is better" if decision == "worse" else "may be as good"
                return f"Do not fine-tune on this evidence: {bm25.name}, which needs no training, {relation}."
        return ""

    @property
    def notes(self) -> list[str]:
        """What else a reader should know, a sentence each, the most important first."""
        k = self.before.k[-1]
        accuracy, change = self.metrics[f"accuracy@{k}"], self.metrics[self.primary_metric]
        notes = [
            *([self.advice] if self.advice else []),
            *self.warnings,
            f"A relevant chunk is among the first {k} for {accuracy.after:.1%} of the questions (before: "
            f"{accuracy.before:.1%}); {len(self.fixed[k])} fixed, {len(self.broken[k])} broken.",
        ]
        if self.num_clusters < MIN_DOCUMENTS and self.unit == "documents":
            notes.append(
                f"{self.num_clusters} documents are too few to tell whether other documents gain: it takes {MIN_DOCUMENTS} or more."
            )
        elif self.decision == "cannot tell" and not change.low <= 0 <= change.high:
            notes.append(
                f"The interval excludes zero, but the permutation test does not exclude chance (p = {self.p_value:.3f}): only "
                f"{self.num_changed} {self.unit} changed."
            )
        elif self.decision == "cannot tell" and (needed := self.num_queries_needed()):
            more = (
                f"; detecting {_SMALL_DIFFERENCE} takes about {needed} questions" if needed > self.num_queries else ""
            )
            notes.append(
                f"These questions can detect a difference of about {(change.high - change.low) / 2:.3f} or more{more}."
            )
        if len(self.baselines) > 1:
            notes.append(
                f"The intervals and p-values against the {len(self.baselines)} other retrievers are adjusted for their number and "
                f"hold together at {_percent(self.confidence_level)}; those against {self.before.name} are not adjusted."
            )
        if approximate := [run.name for run in (self.before, self.after, *self.baselines) if run.approximate]:
            notes.append(f"The search was approximate and may have overlooked chunks: {', '.join(approximate)}.")
        if self.num_queries < _FEW_QUERIES:
            notes.append(f"{self.num_queries} questions are very few: use a hundred or more.")
        return notes

    def __repr__(self) -> str:
        lines = [self.sentence, *self.notes, "", self._title]
        return "\n".join([*lines, *(f"\n{text_table(header, rows)}" for header, rows in self._tables())])

    @property
    def table(self) -> str:
        """The change of each metric, as aligned text."""
        return text_table(*next(self._tables()))

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(line)}</p>" for line in [*self.notes, self._title])
        tables = "".join(html_table(header, rows) for header, rows in self._tables())
        return f"<p><strong>{escape(self.sentence)}</strong></p>{notes}{tables}"

    @property
    def _title(self) -> str:
        return (
            f"{self.before.name} -> {self.after.name} on {self.before.split}: {self.num_queries} questions about "
            f"{self.num_clusters} {self.unit}, {self.num_chunks} chunks to choose from"
        )

    def _tables(self) -> Iterator[tuple[Row, Sequence[Row]]]:
        ks = self.before.k
        shown = [*(f"accuracy@{k}" for k in ks), *(f"{kind}@{ks[-1]}" for kind in ("recall", "mrr", "ndcg", "map"))]
        names = [baseline.name for baseline in self.baselines]
        yield (
            ["metric", "before", "after", "difference", _percent(self.confidence_level) + " interval", *names],
            [
                [
                    metric,
                    f"{change.before:.3f}",
                    f"{change.after:.3f}",
                    signed(change.difference),
                    _interval(change),
                    *(f"{baseline.metrics[metric]:.3f}" for baseline in self.baselines),
                ]
                for metric, change in ((metric, self.metrics[metric]) for metric in shown)
            ],
        )
        yield self._runs_table()
        yield (
            ["questions", "fixed", "broken"],
            [[f"in top {k}", str(len(self.fixed[k])), str(len(self.broken[k]))] for k in ks],
        )

    def _runs_table(self) -> tuple[Row, Sequence[Row]]:
        """Return each retriever with its own intervals, and how the judged one compares with it."""
        shown = [f"accuracy@{self.before.k[-1]}", self.primary_metric]
        against = {id(comparison.other): comparison for comparison in self.comparisons}
        rows = []
        for run in (self.before, self.after, *self.baselines):
            intervals = run.intervals(confidence_level=self.confidence_level)
            figures = [f"{run.metrics[m]:.3f} ({intervals[m].low:.3f} to {intervals[m].high:.3f})" for m in shown]
            rows.append([run.name, *figures, *self._difference_cells(against.get(id(run)))])
        header = [f"{metric} ({_percent(self.confidence_level)} interval)" for metric in shown]
        return ["retriever", *header, f"{self.after.name} minus it", "p", "verdict"], rows

    def _difference_cells(self, comparison: Comparison | None) -> list[str]:
        if comparison is None:
            return ["", "", ""]
        change = comparison.metrics[self.primary_metric]
        return [f"{signed(change.difference)} ({_interval(change)})", f"{comparison.p_value:.4f}", comparison.decision]


def _interval(change: MetricChange) -> str:
    return f"{signed(change.low)} to {signed(change.high)}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
