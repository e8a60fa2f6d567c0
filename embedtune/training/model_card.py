"""The model card that sentence-transformers writes: with the results of the best checkpoint, without training texts."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardCallback

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import TrainerControl, TrainerState

    from embedtune.training.arguments import TuningArguments

# Shown instead of training texts.
_WIDGET = {
    "source_sentence": "Which planet is known as the Red Planet?",
    "sentences": [
        "Venus is often called Earth's twin because of its similar size and proximity.",
        "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
        "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
    ],
}
_SAMPLES = ("examples", "examples_table", "_example_columns")


@dataclass(frozen=True)
class TrainingRun:
    """What the card says about a training run.

    Attributes:
        seconds: Duration, including evaluations.
        device: The device.
        num_devices: Number of devices.
        best_step: The step of the best checkpoint; None if the last one was kept.
    """

    seconds: float
    device: str
    num_devices: int
    best_step: int | None


class ModelCardCallback(SentenceTransformerModelCardCallback):
    """Fills in the model card, without texts of the training data."""

    def on_init_end(
        self,
        args: TuningArguments,
        state: TrainerState,
        control: TrainerControl,
        model: SentenceTransformer,
        trainer: Any,
        **options: Any,
    ) -> None:
        """Describe the training data only by its statistics."""
        card = model.model_card_data
        card.widget = card.widget or [_WIDGET]
        card.ir_model = True  # its usage example has encode_query and encode_document
        super().on_init_end(args, state, control, model=model, trainer=trainer, **options)
        for dataset in [*card.train_datasets, *card.eval_datasets]:
            for key in _SAMPLES:
                dataset.pop(key, None)

    def on_train_end(
        self,
        args: TuningArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002  # a callback's signature
        model: SentenceTransformer,
        **options: Any,  # noqa: ARG002
    ) -> None:
        """Add the time, the device and the results of the checkpoint that was kept."""
        card = model.model_card_data
        best = _best_step(args, state)
        runtime = next((log["train_runtime"] for log in reversed(state.log_history) if "train_runtime" in log), 0.0)
        card.training_run = TrainingRun(runtime, _device_name(args.device), args.world_size, best)
        logs = [log for log in state.log_history if log.get("step") == best]
        for evaluator, metrics in card.eval_results_dict.items():
            found = {key: log[f"eval_{key}"] for log in logs for key in metrics if f"eval_{key}" in log}
            card.eval_results_dict[evaluator] = metrics | found


def _best_step(args: TuningArguments, state: TrainerState) -> int | None:
    best = state.best_model_checkpoint
    return int(best.rpartition("-")[2]) if args.load_best_model_at_end and best else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}"
