"""Files: replaced whole and flushed to the disk, with errors that name the path."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from embedtune.storage.leftovers import workspace

# What some network and FUSE mounts answer to fsync.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def replace_file(path: str | Path, content: str | bytes) -> None:
    """Replace a file by bytes, or by a text in UTF-8; readers see the old content or the new one. The mode of the file is kept.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> replace_file(target, "whole")
        >>> target.read_text()
        'whole'
    """
    target = Path(path).absolute()
    # In a new folder, where the file gets the umask's mode; mkstemp would make it readable by its owner only.
    with naming(target), workspace(target.parent, target.name, target) as room:
        new = room / "new"
        new.write_bytes(content if isinstance(content, bytes) else content.encode())
        sync_path(new)
        if target.exists():
            shutil.copymode(target, new)
        new.replace(target)
        sync_path(target.parent)


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


def read_record(path: str | Path, *keys: str, remedy: str) -> dict[str, Any]:
    """Return a JSON object, after checking that it has some keys; what `reading` raises if not.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.json"
        >>> replace_file(target, '{"seed": 0}')
        >>> read_record(target, "seed", remedy="Copy it again.")
        {'seed': 0}
    """
    with reading(path, remedy=remedy):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}, not an object")
        _ = [content[key] for key in keys]
    return content


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Raise errors with the path that was to be written; the system names a temporary file or a parent folder."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        number = getattr(err, "errno", None) or (errno.ENOSPC if "No space" in str(err) else errno.EIO)
        reason = getattr(err, "strerror", None) or str(err)
        raise OSError(number, f"Cannot be written ({reason}). Choose another path", str(target)) from err


def sync(descriptor: int) -> None:
    """Wait until the disk has what was written to a file; does nothing where the file system does not offer that.

    Windows demands a descriptor that may be written to.
    """
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in _NO_FSYNC:
            raise


def sync_all(folder: Path) -> None:
    """Flush a folder and all in it to the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync_path(path)
    sync_path(folder)


def sync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)
