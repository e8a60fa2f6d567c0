"""Folders: replaced or joined with others whole, and read as one version while they are."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from embedtune.storage.files import naming, sync_all, sync_path
from embedtune.storage.leftovers import standing, workspace
from embedtune.storage.renaming import TRIES, put_in_place

_T = TypeVar("_T")
_Entries = tuple[int, frozenset[str]]

_TRIES_IF_MISSING = 5


@contextmanager
def replaced_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill, and replace ``path`` by it once the block ends without an error.

    Until then ``path`` does not change.

    Raises:
        NotADirectoryError: If ``path`` is a file, which stays as it is.
        OSError: If it cannot be written; it names ``path``.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "data"
        >>> with replaced_folder(target) as folder:
        ...     _ = (folder / "a.txt").write_text("whole")
        >>> (target / "a.txt").read_text()
        'whole'
    """
    target = _place(path)
    with naming(target), workspace(target.parent, target.name, target) as room:
        new = room / "new"
        new.mkdir()
        yield new
        put_in_place(new, target)


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
        NotADirectoryError: If ``path`` is a file, which stays as it is.
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
    target = _place(path)
    is_fixed = target.is_dir() and not _can_be_renamed(target)
    with naming(target), workspace(target if is_fixed else target.parent, target.name, target) as room:
        new = room / "new"
        new.mkdir()
        yield new
        if is_fixed:
            _move_files(new, target, without)
            return
        _merge(new, target, without)


def is_folder(path: str | Path) -> bool:
    """Return whether `read_folder` finds a folder there, also while it is being replaced.

    Example:
        >>> is_folder("/")
        True
    """
    return standing(Path(path)).is_dir()


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
    for attempt in range(TRIES):
        folder = standing(Path(path))
        before, failure = _identity(folder), None
        try:
            result = read(folder)
        except Exception as err:
            failure = err
        if before is None and (failure is None or attempt < _TRIES_IF_MISSING):
            time.sleep(0.01)  # it may be between two renames
        elif before == _identity(folder) and folder == standing(Path(path)):
            if failure is not None:
                raise failure
            return result
    raise OSError(errno.EBUSY, f"Replaced {TRIES} times while it was read. Stop its writers", str(path))


def _place(path: str | Path) -> Path:
    target = Path(path).resolve()
    try:  # asked once: between two renames of another writer nothing stands there
        is_other = not stat.S_ISDIR(target.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        is_other = False
    if is_other:
        raise NotADirectoryError(errno.ENOTDIR, "A folder cannot replace a file. Choose another path", str(target))
    return target


def _merge(own: Path, target: Path, without: Collection[str]) -> None:
    """Put a folder at its place, joined with what only the one there holds. What stands is never changed, only replaced.

    If what was replaced is not what was joined, another writer came between: then its files are joined, and so on.
    """
    there, known = target, set[_Entries]()
    for number in range(TRIES):
        new = own.with_name(f"joined-{number}")
        join = partial(_joined, own, new, without)
        known.add(read_folder(there, join) if is_folder(there) else join(None))
        known.add(_entries(new))
        old = put_in_place(new, target)
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


def _can_be_renamed(folder: Path) -> bool:
    return (
        not os.path.ismount(folder)
        and os.access(folder.parent, os.W_OK)
        and not Path.cwd().resolve().is_relative_to(folder)
    )


def _move_files(new: Path, target: Path, without: Collection[str]) -> None:
    sync_all(new)
    own = sorted(file.relative_to(new) for file in new.rglob("*") if file.is_file())
    for file in own:
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        (new / file).replace(place)
    kept = {target / one for file in own for one in (file, *file.parents)}
    for name in without:
        for path in [target / name, *(target / name).rglob("*")]:
            if path not in kept:
                _remove(path)
    sync_path(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Return what no other folder at the same path has."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
