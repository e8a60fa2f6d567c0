"""The first screen of a verdict, for a person who decides: as text of 80 columns, and as HTML."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from textwrap import fill
from typing import TYPE_CHECKING

from embedtune.evaluation.record import interval_text, percent, short_name
from embedtune.tables import html_table, signed, text_table

if TYPE_CHECKING:
    from embedtune.evaluation.record import VerdictRecord
    from embedtune.evaluation.result import Evaluation

_WIDTH = 80
_LABEL = 10
_MAX_NAME = 26
_BAR = 32


def headline(verdict: VerdictRecord) -> str:
    """Return what to do and why, in a sentence."""
    return f"{verdict.headline.capitalize()}: {verdict.reason}"


def counts(verdict: VerdictRecord) -> str:
    """Return how many questions find their chunk, before and after."""
    k = verdict.k
    before, after = (_num_hits(run, k) for run in (verdict.before, verdict.after))
    change = f"instead of {before:,}" if after != before else "as before"
    return (
        f"Of {verdict.num_queries:,} questions, {after:,} {change} find their chunk among the first {k}: "
        f"{len(verdict.fixed[k]):,} fixed, {len(verdict.broken[k]):,} broken."
    )


def weighed(verdict: VerdictRecord) -> list[Evaluation]:
    """Return the results that the headline weighs, in the order of the picture: before, BM25 and after."""
    bm25 = [verdict.bm25.other] if verdict.bm25 is not None else []
    return [verdict.before, *bm25, verdict.after]


def facts(verdict: VerdictRecord) -> Iterator[tuple[str, str]]:
    """Yield what else a person needs to decide: a label and a sentence or two each."""
    yield "How sure", _how_sure(verdict)
    others = [one for one in verdict.comparisons[1:] if one is not verdict.bm25]
    said = {"worse": "finds more", **({"cannot tell": "may be as good"} if verdict.headline == "ship it" else {})}
    if ahead := [f"{short_name(one.other)} {said[one.decision]}" for one in others if one.decision in said]:
        yield "But", "; ".join(ahead) + "."
    if verdict.forgetting is not None:
        general = verdict.forgetting.verdict
        change = general.metrics[general.primary_metric]
        yield (
            "Elsewhere",
            f"{general.primary_metric} {change.before:.3f} -> {change.after:.3f} on {general.num_queries} general questions "
            f"({interval_text(change)}; a loss of {verdict.forgetting.margin:g} is acceptable).",
        )
    if price := _price(verdict):
        yield "Price", price
    for warning in verdict.warnings:
        yield "Check", warning
    yield "Next", verdict.next_step


def text_summary(verdict: VerdictRecord) -> str:
    """Return the first screen as text of at most 80 columns."""
    blocks = [
        fill(headline(verdict), _WIDTH),
        fill(counts(verdict), _WIDTH),
        _bars(verdict),
        "\n".join(
            fill(text, _WIDTH, initial_indent=label.ljust(_LABEL), subsequent_indent=" " * _LABEL)
            for label, text in facts(verdict)
        ),
    ]
    return "\n\n".join(blocks)


def text_statistics(verdict: VerdictRecord) -> str:
    """Return what comes after the first screen: the notes and the tables."""
    lines = [verdict.title, *verdict.notes[len(verdict.warnings) :]]
    return "\n".join([*lines, *(f"\n{text_table(header, rows)}" for header, rows in verdict.tables())])


def html_summary(verdict: VerdictRecord, picture: str) -> str:
    """Return the first screen for a notebook, the statistics folded below it.

    Args:
        verdict: The verdict.
        picture: An SVG.
    """
    notes = "".join(f"<p>{escape(line)}</p>" for line in [verdict.title, *verdict.notes[len(verdict.warnings) :]])
    tables = "".join(html_table(header, rows) for header, rows in verdict.tables())
    rows = "".join(f"<p><b>{escape(label)}</b> {escape(text)}</p>" for label, text in facts(verdict))
    return (
        f"<p><strong>{escape(headline(verdict))}</strong></p><p>{escape(counts(verdict))}</p>{picture}{rows}"
        f"<details><summary>Statistics</summary>{notes}{tables}</details>"
    )


def _num_hits(run: Evaluation, k: int) -> int:
    return int(run.per_query_metrics[f"accuracy@{k}"].sum())


def _how_sure(verdict: VerdictRecord) -> str:
    metric = verdict.primary_metric
    shown = [verdict.comparisons[0], *([verdict.bm25] if verdict.bm25 is not None else [])]
    against = "; ".join(
        f"{signed(change.difference)} against {short_name(one.other)} ({interval_text(change)})"
        for one, change in ((one, one.metrics[metric]) for one in shown)
    )
    return (
        f"{metric} {against}: {percent(verdict.confidence_level)} intervals, {verdict.num_queries:,} questions about "
        f"{verdict.num_clusters:,} {verdict.unit}."
    )


def _price(verdict: VerdictRecord) -> str:
    parts = []
    if verdict.seconds is not None:
        minutes = verdict.seconds / 60
        parts.append(f"{minutes:.1f} minutes" if minutes >= 1 else f"{verdict.seconds:.0f} seconds")
        parts[-1] += " of training and measuring"
    if verdict.cost_usd is not None:
        parts.append(f"${verdict.cost_usd:.2f} for the questions")
    return ", ".join(parts) + "." if parts else ""


def _bars(verdict: VerdictRecord) -> str:
    metric = f"accuracy@{verdict.k}"
    runs = weighed(verdict)
    names = [short_name(run)[:_MAX_NAME] for run in runs]
    width = max(map(len, names))
    lines = [f"{'':{width}}  found among the first {verdict.k}, {percent(verdict.confidence_level)} interval"]
    for name, run in zip(names, runs, strict=True):
        share, interval = run.metrics[metric], run.intervals(confidence_level=verdict.confidence_level)[metric]
        bar = "#" * round(_BAR * share)
        lines.append(f"{name:{width}}  {bar:.<{_BAR}} {share:4.0%} ({interval.low:.0%} to {interval.high:.0%})")
    return "\n".join(lines)
