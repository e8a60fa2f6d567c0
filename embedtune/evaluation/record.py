"""The record of a verdict: which result is better, by how much, and what a reader should know about the evidence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from scipy import stats

from embedtune.evaluation.comparison import MIN_DOCUMENTS
from embedtune.evaluation.headline import Advice, Headline, Knowledge, advise
from embedtune.evaluation.statistics import standard_error
from embedtune.tables import Row, html_table, signed, text_table

if TYPE_CHECKING:
    from embedtune.evaluation.comparison import Comparison, Decision, MetricChange
    from embedtune.evaluation.result import Evaluation

_FEW_QUERIES = 20
_SMALL_DIFFERENCE = 0.03
# What a reader looks at: the first few results.
_FIRST_FEW = 3


@dataclass(frozen=True, eq=False, repr=False)
class VerdictRecord:
    """The data of a `Verdict`, and what follows from it.

    Attributes:
        before: The result before.
        after: The result after, which is judged.
        comparisons: The result after compared with ``before``, then with each of the other results.
        fixed: For each k the ids of the questions that are hits after and were misses before.
        broken: For each k the ids of the questions that were hits before and are misses after.
        confidence_level: The level of the decision and of the intervals of ``metrics``; the intervals of the comparisons with
            the other results hold together at this level.
        warnings: Signs that the gain comes from a leak, a sentence each.
        known: The ids of the questions that were trained on.
        forgetting: What `check_forgetting` found, or None if it was not asked.
        seconds: How long the training and its evaluation took, or None if it is not known.
        cost_usd: What the questions cost, or None if it is not known.
    """

    before: Evaluation
    after: Evaluation
    comparisons: tuple[Comparison, ...]
    fixed: Mapping[int, tuple[str, ...]]
    broken: Mapping[int, tuple[str, ...]]
    confidence_level: float
    warnings: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    forgetting: Forgetting | None = None
    seconds: float | None = None
    cost_usd: float | None = None

    @property
    def headline(self) -> Headline:
        """``"ship it"``, ``"keep what you have"`` or ``"cannot tell yet"``: what follows from all comparisons together."""
        return self._advice.headline

    @property
    def reason(self) -> str:
        """Why, in a sentence."""
        return self._filled(self._advice.reason)

    @property
    def next_step(self) -> str:
        """What to do next."""
        return self._filled(self._advice.next_step)

    @property
    def decision(self) -> Decision:
        """``"better"``, ``"worse"`` or ``"cannot tell"`` than ``before``, by the primary metric."""
        return self.comparisons[0].decision

    @property
    def bm25(self) -> Comparison | None:
        """The comparison with BM25 that learned nothing, or None if there is none."""
        return next((one for one in self.comparisons[1:] if _is_untrained_bm25(one.other)), None)

    @property
    def k(self) -> int:
        """The cut-off that a person looks at: the one nearest to 3."""
        return min(self.before.k, key=lambda k: abs(k - _FIRST_FEW))

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
        return self._needed_against(self.before, difference, power)

    def _needed_against(
        self, other: Evaluation, difference: float = _SMALL_DIFFERENCE, power: float = 0.8
    ) -> int | None:
        after, before = (run.per_query_metrics[self.primary_metric] for run in (self.after, other))
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
            f"{percent(self.confidence_level)} interval {interval_text(change)})"
        )
        for baseline, decision in zip(self.baselines, self.against_baselines, strict=True):
            if decision != "better":
                relation = "is better" if decision == "worse" else "may be as good"
                sentence += f"; {baseline.name} {relation}, at {baseline.metrics[metric]:.3f}"
        return sentence + "."

    @property
    def notes(self) -> list[str]:
        """What else a reader of the figures should know, a sentence each, the most important first."""
        change = self.metrics[self.primary_metric]
        notes = [*self.warnings]
        if self._has_too_few_documents:
            notes.append(
                f"{self.num_clusters} documents are too few to tell whether other documents gain: it takes {MIN_DOCUMENTS} or more."
            )
        elif self.decision == "cannot tell" and not change.low <= 0 <= change.high:
            notes.append(
                f"The interval excludes zero, but the permutation test does not exclude chance (p = {self.p_value:.3f}): only "
                f"{self.num_changed} {self.unit} changed."
            )
        elif self.decision == "cannot tell" and self.num_queries_needed():
            notes.append(
                f"These questions can detect a difference of about {(change.high - change.low) / 2:.3f} or more."
            )
        if len(self.baselines) > 1:
            notes.append(
                f"The intervals and p-values against the {len(self.baselines)} other retrievers are adjusted for their number and "
                f"hold together at {percent(self.confidence_level)}; those against {self.before.name} are not adjusted."
            )
        if self.after.repeats:
            notes.append(
                f"Means of {1 + len(self.after.repeats)} trainings with different seeds, which the intervals cover; "
                f"{self.after.name}, {self.after.spread}."
            )
        if approximate := [run.name for run in (self.before, self.after, *self.baselines) if run.approximate]:
            notes.append(f"The search was approximate and may have overlooked chunks: {', '.join(approximate)}.")
        if self.num_queries < _FEW_QUERIES:
            notes.append(f"{self.num_queries} questions are very few: use a hundred or more.")
        return notes

    @property
    def _advice(self) -> Advice:
        return advise(
            before=self.decision,
            bm25=self.bm25.decision if self.bm25 is not None else None,
            knowledge=self._knowledge,
            num_known=len(self.known),
            has_few_documents=self._has_too_few_documents,
        )

    @property
    def _knowledge(self) -> Knowledge | None:
        if self.forgetting is None:
            return None
        return "remembers" if self.forgetting.is_acceptable else self.forgetting.decision

    def _filled(self, template: str) -> str:
        level = self.bm25 if self.decision == "better" and self.bm25 is not None else self.comparisons[0]
        return template.format(
            before=short_name(self.before),
            after=short_name(self.after),
            bm25=short_name(self.bm25.other) if self.bm25 is not None else "BM25",
            needed=self._needed(level.other),
            num_documents=self.num_clusters,
            min_documents=MIN_DOCUMENTS,
        )

    def _needed(self, other: Evaluation) -> str:
        needed = self._needed_against(other)
        if needed is None or needed <= self.num_queries:
            return f"These questions would show a difference of {_SMALL_DIFFERENCE}, and show none. Try another model or more epochs."
        return f"Add questions: a difference of {_SMALL_DIFFERENCE} takes about {needed:,} like these, and there are {self.num_queries:,}."

    @property
    def _has_too_few_documents(self) -> bool:
        return self.num_clusters < MIN_DOCUMENTS and self.unit == "documents"

    @property
    def table(self) -> str:
        """The change of each metric, as aligned text."""
        return text_table(*next(self.tables()))

    @property
    def title(self) -> str:
        """What was compared, on which questions."""
        return (
            f"{self.before.name} -> {self.after.name} on {self.before.split}: {self.num_queries} questions about "
            f"{self.num_clusters} {self.unit}, {self.num_chunks} chunks to choose from"
        )

    def tables(self) -> Iterator[tuple[Row, Sequence[Row]]]:
        """Yield the header and the rows of each table: metrics, retrievers, fixed and broken questions."""
        ks = self.before.k
        shown = [*(f"accuracy@{k}" for k in ks), *(f"{kind}@{ks[-1]}" for kind in ("recall", "mrr", "ndcg", "map"))]
        names = [baseline.name for baseline in self.baselines]
        yield (
            ["metric", "before", "after", "difference", percent(self.confidence_level) + " interval", *names],
            [
                [
                    metric,
                    f"{change.before:.3f}",
                    f"{change.after:.3f}",
                    signed(change.difference),
                    interval_text(change),
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
        header = [f"{metric} ({percent(self.confidence_level)} interval)" for metric in shown]
        return ["retriever", *header, f"{self.after.name} minus it", "p", "verdict"], rows

    def _difference_cells(self, comparison: Comparison | None) -> list[str]:
        if comparison is None:
            return ["", "", ""]
        change = comparison.metrics[self.primary_metric]
        return [
            f"{signed(change.difference)} ({interval_text(change)})",
            f"{comparison.p_value:.4f}",
            comparison.decision,
        ]


def short_name(run: Evaluation) -> str:
    """Return what a person calls a result: without the owner of a model's repository."""
    return re.sub(r"^[\w.-]+/(?=\w)", "", run.name)


def interval_text(change: MetricChange) -> str:
    """Return the interval of a difference: ``"+0.084 to +0.221"``."""
    return f"{signed(change.low)} to {signed(change.high)}"


def percent(share: float) -> str:
    """Return a share as a percentage: ``"95%"``."""
    return f"{100 * share:g}%"


def _is_untrained_bm25(run: Evaluation) -> bool:
    return run.model.startswith("BM25") and "questions" not in run.model


@dataclass(frozen=True, eq=False, repr=False)
class Forgetting:
    """The result of `check_forgetting`. Printing it shows the sentence and the table.

    Attributes:
        verdict: The tuned model compared with the base, on the general questions.
        margin: The largest acceptable loss of the primary metric.
    """

    verdict: VerdictRecord
    margin: float

    @property
    def decision(self) -> Knowledge:
        """``"forgets"`` if the loss is significant, ``"remembers"`` if the interval excludes a loss beyond the margin."""
        if self.verdict.decision == "worse":
            return "forgets"
        return "remembers" if self.is_acceptable else "cannot tell"

    @property
    def is_acceptable(self) -> bool:
        """Whether the interval excludes a loss beyond the margin."""
        return self.verdict.metrics[self.verdict.primary_metric].low >= -self.margin

    @property
    def sentence(self) -> str:
        """The decision with its figures."""
        metric = self.verdict.primary_metric
        change = self.verdict.metrics[metric]
        return (
            f"{self.decision.capitalize()} (n = {self.verdict.num_queries} general questions): {metric} went from "
            f"{change.before:.3f} to {change.after:.3f} ({signed(change.difference)}, "
            f"{percent(self.verdict.confidence_level)} interval {interval_text(change)}; acceptable loss: {self.margin:g})."
        )

    def __repr__(self) -> str:
        return f"{self.sentence}\n\n{self.verdict.table}"

    def _repr_html_(self) -> str:
        return f"<p><strong>{escape(self.sentence)}</strong></p>{html_table(*next(self.verdict.tables()))}"
