"""Stop at a NaN or infinite loss or gradient; the stock trainer logs 0.0 and goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class _Reading:
    """The loss and the gradient norm of a step, on their way to the CPU."""

    step: int
    values: Tensor
    arrived: torch.cuda.Event | None = None

    def read(self) -> tuple[float, float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        loss, grad_norm = self.values.tolist()
        return loss, grad_norm


@dataclass
class FiniteGuard:
    """Checks the loss and the gradient norm of every step.

    On a CPU each step is checked before the weights are updated. On CUDA, reading a number makes the CPU wait for the GPU, so
    the numbers are copied in the background and read one step later, and always before a checkpoint is written: the error
    names the right step, and no bad step reaches the disk.

    Attributes:
        deferred: Read one step later.
        check_gradients: False if an infinite gradient is not an error: the scaler of float16 skips the step.
        last_checkpoint: The checkpoint that the error message names.
    """

    deferred: bool
    check_gradients: bool = True
    last_checkpoint: str | None = None
    _losses: list[Tensor] = field(default_factory=list)
    _pending: _Reading | None = None

    def add_loss(self, loss: Tensor) -> None:
        """Remember the loss of one forward pass of the step."""
        self._losses.append(loss.detach())

    def check(self, step: int, grad_norm: Tensor | float | None) -> None:
        """Check a step or, with ``deferred``, the one before it.

        Raises:
            FloatingPointError: If the loss or the gradient norm is not finite.
        """
        values = self._values(grad_norm)
        self.flush()
        self._pending = _send(step, values)
        if not self.deferred:
            self.flush()

    def flush(self) -> None:
        """Check the step that has not been checked yet.

        Raises:
            FloatingPointError: If the loss or the gradient norm is not finite.
        """
        reading, self._pending = self._pending, None
        if reading is None:
            return
        loss, grad_norm = reading.read()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FloatingPointError(
                f"Training stopped at step {reading.step}: the loss is {loss:g} and the gradient norm {grad_norm:g}. The last "
                f"good checkpoint: {self.last_checkpoint or 'none yet'}. Lower learning_rate or max_grad_norm, raise "
                "warmup_steps, or use bf16=True instead of fp16=True. If the loss is your own, check it for divisions by zero."
            )

    def _values(self, grad_norm: Tensor | float | None) -> Tensor:
        loss = torch.stack(self._losses).sum().float()
        self._losses.clear()
        norm = grad_norm if self.check_gradients and grad_norm is not None else 0.0
        if hasattr(norm, "full_tensor"):  # a sharded tensor
            norm = norm.full_tensor()
        return torch.stack([loss, torch.as_tensor(norm, dtype=torch.float32, device=loss.device)])


def _send(step: int, values: Tensor) -> _Reading:
    if values.device.type != "cuda":
        return _Reading(step, values)
    values = values.to("cpu", non_blocking=True)  # PyTorch puts such a copy into pinned memory
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return _Reading(step, values, arrived)
