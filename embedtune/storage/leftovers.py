"""The folders in which writers work: each holds a lock on its own, and removes what killed writers left."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SECONDS_UNTIL_ABANDONED = 24 * 3600.0  # where no lock says whether a writer lives


@contextmanager
def claimed(create: Callable[[], Path]) -> Iterator[Path]:
    """Yield a new folder that the next writer does not take for a leftover while the block runs.

    Args:
        create: Makes a folder and returns it. It is called again if another writer removed the folder at once.
    """
    while True:
        folder = create()
        try:
            handle = _lock(folder)
        except BlockingIOError:  # another writer looks whether it is a leftover, and removes it
            continue
        if folder.exists():
            break
        _release(handle)
    try:
        yield folder
    finally:
        _release(handle)


@contextmanager
def abandoned(folder: Path) -> Iterator[bool]:
    """Yield whether the writer of a `claimed` folder is dead; nobody else can remove the folder within the block."""
    try:
        handle = _lock(folder)
    except BlockingIOError:
        yield False
        return
    try:
        yield _is_old(folder) if fcntl is None else handle is not None
    finally:
        _release(handle)


@contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder on the disk for temporary files, and remove it; first remove what killed processes left there.

    Args:
        purpose: A word for its name.

    Example:
        >>> with temporary_folder("push") as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> folder.exists()
        False
    """
    home = Path(tempfile.gettempdir())
    with workspace(home, f"embedtune-{purpose}") as folder:
        yield folder


@contextmanager
def workspace(home: Path, name: str, target: Path | None = None) -> Iterator[Path]:
    """Yield a new folder on the same file system, where renaming is atomic, and remove it; first remove what others left.

    An old content of ``target`` that was set aside there goes back if nothing is at its place.
    """
    home.mkdir(parents=True, exist_ok=True)
    prefix = f".{name}.new-"
    for left in home.glob(f"{literal(prefix)}*"):
        with abandoned(left) as is_abandoned:
            if is_abandoned:
                _clear(left, target)
    with claimed(lambda: Path(tempfile.mkdtemp(prefix=prefix, dir=home))) as folder:
        try:
            yield folder
        finally:
            _clear(folder, target)


def standing(path: Path) -> Path:
    """Return the folder, or where a killed writer put it aside."""
    if path.exists():
        return path
    target = path.resolve()
    aside = sorted(target.parent.glob(f"{literal(f'.{target.name}.new-')}*/old"))
    return aside[0] if aside else path


def literal(name: str) -> str:
    """Return a name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def remove_old(old: Path) -> None:
    """Remove what was set aside, first under another name: half of it must not be read as the content of its place."""
    if old.exists():
        gone = old.with_name("gone")
        with suppress(OSError):
            old.rename(gone)
        for one in (gone, old):
            shutil.rmtree(one, ignore_errors=True)


def _clear(left: Path, target: Path | None) -> None:
    """Remove a writer's folder; an old content that is missing at its place goes back there."""
    if target is not None and (left / "old").exists() and not target.exists():
        try:
            (left / "old").rename(target)
        except OSError:
            if not target.exists():  # else another writer was faster, and the old content is outdated
                raise
    remove_old(left / "old")
    shutil.rmtree(left, ignore_errors=True)


def _is_old(left: Path) -> bool:
    times = [path.stat().st_mtime for path in (left, *left.rglob("*")) if path.exists()]
    return bool(times) and time.time() - max(times) > _SECONDS_UNTIL_ABANDONED


def _lock(folder: Path) -> int | None:
    """Lock a folder until its handle is closed or the process ends; None where that cannot be.

    Raises:
        BlockingIOError: If another has locked it.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(handle)
        if isinstance(err, BlockingIOError):
            raise
        return None
    return handle


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
