"""The accuracy of every retriever as an SVG, readable without colour and without a library."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from embedtune.evaluation.report.results import runs_of

if TYPE_CHECKING:
    from embedtune.evaluation.record import VerdictRecord
    from embedtune.evaluation.report.results import Run, Score

# Okabe and Ito's colours, which people with any colour vision distinguish; the marks differ in grey print too.
_COLOURS = ("#6b747d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b98500", "#1c2024")
MARKS = (
    "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0",
    "M-5.5,-5.5h11v11h-11z",
    "M0,-7.5L7.5,0L0,7.5L-7.5,0z",
    "M0,-7L6.5,5h-13z",
    "M0,7L6.5,-5h-13z",
    "M-6,-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
    "M-7,-3.5h14v7h-14z",
)
"""Shapes of about 12 by 12 around the origin, one for each retriever."""

_WIDTH, _ROW, _TOP, _GAP = 760, 24, 64, 14
_LEFT, _RIGHT = 290, 610  # where 0% and 100% are
_MAX_NAME = 26


def accuracy_svg(verdict: VerdictRecord) -> str:
    """Draw accuracy@k with its interval: a row for each retriever, the judged one last, below each k."""
    runs = list(enumerate(runs_of(verdict)))
    runs = [runs[0], *runs[2:], runs[1]]
    ks = verdict.before.k
    height = _TOP + len(ks) * (len(runs) * _ROW + _GAP)
    body = "".join(_group(runs, k, _TOP + i * (len(runs) * _ROW + _GAP)) for i, k in enumerate(ks))
    title = f"{verdict.num_queries:,} questions, {verdict.num_chunks:,} chunks to choose from"
    grid = "".join(
        f'<line x1="{_x(share)}" x2="{_x(share)}" y1="{_TOP - 6}" y2="{height - _GAP}" stroke="#d9dde1"/>'
        f'<text x="{_x(share)}" y="{_TOP - 12}" text-anchor="middle" fill="#5b646d" font-size="12">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        'style="max-width:100%;height:auto" font-family="system-ui, -apple-system, \'Segoe UI\', Arial, sans-serif" font-size="14">'
        f'<title>How many questions find their chunk among the first k</title><rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
        f'<text x="16" y="24" fill="#1c2024" font-weight="600">Questions that find their chunk among the first k</text>'
        f'<text x="{_WIDTH - 16}" y="24" text-anchor="end" fill="#5b646d" font-size="12">{title}</text>{grid}{body}</svg>\n'
    )


def _group(runs: list[tuple[int, Run]], k: int, top: int) -> str:
    rows = "".join(_row(i, run, run.scores[f"accuracy@{k}"], top + row * _ROW) for row, (i, run) in enumerate(runs))
    return f'<text x="16" y="{top + 17}" fill="#1c2024" font-weight="600">first {k}</text>{rows}'


def _row(i: int, run: Run, score: Score, top: int) -> str:
    colour, y, weight = _COLOURS[i % 7], top + _ROW // 2, 600 if i == 1 else 400
    name = run.name if len(run.name) <= _MAX_NAME else f"{run.name[: _MAX_NAME - 1]}…"
    return (
        f'<text x="{_LEFT - 12}" y="{y + 5}" text-anchor="end" fill="#1c2024" font-weight="{weight}">{_shown(name)}</text>'
        f'<line x1="{_x(score.low)}" x2="{_x(score.high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3" '
        f'stroke-opacity="0.65" stroke-linecap="round"/>'
        f'<path transform="translate({_x(score.value)} {y})" d="{MARKS[i % 7]}" fill="{colour}" stroke="#fff"/>'
        f'<text x="{_RIGHT + 14}" y="{y + 5}" fill="#1c2024" font-weight="{weight}">{score.value:.1%}'
        f'<tspan fill="#5b646d" font-size="12" font-weight="400" dx="6">{_interval(score)}</tspan></text>'
    )


def _interval(score: Score) -> str:
    return f"{100 * score.low:.1f} to {100 * score.high:.1f}"


def _x(share: float) -> float:
    return round(_LEFT + (_RIGHT - _LEFT) * share, 1)


def _shown(name: str) -> str:
    """Return a name as XML takes it: without control characters, which no file of XML may hold."""
    return escape("".join(one if one.isprintable() else "?" for one in name))
