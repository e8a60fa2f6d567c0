"""Complete checkpoints: a marker is written last, and only a checkpoint with a marker is resumed from."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from embedtune.storage import replace_file, sync

MARKER_NAME = "checkpoint_complete.json"
_REPLACED = ".replaced"  # follows the name of a checkpoint that is set aside while another one is written in its place


def seal(folder: str | Path) -> None:
    """Mark a checkpoint as complete: write the marker, with the size of each file."""
    root = Path(folder)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != MARKER_NAME]
    for path in files:
        with path.open("r+b") as file:  # the marker must not outlive the files in a power cut
            sync(file.fileno())
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
    replace_file(root / MARKER_NAME, json.dumps({"written_ns": time.time_ns(), "sizes": sizes}, indent=2) + "\n")


def fault_of(folder: str | Path) -> str | None:
    """Return what a checkpoint lacks, as a clause, or None if it is complete."""
    root = Path(folder)
    marker = _marker(root)
    if marker is None:
        return f"it has no readable {MARKER_NAME}, which is written last"
    for name, size in marker["sizes"].items():
        path = root / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return None


def complete_checkpoints(folder: str | Path) -> list[Path]:
    """Return the complete checkpoints of a run, the newest first."""
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if fault_of(path) is None]
    # By time and not by step, because a second run into the same folder begins at step 1 again.
    return sorted(found, key=lambda path: int((_marker(path) or {}).get("written_ns", 0)), reverse=True)


def resumable(checkpoint: str | bool, output_dir: str | Path) -> Path:
    """Return the checkpoint to resume from.

    Args:
        checkpoint: Its folder, or True for the newest complete one of ``output_dir``.
        output_dir: The folder of the run.

    Raises:
        FileNotFoundError: If the folder does not exist, or no checkpoint is complete.
        ValueError: If the checkpoint is not complete, or has no optimizer state.
    """
    if checkpoint is True:
        complete = complete_checkpoints(output_dir)
        if not complete:
            raise FileNotFoundError(
                f"{str(output_dir)!r} has no complete checkpoint to resume from. Start again with trainer.train()."
            )
        path = complete[0]
    else:
        path = Path(str(checkpoint))
        others = [other.name for other in complete_checkpoints(path.parent) if other.name != path.name]
        hint = f" Complete checkpoints there: {', '.join(others)}." if others else ""
        if not path.is_dir():
            raise FileNotFoundError(f"The checkpoint {str(path)!r} does not exist.{hint}")
        if fault := fault_of(path):
            raise ValueError(
                f"The checkpoint {str(path)!r} is not complete: {fault}.{hint} If another program wrote it and you know "
                "that it is complete, mark it with embedtune.training.resilience.checkpoints.seal(path)."
            )
    _check_trainable(path)
    return path


@contextmanager
def written_whole(folder: str | Path) -> Iterator[None]:
    """Mark the checkpoint that the block writes to ``folder`` as complete.

    If the block fails, for example because the disk is full, its files are removed and the previous contents of ``folder``
    come back.
    """
    target = Path(folder).absolute()
    aside = target.with_name(f".{target.name}{_REPLACED}")
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


def put_back(output_dir: str | Path) -> None:
    """Let a checkpoint that a killed run had set aside stand again if the one to replace it is not complete, else remove it."""
    for aside in Path(output_dir).glob(f".{PREFIX_CHECKPOINT_DIR}-*{_REPLACED}"):
        target = aside.with_name(aside.name[1:].removesuffix(_REPLACED))
        if fault_of(aside) is None and fault_of(target) is not None:
            shutil.rmtree(target, ignore_errors=True)
            with suppress(OSError):  # the disk is read-only: what is written next says so
                aside.rename(target)
        else:
            shutil.rmtree(aside, ignore_errors=True)


def rotate(output_dir: str | Path, *, keep: Path, best: str | None, limit: int | None) -> None:
    """Delete checkpoints beyond ``limit``: incomplete ones first, then the oldest; never ``keep`` or ``best``.

    The stock rotation sorts by time or name, so it may keep an incomplete checkpoint and delete a complete one.
    """
    if limit is None or limit <= 0:
        return
    protected = [keep.absolute(), *([Path(best).absolute()] if best else [])]
    complete = [path.absolute() for path in complete_checkpoints(output_dir)]
    everything = [path.absolute() for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")]
    by_worth = list(dict.fromkeys([*protected, *complete, *everything]))
    for path in by_worth[max(limit, len(set(protected))) :]:
        shutil.rmtree(path, ignore_errors=True)


def _check_trainable(path: Path) -> None:
    """Raise a ``ValueError`` if there is no optimizer state; the stock trainer would silently start with a new optimizer."""
    # A file optimizer.pt, under FSDP a folder optimizer_0, under DeepSpeed a folder global_step<n>.
    has_optimizer = any(entry.name.startswith(("optimizer", "global_step")) for entry in path.iterdir())
    if not (has_optimizer and (path / TRAINER_STATE_NAME).exists()):
        raise ValueError(
            f"The checkpoint {str(path)!r} was saved without its optimizer (save_only_model=True), so training cannot go "
            f"on from it. Load it with load_model({str(path)!r}) and start a new run."
        )


def _marker(root: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((root / MARKER_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and isinstance(marker.get("sizes"), dict) else None
