"""A verdict on results for the same questions: better, worse, or cannot tell, with the evidence."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from embedtune.evaluation.comparison import Comparison, compare_with_each
from embedtune.evaluation.comparison import Decision as Decision
from embedtune.evaluation.comparison import MetricChange as MetricChange
from embedtune.evaluation.intervals import standard_error
from embedtune.evaluation.leaks import leak_warnings
from embedtune.evaluation.result import Evaluation
from embedtune.tables import Row, html_table, signed, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from sentence_transformers import SentenceTransformerTrainer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.report.curve import Log

logger = logging.getLogger(__name__)

_FEW_QUERIES = 20
_SMALL_DIFFERENCE = 0.03


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What `compare` found. Printing it shows the sentence, the notes and the tables.

    Attributes:
        before: The result before.
        after: The result after, which is judged.
        comparisons: The result after against ``before``, and then against each of the other results.
        fixed: For each k the ids of the questions that are hits after and were none before.
        broken: For each k the ids of the questions that were hits before and are none after.
        confidence: The level of the decision and of the intervals of ``metrics``, and the level at which those against the
            other results hold all at once.
        warnings: Signs that the gain is a leak, a sentence each.
    """

    before: Evaluation
    after: Evaluation
    comparisons: tuple[Comparison, ...]
    fixed: Mapping[int, tuple[str, ...]]
    broken: Mapping[int, tuple[str, ...]]
    confidence: float
    warnings: tuple[str, ...] = ()

    @property
    def decision(self) -> Decision:
        """``"better"``, ``"worse"`` or ``"cannot tell"``, by the primary metric."""
        return self.comparisons[0].decision

    @property
    def metrics(self) -> Mapping[str, MetricChange]:
        """Each metric's change, by name, ``"accuracy@3"`` for instance."""
        return self.comparisons[0].metrics

    @property
    def p_value(self) -> float:
        """Of the paired permutation test on the primary metric, after against before."""
        return self.comparisons[0].p_value

    @property
    def baselines(self) -> tuple[Evaluation, ...]:
        """The other results for the same questions."""
        return tuple(comparison.other for comparison in self.comparisons[1:])

    @property
    def against_baselines(self) -> tuple[Decision, ...]:
        """What the decision would be if each of the other results stood in the place of ``before``."""
        return tuple(comparison.decision for comparison in self.comparisons[1:])

    @property
    def num_changed(self) -> int:
        """For how many chunks the primary metric changed."""
        return self.comparisons[0].num_changed

    @property
    def num_clusters(self) -> int:
        """About how many chunks the questions are: the number of independent observations."""
        return int(self.before.clusters.max()) + 1

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

    def num_queries_needed(self, difference: float = _SMALL_DIFFERENCE, *, power: float = 0.8) -> int | None:
        """Return how many questions like these, with chunks in proportion, would show a difference of the primary metric.

        ``n * ((z(1 - alpha / 2) + z(power)) * error / difference) ** 2`` (Cohen, "Statistical Power Analysis for the
        Behavioral Sciences", 1988, chapter 2), with the cluster-robust standard error of the difference seen here.

        Args:
            difference: The difference to be seen.
            power: How often it should be seen.

        Returns:
            The number, or None where nothing changed, so that nothing can be estimated.
        """
        after, before = (run.per_query_metrics[self.primary_metric] for run in (self.after, self.before))
        error = float(standard_error((after - before)[:, None], self.before.clusters)[0])
        quantiles = stats.norm.ppf((1 + self.confidence) / 2) + stats.norm.ppf(power)
        return math.ceil(self.num_queries * (quantiles * error / difference) ** 2) or None

    @property
    def sentence(self) -> str:
        """The decision with its figures, and every other result that is not behind."""
        metric = self.primary_metric
        change = self.metrics[metric]
        sentence = (
            f"{self.decision.capitalize()} (n = {self.num_queries} questions about {self.num_clusters} chunks): "
            f"{metric} went from {change.before:.3f} to {change.after:.3f} ({signed(change.difference)}, "
            f"{_percent(self.confidence)} interval {_interval(change)})"
        )
        for baseline, decision in zip(self.baselines, self.against_baselines, strict=True):
            if decision != "better":
                relation = "is better" if decision == "worse" else "cannot be told apart from it"
                sentence += f"; {baseline.name} {relation}, at {baseline.metrics[metric]:.3f}"
        return sentence + "."

    @property
    def advice(self) -> str:
        """Why not to fine-tune, in a sentence, or an empty string."""
        if self.decision == "worse":
            return f"Do not fine-tune like this: {self.before.name} finds more."
        if self.decision == "cannot tell":
            return f"Do not fine-tune on this evidence: {self.before.name} may be as good."
        for bm25, decision in zip(self.baselines, self.against_baselines, strict=True):
            if bm25.model.startswith("BM25") and decision != "better":
                relation = "is better" if decision == "worse" else "may be as good"
                return f"Do not fine-tune on this evidence: {bm25.name}, which needs no training, {relation}."
        return ""

    @property
    def notes(self) -> list[str]:
        """What else a reader should know, a sentence each, what matters most first."""
        k = self.before.k[-1]
        accuracy, change = self.metrics[f"accuracy@{k}"], self.metrics[self.primary_metric]
        notes = [
            *([self.advice] if self.advice else []),
            *self.warnings,
            f"A right chunk is among the first {k} for {accuracy.after:.1%} of the questions, before for "
            f"{accuracy.before:.1%}: {len(self.fixed[k])} fixed, {len(self.broken[k])} broken.",
        ]
        if self.decision == "cannot tell" and not change.low <= 0 <= change.high:
            notes.append(
                f"The interval excludes zero, but by the permutation test it can be chance (p = {self.p_value:.3f}): the questions of "
                f"{self.num_changed} chunks changed."
            )
        elif self.decision == "cannot tell" and (needed := self.num_queries_needed()):
            more = (
                f"; to see one of {_SMALL_DIFFERENCE} takes about {needed} like them"
                if needed > self.num_queries
                else ""
            )
            notes.append(
                f"These questions can tell a difference of about {(change.high - change.low) / 2:.3f} or more{more}."
            )
        if len(self.baselines) > 1:
            notes.append(
                f"The intervals and p-values against the {len(self.baselines)} other retrievers allow for their number, and hold "
                f"together with {_percent(self.confidence)}; those against {self.before.name} are a question of their own."
            )
        if approximate := [run.name for run in (self.before, self.after, *self.baselines) if run.approximate]:
            notes.append(f"Searched by an approximate index, which may overlook chunks: {', '.join(approximate)}.")
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

    @property
    def table(self) -> str:
        """Each metric's change, as aligned text."""
        return text_table(*next(self._tables()))

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

    def _tables(self) -> Iterator[tuple[Row, Sequence[Row]]]:
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
        """Return each retriever with its own intervals, and what it means that the one after stands beside it."""
        shown = [f"accuracy@{self.before.k[-1]}", self.primary_metric]
        against = {id(comparison.other): comparison for comparison in self.comparisons}
        rows = []
        for run in (self.before, self.after, *self.baselines):
            intervals = run.intervals(confidence=self.confidence)
            figures = [f"{run.metrics[m]:.3f} ({intervals[m].low:.3f} to {intervals[m].high:.3f})" for m in shown]
            rows.append([run.name, *figures, *self._difference_cells(against.get(id(run)))])
        header = [f"{metric} ({_percent(self.confidence)} interval)" for metric in shown]
        return ["retriever", *header, f"{self.after.name} minus it", "p", "verdict"], rows

    def _difference_cells(self, comparison: Comparison | None) -> list[str]:
        if comparison is None:
            return ["", "", ""]
        change = comparison.metrics[self.primary_metric]
        return [f"{signed(change.difference)} ({_interval(change)})", f"{comparison.p_value:.4f}", comparison.decision]


def compare(
    before: Evaluation,
    after: Evaluation,
    *others: Evaluation,
    training: RetrievalDataset | Iterable[str] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """Say whether a retriever got better, and how sure that is.

    The decision rests on the nDCG at the largest k: better or worse if the paired bootstrap interval of its difference
    (see `paired_interval`; questions about one chunk are drawn together) excludes zero and a paired permutation test
    agrees, else "cannot tell". With other results, ``after`` is held against each of them too. That is a second question:
    its intervals (Bonferroni) and p-values (Holm) allow for the number of the others, while the decision about ``before``
    is the same with and without them. The other metrics' intervals are for reading: among twenty of them one excludes zero
    by chance.

    Args:
        before: The result to compare with.
        after: The result to judge.
        *others: Results of other retrievers, BM25 for instance, that ``after`` should beat as well.
        training: What was trained on (the dataset, or the training questions), to warn of questions that are in both.
        confidence: The level of the decision, and the level at which the decisions about all others hold together.
        num_resamples: How many bootstrap resamples, and how many permutations, to draw.
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
    _check_comparable([before, after, *others])
    warnings = leak_warnings(before, after, training)
    for warning in warnings:
        logger.warning(warning)
    return Verdict(
        before=before,
        after=after,
        comparisons=compare_with_each(
            after, [before, *others], confidence=confidence, num_resamples=num_resamples, seed=seed
        ),
        fixed={k: _newly_hit(before, after, k) for k in before.k},
        broken={k: _newly_hit(after, before, k) for k in before.k},
        confidence=confidence,
        warnings=warnings,
    )


def _check_comparable(results: Sequence[Evaluation]) -> None:
    for result in results:
        if not isinstance(result, Evaluation):
            raise TypeError(
                f"compare takes results of TopKEvaluator.evaluate, got a {type(result).__name__}. What Evaluation.save wrote is "
                "read by Evaluation.load(path)."
            )
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


def _newly_hit(before: Evaluation, after: Evaluation, k: int) -> tuple[str, ...]:
    metric = f"accuracy@{k}"
    flipped = after.per_query_metrics[metric] > before.per_query_metrics[metric]
    return tuple(before.per_query.select(np.flatnonzero(flipped))["query-id"][:])


def _interval(change: MetricChange) -> str:
    return f"{signed(change.low)} to {signed(change.high)}"


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
