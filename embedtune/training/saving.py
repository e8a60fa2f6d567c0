"""What is saved and uploaded: the model as it is in memory, without settings and tokens."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi
from transformers.trainer import (
    OPTIMIZER_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_NAME,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from embedtune.models.selfcheck import check_model
from embedtune.training.adapters import LOSS_WEIGHTS, TRAINED_WEIGHTS
from embedtune.training.resilience.checkpoints import MARKER_NAME

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger: logging.Logger = logging.getLogger(__name__)

_API = HfApi()  # one, so that uploads in the background follow each other

# What a checkpoint holds besides the model.
_STATE = [
    TRAINING_ARGS_NAME,
    TRAINER_STATE_NAME,
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
    SCALER_NAME,
    "optimizer*",
    "rng_state*",
    "global_step*",
    TRAINED_WEIGHTS,
    LOSS_WEIGHTS,
    MARKER_NAME,
]


def check_saved(model: SentenceTransformer, folder: Path) -> None:
    """Raise a ``ValueError`` if plain sentence-transformers gets other vectors from the saved model than from this one."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    if model.device.type == "cuda" and _free_memory(model.device) < 1.5 * size:
        logger.warning(
            "The saved model in %s was not checked, because %s has no room for a second copy. Check it in a new process: "
            "check_model(load_model(%r)).",
            folder,
            model.device,
            str(folder),
        )
        return
    check_model(model, folder=folder).raise_if_failed()


def upload_checkpoint(folder: str | Path, args: Any, *, repo_id: str, step: int) -> list[Any]:
    """Upload the model of a checkpoint in the background and, if ``hub_strategy`` says so, the checkpoint.

    The stock trainer adds its arguments as a pickle, which holds ``hub_token`` and paths of this machine.

    Args:
        folder: The checkpoint. Its model is copied to ``args.output_dir``, because the checkpoint may be deleted meanwhile.
        args: The training arguments.
        repo_id: The repository.
        step: The step, for the commit message.

    Returns:
        The uploads that are under way.
    """
    shutil.copytree(folder, args.output_dir, ignore=shutil.ignore_patterns(*_STATE), dirs_exist_ok=True)
    options = {"repo_id": repo_id, "token": args.hub_token, "run_as_future": True, "revision": args.hub_revision}
    message = f"Training in progress, step {step}"
    uploads: list[Any] = [
        _API.upload_folder(
            folder_path=args.output_dir,
            commit_message=message,
            ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*", *_STATE],
            **options,
        )
    ]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        name = Path(folder).name if args.hub_strategy == HubStrategy.ALL_CHECKPOINTS else "last-checkpoint"
        uploads.append(
            _API.upload_folder(
                folder_path=folder, path_in_repo=name, commit_message=f"{message}, checkpoint", **options
            )
        )
    return uploads


def _free_memory(device: torch.device) -> int:
    """Return the free bytes of a GPU, including those that PyTorch has reserved but does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
