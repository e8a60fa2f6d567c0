"""How many tokens a run encodes, and in what time, whatever makes the batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Throughput:
    """Counts the tokens that go through the model and the time in which it is trained.

    Tokens are counted as the model gets them: those of a text once for each time that it is encoded, and no padding.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._aside = 0.0
        self._tokens: Tensor | int = 0

    def add(self, inputs: Mapping[str, Any]) -> None:
        """Count a batch, without waiting for the device it is on; the first one starts the clock."""
        if self._started is None:
            self._started, self._aside = time.perf_counter(), 0.0
        for name, ids in inputs.items():
            if name.endswith("input_ids"):
                mask = inputs.get(f"{name.removesuffix('input_ids')}attention_mask")
                self._tokens = self._tokens + (ids.numel() if mask is None else (mask != 0).sum())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block, an evaluation or a checkpoint, out of the rate."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._aside += time.perf_counter() - started

    def metrics(self, accelerator: Any) -> dict[str, float]:
        """Return the tokens of all processes, and the rate without evaluations and checkpoints."""
        now = time.perf_counter()
        seconds = now - (self._started or now) - self._aside
        tokens = torch.as_tensor(self._tokens, device=accelerator.device)
        total = int(accelerator.gather(tokens.reshape(1)).sum())
        return {"train_tokens": total, "train_tokens_per_second": round(total / seconds, 1) if total else 0.0}
