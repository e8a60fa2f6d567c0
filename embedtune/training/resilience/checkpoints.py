"""Checkpoints that are whole or do not count: a manifest is written last, and only what has one is resumed from."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from embedtune.storage import replace_file

logger = logging.getLogger(__name__)

MANIFEST_NAME = "checkpoint_manifest.json"


def seal(folder: str | Path) -> None:
    """Write the manifest of a checkpoint, which says that it is complete: every file with its size and SHA-256."""
    root = Path(folder)
    files = {path.relative_to(root).as_posix(): _entry(path) for path in _files_of(root)}
    replace_file(root / MANIFEST_NAME, json.dumps({"written_ns": time.time_ns(), "files": files}, indent=2) + "\n")


def fault_of(folder: str | Path, *, read_files: bool = True) -> str | None:
    """Say what a checkpoint lacks to be complete, as a clause, or None for a complete one.

    Args:
        folder: The checkpoint.
        read_files: Compare contents too; else sizes alone.
    """
    root = Path(folder)
    manifest = _manifest(root)
    if manifest is None:
        return f"it has no readable {MANIFEST_NAME}, which is written last"
    for name, expected in manifest["files"].items():
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes in the place of {expected['size']}"
        if read_files and _sha256(path) != expected["sha256"]:
            return f"{name} has changed since it was written"
    return None


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """Return the complete checkpoints of a run, the newest first, judged by their manifests and the sizes of their files."""
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if not fault_of(path, read_files=False)]
    # By time, not by step: a second run into the same folder begins at step 1 again.
    return sorted(found, key=_written, reverse=True)


def resumable(checkpoint: str | bool, output_dir: str | Path) -> Path:
    """Return the checkpoint to resume from, having read every byte of it.

    Args:
        checkpoint: Its folder, or True for the newest complete one of ``output_dir``.
        output_dir: The folder of the run.

    Raises:
        FileNotFoundError: If there is no such folder, or no complete checkpoint.
        ValueError: If the checkpoint that is named is not complete, or cannot be trained on.
    """
    if checkpoint is True:
        return _newest(output_dir)
    path = Path(str(checkpoint))
    if not path.is_dir():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.{_others(path)}")
    if fault := fault_of(path):
        raise ValueError(
            f"The checkpoint {str(path)!r} is not complete: {fault}.{_others(path)} If another program wrote it, and "
            "you know that it is whole, declare it so with embedtune.training.resilience.checkpoints.seal(path)."
        )
    _check_trainable(path)
    return path


@contextmanager
def written_whole(folder: str | Path) -> Iterator[None]:
    """Seal the checkpoint that the block writes to ``folder``.

    If the block fails, for instance because the disk is full, what it has written is removed, and what stood there
    before comes back.
    """
    target = Path(folder).absolute()
    aside = target.with_name(f".{target.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        target.rename(aside)
    try:
        yield
        seal(target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        if aside.exists():
            aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def rotate(output_dir: str | Path, *, keep: Path, best: str | None, limit: int | None) -> None:
    """Delete what is beyond ``limit``: incomplete checkpoints first, then the oldest; never the one just written, nor the best.

    The stock rotation goes by the folders' times or names, and so may prefer an incomplete checkpoint to a complete one.
    """
    if limit is None or limit <= 0:
        return
    protected = [keep.absolute(), *([Path(best).absolute()] if best else [])]
    complete = [path.absolute() for path in complete_checkpoints(output_dir)]
    everything = [path.absolute() for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    by_worth = list(dict.fromkeys([*protected, *complete, *everything]))
    for path in by_worth[max(limit, len(set(protected))) :]:
        shutil.rmtree(path, ignore_errors=True)


def _newest(output_dir: str | Path) -> Path:
    for path in complete_checkpoints(output_dir):
        if fault := fault_of(path):
            logger.warning("The checkpoint %s is passed over: %s.", path, fault)
            continue
        _check_trainable(path)
        return path
    raise FileNotFoundError(
        f"There is no complete checkpoint in {str(output_dir)!r} to resume from. Start anew with trainer.train()."
    )


def _check_trainable(path: Path) -> None:
    """Raise a ``ValueError`` if what training needs was not saved; the stock trainer would start a new optimiser in silence."""
    # A file optimizer.pt; under FSDP a folder optimizer_0, under DeepSpeed a folder global_step<n>.
    has_optimizer = any(entry.name.startswith(("optimizer", "global_step")) for entry in path.iterdir())
    if not (has_optimizer and (path / TRAINER_STATE_NAME).exists()):
        raise ValueError(
            f"The checkpoint {str(path)!r} holds a model to use, but no optimiser to go on with (save_only_model=True). Load "
            f"it with load_model({str(path)!r}) and begin a new run."
        )


def _others(checkpoint: Path) -> str:
    others = [path for path in complete_checkpoints(checkpoint.parent) if path.name != checkpoint.name]
    return f" Complete ones there: {', '.join(path.name for path in others)}." if others else ""


def _files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)


def _entry(path: Path) -> dict[str, Any]:
    """Describe a file once it is on the disk itself: the manifest must not outlive its files in a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _manifest(root: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((root / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def _written(root: Path) -> int:
    return int((_manifest(root) or {}).get("written_ns", 0))
