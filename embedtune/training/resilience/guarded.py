"""A SentenceTransformerTrainer with complete checkpoints, an orderly stop at signals, and a check for NaN."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import should_reduce_batch_size
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from embedtune.storage import merged_folder
from embedtune.training.resilience.checkpoints import put_back, resumable, rotate, written_whole
from embedtune.training.resilience.finite import FiniteGuard
from embedtune.training.resilience.interruption import StopAtCheckpoint
from embedtune.training.resilience.lock import locked, output_named

logger: logging.Logger = logging.getLogger(__name__)

_LESS_MEMORY = (
    "Training needs more memory than there is. arguments_for_gpu('24GB', model=model, data=data) chooses arguments that fit. By "
    "hand, try in this order: bf16=True, gradient_checkpointing=True, mini_batch_num_tokens=8192, load_model(..., lora=True), a "
    "smaller per_device_train_batch_size, shorter chunks. estimate_memory(model, args, data=data) shows what each saves."
)


class GuardedTrainer(SentenceTransformerTrainer):
    """The part of `EmbeddingTrainer` that handles failures; takes the arguments of ``SentenceTransformerTrainer``."""

    is_in_train: bool
    model_wrapped: nn.Module

    def __init__(self, *args: Any, **options: Any) -> None:
        with output_named():
            super().__init__(*args, **options)
        self._interruption = StopAtCheckpoint()
        self.add_callback(self._interruption)
        self._finite = FiniteGuard(deferred=False)

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """Train.

        Args:
            resume_from_checkpoint: A complete checkpoint, or True for the newest one of ``output_dir``.
            **options: Further arguments of the stock trainer.

        Raises:
            FloatingPointError: At the step whose loss or gradient is not finite.
            torch.OutOfMemoryError: With settings that save memory.
            KeyboardInterrupt: After Ctrl-C, once a checkpoint is complete.
            SystemExit: After SIGTERM, once a checkpoint is complete, with the code 143.
            FileNotFoundError: If there is no checkpoint to resume from.
            ValueError: If the checkpoint to resume from is not complete.
            RuntimeError: If another training writes to the same ``output_dir``.
            OSError: If ``output_dir`` or a checkpoint cannot be written.
        """
        with self._folder_locked():
            if self.is_world_process_zero():
                put_back(self.args.output_dir)
            return self._train_guarded(resume_from_checkpoint, **options)

    def _train_guarded(self, resume_from_checkpoint: str | bool | None, **options: Any) -> Any:
        checkpoint = self._checkpoint_to_resume(resume_from_checkpoint) if resume_from_checkpoint else None
        scaler = getattr(self.accelerator, "scaler", None)
        self._finite = FiniteGuard(
            deferred=self.args.device.type == "cuda", check_gradients=scaler is None, last_checkpoint=checkpoint
        )
        eval_on_start = self.args.eval_on_start
        self.args.eval_on_start = eval_on_start and checkpoint is None  # a resumed run has already done it
        try:
            with (
                self._interruption.listening(),
                self._forward_restored(),
                self._out_of_memory_explained(),
                output_named(),
            ):
                output = super().train(resume_from_checkpoint=checkpoint, **options)
                self._finite.flush()
                return output
        finally:
            self.args.eval_on_start = eval_on_start

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Evaluate as the stock trainer does."""
        with nullcontext() if self.is_in_train else self._forward_restored(), output_named():
            metrics: dict[str, float] = super().evaluate(*args, **options)
        return metrics

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
        """Compute the gradient of a batch as the stock trainer does, and remember the loss."""
        loss: torch.Tensor = super().training_step(model, inputs, *args, **options)
        self._finite.add_loss(loss)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model. The previous contents of ``output_dir`` are replaced only when everything is written."""
        target = Path(output_dir or self.args.output_dir)
        in_place = _internal_call or not self.args.should_save
        with nullcontext(target) if in_place else merged_folder(target) as folder:
            if in_place:
                _remove_adapters(target)
            super().save_model(str(folder), _internal_call=_internal_call)
            if not in_place:
                _remove_adapters(target)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, and delete old ones once it is complete."""
        self._finite.flush()
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        push, self.args.push_to_hub = self.args.push_to_hub, False
        try:
            with written_whole(folder) if self.args.should_save else nullcontext():
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
        except Exception as err:
            raise OSError(
                f"The checkpoint {folder} could not be written ({err}). The last complete one: "
                f"{self._finite.last_checkpoint or 'none yet'}. Make room or choose another output_dir, and go on with "
                "trainer.train(resume_from_checkpoint=...)."
            ) from err
        finally:
            self.args.save_total_limit, self.args.push_to_hub = limit, push
        if push:  # only now that it is complete: an error of the Hub does not make it a bad one
            self._push_from_checkpoint(str(folder))
        self._finite.last_checkpoint = str(folder)
        if self.args.should_save:
            rotate(run, keep=folder, best=self.state.best_model_checkpoint, limit=limit)
        self.accelerator.wait_for_everyone()  # no process may exit before the checkpoint is complete

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """Run an epoch, unless the checkpoint that is resumed from is the end of the run."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient norm, after checking it: the weights have not been changed yet."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._finite.check(self.state.global_step + 1, norm)
        return norm

    def _folder_locked(self) -> AbstractContextManager[None]:
        if not self.is_world_process_zero():
            return nullcontext()
        return locked(self.args.output_dir, writes=self.args.save_strategy != SaveStrategy.NO)

    def _checkpoint_to_resume(self, checkpoint: str | bool) -> str:
        """Choose the checkpoint in one process, so that all resume from the same one."""
        chosen = [str(resumable(checkpoint, self.args.output_dir)) if self.is_world_process_zero() else ""]
        return str(broadcast_object_list(chosen)[0])

    @contextmanager
    def _forward_restored(self) -> Iterator[None]:
        """Remove autocast from the model's forward after the block, because accelerate leaves it there.

        Otherwise the model would encode in bfloat16 from then on, and be compared with the base model in float32.
        """
        try:
            yield
        finally:
            self.is_in_train = False
            if self.accelerator.native_amp and not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
                model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
                model.__dict__.pop("_is_accelerate_prepared", None)  # or the next train() would not add it again
                self.model_wrapped = self.model

    @contextmanager
    def _out_of_memory_explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as err:
            if not should_reduce_batch_size(err):
                raise
            raise torch.OutOfMemoryError(f"{err}\n{_LESS_MEMORY}") from err


def _remove_adapters(folder: Path) -> None:
    """Remove the adapters of a model that was saved in this folder before: they do not belong to the new one."""
    shutil.rmtree(folder / "adapters", ignore_errors=True)
