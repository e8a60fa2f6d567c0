"""Writes to disk such that a crash leaves the old content or the new one, never a part."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What some network and FUSE mounts answer to fsync.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and replace ``path`` by it once the block ends without an error.

    Until then ``path`` does not change.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "data"
        >>> with replaced_folder(target) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> (target / "a.txt").read_text()
        'whole'
    """
    target = Path(path).absolute()
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, because renaming is atomic only within one file system.
        workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    new, old = workspace / "new", workspace / "old"
    try:
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def merged_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and move its files to ``path`` once the block ends without an error.

    Each file of the same name is replaced atomically; other files stay.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp())
        >>> _ = (target / "mine.txt").write_text("mine")
        >>> with merged_folder(target) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> sorted(path.name for path in target.iterdir())
        ['a.txt', 'mine.txt']
    """
    target = Path(path).absolute()
    home = target if target.exists() else target.parent  # the same file system, where renaming is atomic
    home.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
    new = workspace / "new"
    try:
        new.mkdir()
        yield new
        if home is not target:
            new.rename(target)
            return
        for source in sorted(file for file in new.rglob("*") if file.is_file()):
            place = target / source.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            source.replace(place)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def replace_file(path: str | Path, text: str) -> None:
    """Replace a file by ``text`` in UTF-8; readers see the old content or the new one. The mode of the file is kept.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> replace_file(target, "whole")
        >>> target.read_text()
        'whole'
    """
    target = Path(path).absolute()
    with _naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # In a new folder, where the file gets the umask's mode; mkstemp would make it readable by its owner only.
        workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            new = workspace / "new"
            with new.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                sync(file.fileno())
            if target.exists():
                shutil.copymode(target, new)
            new.replace(target)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


def sync(descriptor: int) -> None:
    """Wait until the disk has what was written to a file; does nothing where the file system does not offer that.

    Windows demands a descriptor that may be written to.
    """
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in _NO_FSYNC:
            raise


@contextmanager
def reading(path: str | Path, *, remedy: str) -> Iterator[None]:
    """Raise whatever goes wrong with a file that is torn, or of another kind, as a ``ValueError`` with the path and the remedy.

    A file that does not exist is a ``FileNotFoundError``.

    Example:
        >>> import json
        >>> with reading("settings.json", remedy="Copy it again."):
        ...     json.loads('{"a": ')
        Traceback (most recent call last):
        ValueError: settings.json is damaged or incomplete (JSONDecodeError: Expecting value: line 1 column 7 (char 6)). Copy it again.
    """
    try:
        yield
    except FileNotFoundError as err:
        raise FileNotFoundError(f"{path} is missing. {remedy}") from err
    except (MemoryError, ImportError):
        raise
    except Exception as err:  # parsers of torn files raise errors of any kind
        raise ValueError(f"{path} is damaged or incomplete ({type(err).__name__}: {err}). {remedy}") from err


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Raise errors with the path that was to be written; the system names a temporary file or a parent folder."""
    try:
        yield
    except OSError as err:
        raise OSError(err.errno, f"Cannot be written ({err.strerror}). Choose another path", str(target)) from err
