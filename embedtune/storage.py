"""Writes to disk such that a crash leaves the old content or the new one, never a part, and reads beside such writes.

A folder is built beside its place, flushed to the disk, and put in its place in one step: Linux and macOS exchange two folders
at once, so that the path always holds the old content or the new, whole. Elsewhere (Windows, a few network disks) the old
folder is renamed and then the new one; between the two nothing is at the path for a moment. If the process dies there, the
old folder is beside the path: `read_folder` reads it from there, and the next writer puts it back.

No symbolic link and no pointer file is needed, so a saved model stays a plain SentenceTransformer folder. A reader opens one
file after the other, so it may see files of two versions: `read_folder` notices that the folder is another one than before,
and reads again. What a reader has opened or mapped stays readable until it is closed. On Windows a folder whose files are open
cannot be replaced: the writer gets an error, and the old content stays.

A folder at its place is never changed, only replaced, so of several writers at once readers see one whole version after the
other. What a killed writer leaves is removed by the next one. A living writer holds a lock on its folder, which ends with the
process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_T = TypeVar("_T")
_Entries = tuple[int, frozenset[str]]

_TRIES_IF_MISSING = 5
_TRIES = 100
_SECONDS_UNTIL_ABANDONED = 24 * 3600.0  # where no lock says whether a writer lives
_AT_FDCWD_LINUX, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2  # of linux/fcntl.h, linux/fs.h and macOS's stdio.h

# What some network and FUSE mounts answer to fsync.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and replace ``path`` by it once the block ends without an error.

    Until then ``path`` does not change.

    Raises:
        OSError: If it cannot be written; it names ``path``.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "data"
        >>> with replaced_folder(target) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> (target / "a.txt").read_text()
        'whole'
    """
    target = Path(path).resolve()
    with naming(target), _workspace(target.parent, target.name, target) as workspace:
        new = workspace / "new"
        new.mkdir()
        yield new
        _put_in_place(new, target)


@contextmanager
def merged_folder(path: str | Path, *, without: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder to fill, and replace the files of the same names in ``path`` once the block ends without an error.

    Other files stay: the new folder holds them by hard links, or by copies where the disk has no links. All files change at
    once, but in a folder that cannot be renamed (it is a mount, its parent is read-only, or this process works in it): there
    they change one after the other.

    Args:
        path: The folder.
        without: Names in it that do not stay.

    Raises:
        OSError: If it cannot be written; it names ``path``.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "data"
        >>> target.mkdir()
        >>> _ = (target / "mine.txt").write_text("mine")
        >>> with merged_folder(target) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> sorted(path.name for path in target.iterdir())
        ['a.txt', 'mine.txt']
    """
    target = Path(path).resolve()
    is_fixed = target.is_dir() and not _can_be_renamed(target)
    with naming(target), _workspace(target if is_fixed else target.parent, target.name, target) as workspace:
        new = workspace / "new"
        new.mkdir()
        yield new
        if is_fixed:
            _move_files(new, target, without)
            return
        _merge(new, target, without)


def _merge(own: Path, target: Path, without: Collection[str]) -> None:
    """Put a folder at its place, joined with what only the one there holds. What stands is never changed, only replaced.

    If what was replaced is not what was joined, another writer came between: then its files are joined, and so on.
    """
    there, known = target, set[_Entries]()
    for number in range(_TRIES):
        new = own.with_name(f"joined-{number}")
        join = partial(_joined, own, new, without)
        known.add(read_folder(there, join) if is_folder(there) else join(None))
        known.add(_entries(new))
        old = _put_in_place(new, target)
        if old is None or not old.is_dir() or _entries(old) in known:
            return
        there = old


def _joined(own: Path, new: Path, without: Collection[str], other: Path | None) -> _Entries:
    """Make a new folder of links to the files of one folder, and to those that only the other one holds."""
    shutil.rmtree(new, ignore_errors=True)  # of an attempt during which the other one was replaced
    new.mkdir()
    _link_missing(own, new)
    if other is None:
        return _entries(new)
    found = _entries(other)
    _link_missing(other, new, without)
    return found


def _entries(folder: Path) -> _Entries:
    """Return what shows that a folder is another one, or holds another file; renaming it does not change that."""
    return folder.stat().st_ino, frozenset(path.name for path in folder.iterdir())


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
    with naming(target), _workspace(target.parent, target.name, target) as workspace:
        new = workspace / "new"
        new.write_bytes(content if isinstance(content, bytes) else content.encode())
        _sync(new)
        if target.exists():
            shutil.copymode(target, new)
        new.replace(target)
        _sync(target.parent)


def is_folder(path: str | Path) -> bool:
    """Return whether `read_folder` finds a folder there, also while it is being replaced.

    Example:
        >>> is_folder("/")
        True
    """
    return _standing(Path(path)).is_dir()


def read_folder(path: str | Path, read: Callable[[Path], _T]) -> _T:
    """Return what ``read`` makes of a folder that may be replaced meanwhile: all of it from the old one, or all from the new.

    Args:
        path: The folder.
        read: Takes the folder and opens all it needs. It is called again where the folder was replaced meanwhile, also after
            an error.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "data"
        >>> with replaced_folder(target) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> read_folder(target, lambda folder: (folder / "a.txt").read_text())
        'whole'
    """
    for attempt in range(_TRIES):
        folder = _standing(Path(path))
        before, failure = _identity(folder), None
        try:
            result = read(folder)
        except Exception as err:
            failure = err
        if before is None and (failure is None or attempt < _TRIES_IF_MISSING):
            time.sleep(0.01)  # it may be between two renames
        elif before == _identity(folder) and folder == _standing(Path(path)):
            if failure is not None:
                raise failure
            return result
    raise OSError(errno.EBUSY, f"Replaced {_TRIES} times while it was read. Stop its writers", str(path))


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
    with _workspace(home, f"embedtune-{purpose}") as folder:
        yield folder


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
def naming(target: Path) -> Iterator[None]:
    """Raise errors with the path that was to be written; the system names a temporary file or a parent folder."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        number = getattr(err, "errno", None) or (errno.ENOSPC if "No space" in str(err) else errno.EIO)
        reason = getattr(err, "strerror", None) or str(err)
        raise OSError(number, f"Cannot be written ({reason}). Choose another path", str(target)) from err


@contextmanager
def _workspace(home: Path, name: str, target: Path | None = None) -> Iterator[Path]:
    """Yield a new folder on the same file system, where renaming is atomic, and remove it; first remove what others left.

    An old content of ``target`` that was set aside there goes back if nothing is at its place.
    """
    home.mkdir(parents=True, exist_ok=True)
    prefix = f".{name}.new-"
    for left in home.glob(f"{_literal(prefix)}*"):
        with abandoned(left) as is_abandoned:
            if is_abandoned:
                _clear(left, target)
    with claimed(lambda: Path(tempfile.mkdtemp(prefix=prefix, dir=home))) as workspace:
        try:
            yield workspace
        finally:
            _clear(workspace, target)


def _clear(left: Path, target: Path | None) -> None:
    """Remove a writer's folder; an old content that is missing at its place goes back there."""
    if target is not None and (left / "old").exists() and not target.exists():
        try:
            (left / "old").rename(target)
        except OSError:
            if not target.exists():  # else another writer was faster, and the old content is outdated
                raise
    _remove_workspace(left)


def _remove_workspace(folder: Path) -> None:
    _remove_old(folder / "old")
    shutil.rmtree(folder, ignore_errors=True)


def _remove_old(old: Path) -> None:
    """Remove what was set aside, first under another name: half of it must not be read as the content of its place."""
    if old.exists():
        gone = old.with_name("gone")
        with suppress(OSError):
            old.rename(gone)
        for one in (gone, old):
            shutil.rmtree(one, ignore_errors=True)


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


def _put_in_place(new: Path, target: Path) -> Path | None:
    """Put a folder that is whole at its place, and return where the one is that was there."""
    with suppress(FileNotFoundError):  # it is new, or another writer is between two renames
        shutil.copymode(target, new)
    _sync_all(new)
    old = _swapped(new, target)
    _sync(target.parent)
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
    for _ in range(_TRIES):
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
    raise OSError(errno.EBUSY, f"Replaced {_TRIES} times by other writers at that moment", str(target))


def _was_taken(target: Path, err: OSError) -> bool:
    """Return whether another writer put its own there: then what was set aside before is outdated, also if it is gone again."""
    return target.exists() or err.errno in (errno.ENOTEMPTY, errno.EEXIST)


def _set_aside(target: Path, old: Path) -> Path:
    """Rename a folder, unless another writer has just done so; what was set aside before is outdated."""
    if target.exists():
        _remove_old(old)
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


def _can_be_renamed(folder: Path) -> bool:
    return (
        not os.path.ismount(folder)
        and os.access(folder.parent, os.W_OK)
        and not Path.cwd().resolve().is_relative_to(folder)
    )


def _move_files(new: Path, target: Path, without: Collection[str]) -> None:
    _sync_all(new)
    for source in sorted(file for file in new.rglob("*") if file.is_file()):
        place = target / source.relative_to(new)
        place.parent.mkdir(parents=True, exist_ok=True)
        source.replace(place)
    for name in without:
        if not (new / name).exists():
            _remove(target / name)
    _sync(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_missing(source: Path, folder: Path, without: Collection[str] = ()) -> None:
    """Link into a folder what it does not hold yet of another one."""
    for entry in source.iterdir():
        place = folder / entry.name
        if entry.name in without:
            continue
        if entry.is_dir() and not entry.is_symlink():
            if not place.exists():
                place.mkdir()
                shutil.copymode(entry, place)
            if place.is_dir():
                _link_missing(entry, place)
        elif not os.path.lexists(place):
            _link(entry, place)


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place, follow_symlinks=not source.is_symlink())  # Windows takes True alone
    except (OSError, NotImplementedError):  # the disk has no hard links
        shutil.copy2(source, place, follow_symlinks=False)


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        sync(handle)
    finally:
        os.close(handle)


def _standing(path: Path) -> Path:
    """Return the folder, or where a killed writer put it aside."""
    if path.exists():
        return path
    target = path.resolve()
    aside = sorted(target.parent.glob(f"{_literal(f'.{target.name}.new-')}*/old"))
    return aside[0] if aside else path


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Return what no other folder at the same path has."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _literal(name: str) -> str:
    """Return a name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
