"""Puts a folder at its place: two folders are exchanged at once where the system can, else renamed one after the other."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from embedtune.storage.files import sync_all, sync_path
from embedtune.storage.leftovers import remove_old

TRIES = 100
_AT_FDCWD_LINUX, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2  # of linux/fcntl.h, linux/fs.h and macOS's stdio.h


def put_in_place(new: Path, target: Path) -> Path | None:
    """Put a folder that is whole at its place, and return where the one is that was there."""
    with suppress(FileNotFoundError):  # it is new, or another writer is between two renames
        shutil.copymode(target, new)
    sync_all(new)
    old = _swapped(new, target)
    sync_path(target.parent)
    return old


def _swapped(new: Path, target: Path) -> Path | None:
    if not target.exists():
        try:
            new.rename(target)
        except OSError as err:
            if not _was_taken(target, err):
                raise
        else:
            return None
    if _exchanged(new, target):
        return new
    old = new.with_name("old")
    for _ in range(TRIES):
        try:
            _set_aside(target, old)
            new.rename(target)
        except OSError as err:
            if _was_taken(target, err):
                continue
            if old.exists():
                old.rename(target)
            raise
        gone = new.with_name(f"{new.name}-gone")  # no reader takes it for what stands
        with suppress(OSError):
            old.rename(gone)
        return gone
    raise OSError(errno.EBUSY, f"Replaced {TRIES} times by other writers at that moment", str(target))


def _was_taken(target: Path, err: OSError) -> bool:
    """Return whether another writer put its own there: then what was set aside before is outdated, also if it is gone again."""
    return target.exists() or err.errno in (errno.ENOTEMPTY, errno.EEXIST)


def _set_aside(target: Path, old: Path) -> Path:
    """Rename a folder, unless another writer has just done so; what was set aside before is outdated."""
    if target.exists():
        remove_old(old)
    with suppress(FileNotFoundError):
        target.rename(old)
    return old


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths in one step, and return False where the system cannot."""
    exchange = _exchange_function()
    return exchange is not None and exchange(os.fsencode(one), os.fsencode(other)) == 0


@cache
def _exchange_function() -> Callable[[bytes, bytes], int] | None:
    if sys.platform not in ("linux", "darwin"):
        return None
    system: Any = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        swap = getattr(system, "renamex_np", None)
        return None if swap is None else lambda one, other: int(swap(one, other, _RENAME_SWAP))
    rename = getattr(system, "renameat2", None)  # glibc 2.28
    here = _AT_FDCWD_LINUX
    return None if rename is None else lambda one, other: int(rename(here, one, here, other, _RENAME_EXCHANGE))
