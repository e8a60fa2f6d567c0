"""The best k of each row of scores, of which more and more arrive, with ties broken by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Nearly all scores are far from the best. The largest of this many neighbours shows it for all of them, and looking for it is
# several times as fast as comparing each.
_GROUP = 64


class Best(NamedTuple):
    """Scores and positions of shape ``(num_rows, k)``, best first."""

    scores: torch.Tensor
    positions: torch.Tensor


class RunningBest:
    """The best ``k`` of each row, while blocks of columns arrive from left to right.

    So a score must be strictly higher than the worst of the best to be among them, few are, and a stable sort of old and new
    keeps ties in the order of positions. The few wait, and are sorted in when they are as many as the best: each time the
    columns seen have about doubled.

    Args:
        num_rows: How many rows there are.
        k: How many to keep of each; places that are not taken have the score -inf and the position -1.
        device: Where the scores are.
    """

    def __init__(self, num_rows: int, k: int, device: str | torch.device) -> None:
        scores = torch.full((num_rows, k), -torch.inf, device=device)
        self._best = Best(scores, torch.full((num_rows, k), -1, device=device))
        # Allocated once: many small tensors that outlive large ones would leave holes in the memory between them.
        self._waiting = tuple(
            torch.empty(num_rows * k, dtype=t, device=device) for t in (torch.int64, torch.int64, torch.float32)
        )
        self._num_waiting = 0

    def add(self, scores: torch.Tensor, start: int) -> None:
        """Take in a block of float32 scores, of shape ``(num_rows, num_columns)``, whose columns begin at a position."""
        rows, columns, found = _contenders(scores, self._best.scores[:, -1:], self._best.scores.shape[1])
        end = self._num_waiting + len(rows)
        if end > self._best.scores.numel():
            self._sort_in(rows, columns + start, found)
            return
        for waiting, new in zip(self._waiting, (rows, columns + start, found), strict=True):
            waiting[self._num_waiting : end] = new
        self._num_waiting = end

    def result(self) -> Best:
        """Return the best of all that was added."""
        self._sort_in()
        return self._best

    def _sort_in(self, *new: torch.Tensor) -> None:
        """Merge what waits, and what is new, into the best."""
        best, k = self._best, self._best.scores.shape[1]
        parts = [waiting[: self._num_waiting] for waiting in self._waiting]
        rows, positions, scores = (torch.cat(both) for both in zip(parts, new, strict=True)) if new else parts
        self._num_waiting = 0
        if len(rows) == 0:
            return
        rows, order = rows.sort(stable=True)
        counts = torch.bincount(rows, minlength=len(best.scores))
        # Each row's contenders go behind its best, from the left; a row with fewer is filled up with -inf.
        slots = k + torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        width = k + int(counts.max())
        merged = torch.nn.functional.pad(best.scores, (0, width - k), value=-torch.inf)
        merged[rows, slots] = scores[order]
        where = torch.nn.functional.pad(best.positions, (0, width - k), value=-1)
        where[rows, slots] = positions[order]
        merged, order = merged.sort(dim=1, descending=True, stable=True)
        self._best = Best(merged[:, :k].contiguous(), where.gather(1, order[:, :k]))


def _contenders(scores: torch.Tensor, worst: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows, columns and values of scores above the worst of the best, of shape ``(num_rows, 1)``, row by row."""
    if missing := -scores.shape[1] % _GROUP:
        scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    groups = scores.reshape(len(scores), -1, _GROUP)
    rows, numbers = (groups.amax(dim=2) > worst).nonzero(as_tuple=True)
    values = groups[rows, numbers]
    is_above = values > worst[rows]
    # While the worst is bad, keep what is among the best k of this block, with everything tied to the last of them.
    if is_above.count_nonzero() > 4 * k * len(scores):
        is_above &= values >= scores.topk(k).values[rows, -1:]
    places, within = is_above.nonzero(as_tuple=True)
    return rows[places], numbers[places] * _GROUP + within, values[places, within]


def top_k_of_scores(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pick the ``k`` best columns of each row, by falling score and then rising position.

    Args:
        scores: Finite scores of shape ``(num_queries, num_chunks)``.
        k: How many to pick, at most ``num_chunks``.

    Returns:
        Scores and positions, both of shape ``(num_queries, k)``, best first.

    Example:
        >>> import numpy as np
        >>> top_k_of_scores(np.array([[1, 3, 2, 3]], dtype=np.float32), k=3)[1].tolist()
        [[1, 3, 2]]
    """
    with torch.inference_mode():
        running = RunningBest(len(scores), k, "cpu")
        running.add(torch.tensor(scores), 0)
        best = running.result()
    return best.scores.numpy(), best.positions.numpy()
