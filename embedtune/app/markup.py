"""The page's HTML. Every text of a document, a question or an error is escaped, so that it is shown and never run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from textwrap import shorten
from typing import TYPE_CHECKING

from embedtune import folder

if TYPE_CHECKING:
    from embedtune.app.desk import Asked
    from embedtune.evaluation.verdict import Verdict
    from embedtune.improvement.rounds import Round
    from embedtune.retrieval.hits import Hit

_SHORT = 280


def title(what: str, verdict: Verdict | None) -> str:
    """Return the head of the page: what is searched, and whether it is to be shipped."""
    head = f"<h1>embedtune</h1><p class='et-what'>{escape(what)}</p>"
    if verdict is None:
        return head
    counts = " ".join(verdict.summary.split("\n\n")[1].split())
    return f"{head}<p><b>{escape(verdict.headline.capitalize())}.</b> {escape(counts)}</p>"


def column_head(name: str, explanation: str) -> str:
    """Return the head of a column of hits."""
    return f"<h2>{escape(name)}</h2><p class='et-what'>{escape(explanation)}</p>"


def hit_card(hit: Hit, rank: int, *, note: str = "", is_named: bool = False) -> str:
    """Return a hit: its place, what vectors and words contribute, and its text, of which a long one is folded.

    Args:
        hit: The hit.
        rank: Its rank, from 1.
        note: What to say beside the place.
        is_named: Whether a person said that it answers the question.
    """
    place = " > ".join([hit.document_id or hit.id, *hit.headings[-1:]])
    words = f" + <span class='et-w'>{hit.words:.2f} words</span>" if hit.words else ""
    right = f"<span class='et-note'>{escape(note)}</span>" if note else ""
    return (
        f"<article class='et-hit{' et-named' if is_named else ''}'>"
        f"<header><b>{rank}. {escape(place)}</b>{right}</header>"
        f"<div class='et-score'>{hit.score:.2f} = <span class='et-v'>{hit.similarity:.2f} vectors</span>{words}</div>"
        f"{_bar(hit)}{_folded(hit.text)}</article>"
    )


def rank_note(asked: Asked, hit: Hit, rank: int) -> str:
    """Return how the rank of a hit differs from that by the base model.

    Example:
        >>> from embedtune.app.desk import Asked
        >>> from embedtune.retrieval.hits import Hit
        >>> one, other = Hit("a", 0.5, "Press."), Hit("b", 0.4, "Turn.")
        >>> rank_note(Asked(1, "How?", hits=(other, one), base=(one, other)), other, 1)
        'was 2'
    """
    if not asked.base:
        return ""
    before = asked.base_rank(hit)
    if before is None:
        return f"was below {len(asked.base)}"
    return "" if before == rank else f"was {before}"


def figures(counts: Mapping[str, int], obstacle: str) -> str:
    """Return how much feedback there is, and what stands in the way of an improvement."""
    rows = "".join(f"<tr><td>{escape(label)}</td><td>{number:,}</td></tr>" for label, number in counts.items())
    warning = f"<p class='et-no'>{escape(obstacle)}</p>" if obstacle else ""
    return f"<table class='et-figures'>{rows}</table>{warning}"


def round_report(round_: Round) -> str:
    """Return the headline of a round of improvement, and every check with its figures."""
    candidates = "".join(
        f"<h3>{escape(one.name)}</h3><ul>"
        + "".join(
            f"<li>{'passed' if check.passed else '<b>failed</b>'}: {escape(check.name)}. {escape(check.detail)}</li>"
            for check in one.checks
        )
        + "</ul>"
        for one in round_.candidates
    )
    rows = "".join(f"<tr><td>{escape(label)}</td><td>{number:,}</td></tr>" for label, number in round_.counts.items())
    return (
        f"<h2>{escape(folder.round_headline(round_))}</h2>{candidates}"
        f"<details><summary>Round {round_.number}: what became of the questions</summary>"
        f"<table class='et-figures'>{rows}</table></details>"
    )


def message(text: str) -> str:
    """Return a sentence that says what went wrong."""
    return f"<p class='et-no'>{escape(text)}</p>"


def _bar(hit: Hit) -> str:
    """Return a bar of what vectors and words contribute; 2 fills it, the largest sum that is usual."""
    by_vectors, by_words = (min(max(part, 0.0), 1.0) * 50 for part in (hit.similarity, hit.words))
    return (
        "<div class='et-bar' aria-hidden='true'>"
        f"<i class='et-bv' style='width:{by_vectors:.1f}%'></i><i class='et-bw' style='width:{by_words:.1f}%'></i></div>"
    )


def _folded(text: str) -> str:
    if len(text) <= _SHORT:
        return f"<div class='et-text'>{escape(text)}</div>"
    short = shorten(text, _SHORT, placeholder=" ...") if " " in text[:_SHORT].strip() else text[:_SHORT]
    return (
        f"<details class='et-text'><summary><span class='et-short'>{escape(short)}</span> "
        "<span class='et-more et-short'>more</span><span class='et-more et-less'>less</span></summary>"
        f"{escape(text)}</details>"
    )
