"""The folder of a run: a lock, since a second training would mix its checkpoints with those of the first, and clear errors."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from embedtune.storage import replace_file

logger: logging.Logger = logging.getLogger(__name__)

# Files whose names begin with an underscore are not uploaded by push_to_hub().
LOCK_NAME, HOLDER_NAME = "_training.lock", "_training.holder"

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def locked(output_dir: str | Path, *, writes: bool) -> Iterator[None]:
    """Lock the folder of a run within the block. The system unlocks it if the process is killed.

    Args:
        output_dir: The folder.
        writes: Whether the run will write checkpoints. If not, a folder that cannot be written does not matter.

    Raises:
        RuntimeError: If another training holds the lock.
        OSError: If the folder cannot be written.
    """
    folder = Path(output_dir).absolute()
    lock = _acquired(folder, writes=writes)
    try:
        with suppress(OSError):  # a full disk: the checkpoints will say so
            since = datetime.now(timezone.utc).isoformat(timespec="seconds")
            replace_file(folder / HOLDER_NAME, f"process {os.getpid()} on {socket.gethostname()}, since {since}")
        yield
    finally:
        for name in (HOLDER_NAME, LOCK_NAME) if lock.is_locked else ():
            with suppress(OSError):  # Windows does not delete an open file
                (folder / name).unlink()
        lock.release()


@contextmanager
def output_named() -> Iterator[None]:
    """Raise the stock trainer's errors about what it cannot write with the path and the remedy."""
    try:
        yield
    except OSError as err:
        if (
            err.errno not in _NOT_WRITABLE or err.filename is None or isinstance(err.__cause__, OSError)
        ):  # it is said already
            raise
        raise OSError(
            err.errno, f"Cannot be written ({err.strerror}). Choose another output_dir", err.filename
        ) from err


def _acquired(folder: Path, *, writes: bool) -> BaseFileLock:
    """Return the lock of a folder; it is not locked if the folder cannot be written and need not be."""
    lock = FileLock(folder / LOCK_NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as err:
        raise RuntimeError(
            f"{folder} is in use by another training: {_holder(folder)}. Wait for it, or choose another output_dir."
        ) from err
    except OSError as err:
        if writes and err.errno in _NOT_WRITABLE:
            reason = f"No checkpoint can be written ({err.strerror}). Choose another output_dir"
            raise OSError(err.errno, reason, str(folder)) from err
        logger.info("%s cannot be locked (%s): a second training in it would not be noticed.", folder, err)
    return lock


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER_NAME).read_text(encoding="utf-8")
    except OSError:
        return "an unknown process"
