"""The accuracy of every retriever as a matplotlib figure that is readable without colour."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from embedtune.errors import OptionalDependencyError
from embedtune.evaluation.report.results import runs_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from embedtune.evaluation.record import VerdictRecord

# Okabe and Ito's colours, which people with any colour vision distinguish; the markers differ in grey print too.
_COLOURS = ("#6b747d", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
_MARKERS = "osD^vPX"

_MAX_LABEL_WIDTH = 22


def accuracy_figure(verdict: VerdictRecord) -> Figure:
    """Draw accuracy@k over k, as a line with intervals for each retriever.

    Raises:
        OptionalDependencyError: If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as err:
        raise OptionalDependencyError("matplotlib", extra="plot", purpose="verdict.plot()") from err

    runs, ks = runs_of(verdict), verdict.before.k
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    plt.close(figure)  # otherwise a notebook would show it twice
    offsets = 0.09 * (np.arange(len(runs)) - (len(runs) - 1) / 2)
    for i, run in enumerate(runs):
        scores = [run.scores[f"accuracy@{k}"] for k in ks]
        values = np.array([score.value for score in scores])
        errors = [[s.value - s.low for s in scores], [s.high - s.value for s in scores]]
        axes.errorbar(
            np.arange(len(ks)) + offsets[i],
            values,
            yerr=np.abs(errors),
            label=" "
            + fill(run.name.replace("$", r"\$"), _MAX_LABEL_WIDTH),  # matplotlib hides labels that start with "_"
            color=_COLOURS[i % 7],
            marker=_MARKERS[i % 7],
            linewidth=1.2,
            capsize=2.5,
        )
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_xticks(range(len(ks)), [f"top {k}" for k in ks])
    axes.set_ylabel("relevant chunk found")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", color="#d9dde1", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    questions = f"{verdict.num_queries} questions, {verdict.num_chunks} chunks"
    axes.set_title(f"{questions}; bars: {100 * verdict.confidence_level:g}% intervals", fontsize="medium", loc="left")
    return figure
