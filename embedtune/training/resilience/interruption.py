"""SIGTERM and Ctrl-C: finish the step, write a complete checkpoint, and exit as if killed."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger: logging.Logger = logging.getLogger(__name__)

_DEFAULTS = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


class StopAtCheckpoint(TrainerCallback):
    """Stops a run with a checkpoint at the end of the step in which a signal arrives, in every process at the same step.

    At the last step of an epoch, evaluation and the choice of the best checkpoint come first, so that a resumed run
    continues as if it had not been interrupted.

    Attributes:
        received: The signal that has arrived in this process.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._stopping = False
        self._group: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Replace Python's default signal handlers within the block; the user's own handlers stay."""
        previous: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            previous = {s: h for s, h in _DEFAULTS.items() if signal.getsignal(s) == h}
        self.received, self._stopping = None, False
        for number in previous:
            signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.received is not None:  # it arrived after the last step: everything is saved
            self._leave()

    def _receive(self, number: int, _frame: Any) -> None:
        # torchrun passes Ctrl-C on, so it arrives twice: only the first signal counts.
        self.received = self.received or signal.Signals(number)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open a process group on the CPUs, because asking a GPU would make every step wait for it."""
        if args.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Exit before the first step if a signal has arrived: there is nothing to save yet."""
        if state.global_step == 0 and self._agree():
            self._leave()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint, unless the epoch or the run also ends here."""
        if self._agree() and state.epoch % 1 != 0 and state.global_step < state.max_steps:
            control.should_save = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint after the evaluation at the end of an epoch."""
        if self._agree():
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Exit, now that the checkpoint is complete."""
        if self._stopping:
            logger.warning(
                "Stopped at step %d of %d. Resume with trainer.train(resume_from_checkpoint=True).",
                state.global_step,
                state.max_steps,
            )
            self._leave()

    def _agree(self) -> bool:
        """Return whether any process has received a signal; every process must call this."""
        stop = self._stopping or self.received is not None
        if self._group is not None:
            any_stop = torch.tensor(int(stop))
            dist.all_reduce(any_stop, dist.ReduceOp.MAX, group=self._group)
            stop = bool(any_stop)
        self._stopping = stop
        return stop

    def _leave(self) -> NoReturn:
        received, self.received = self.received, None
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (received or signal.SIGTERM))
