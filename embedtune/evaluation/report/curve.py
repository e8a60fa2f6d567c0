"""The training curve: the loss and the metric on the dev split over the epochs, in coordinates from 0 to 100."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Log = Sequence[Mapping[str, Any]]


class Line(NamedTuple):
    """One logged quantity; points are in percent from the left and from the top."""

    name: str
    values: list[tuple[float, float]]
    points: list[tuple[float, float]]


class Panel(NamedTuple):
    """Lines with common axes; a tick is a position in percent and a label."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def panels_of(log_history: Log, metric: str) -> list[Panel]:
    """Return the panels for the log of a trainer.

    Args:
        log_history: ``trainer.state.log_history``.
        metric: The primary metric, ``"ndcg@10"`` for instance; it is drawn for every evaluator.
    """
    losses = {"training": "loss", "evaluation": "eval_loss"}
    metrics = {
        key.removeprefix("eval_").removesuffix(f"_{metric}"): key
        for key in dict.fromkeys(key for row in log_history for key in row)
        if key.startswith("eval_") and key.endswith(f"_{metric}")
    }
    panels = (_panel("Loss", log_history, losses), _panel(metric, log_history, metrics))
    return [panel for panel in panels if panel is not None]


def _panel(title: str, log_history: Log, keys: Mapping[str, str]) -> Panel | None:
    series = {name: values for name, key in keys.items() if (values := _values(log_history, key))}
    if not series:
        return None
    last_epoch = max((row["epoch"] for row in log_history if _is_number(row.get("epoch"))), default=0.0)
    x_ticks = _ticks(0.0, last_epoch or 1.0)
    ys = [y for values in series.values() for _, y in values]
    y_ticks = _ticks(min(ys), max(ys))
    right = max(last_epoch, x_ticks[-1]) if last_epoch else x_ticks[-1]
    bottom, top = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(100 * x / right, 2), round(100 * (top - y) / (top - bottom), 2)

    return Panel(
        title,
        [Line(name, values, [place(x, y) for x, y in values]) for name, values in series.items()],
        [(place(x, top)[0], f"{x:g}") for x in x_ticks],
        [(place(0, y)[1], f"{y:g}") for y in y_ticks],
    )


def _values(log_history: Log, key: str) -> list[tuple[float, float]]:
    """Return epoch and value of each row in which both are finite; a loss can be NaN."""
    return [
        (float(row["epoch"]), float(row[key]))
        for row in log_history
        if _is_number(row.get(key)) and _is_number(row.get("epoch"))
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers that enclose ``low`` and ``high``."""
    if high <= low:
        low, high = low - abs(low) / 10 - 0.1, low + abs(low) / 10 + 0.1
    exact = (high - low) / 3
    unit = 10 ** math.floor(math.log10(exact))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= exact * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
