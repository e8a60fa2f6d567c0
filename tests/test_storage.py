"""Writing: whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from embedtune.storage import (
    files,
    folders,
    is_folder,
    leftovers,
    merged_folder,
    read_folder,
    renaming,
    replace_file,
    replaced_folder,
    temporary_folder,
)


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with replaced_folder(tmp_path / "deep" / "data") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "data").exists()
    assert (tmp_path / "deep" / "data" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_old_folder_stays_when_filling_the_new_one_fails(tmp_path, error):
    target = tmp_path / "data"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(error), replaced_folder(target):
        raise error
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture(params=[True, False], ids=["exchanging", "renaming twice"])
def exchanges(request, monkeypatch):
    """Both kinds of systems."""
    if not request.param:
        monkeypatch.setattr(renaming, "_exchange_function", lambda: None)
    elif renaming._exchange_function() is None:
        pytest.skip("this system cannot exchange folders")
    return request.param


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    target = tmp_path / "data"
    target.mkdir()
    (target / "old").write_text("1")
    rename = type(target).rename

    def fail(self, other):
        if self.name == "new":
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(renaming, "_exchanged", lambda one, other: False)  # a system that renames twice
    monkeypatch.setattr(type(target), "rename", fail)
    with pytest.raises(OSError, match="no"), replaced_folder(target):
        pass
    assert (target / "old").read_text() == "1"


def test_a_replaced_folder_holds_nothing_of_the_old_one(tmp_path):
    for name in ("first", "second"):
        with replaced_folder(tmp_path / "data") as folder:
            (folder / name).write_text(name)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    replace_file(target, "first")
    replace_file(target, "zweite Fassung: ü")
    assert target.read_text(encoding="utf-8") == "zweite Fassung: ü"
    assert list(target.parent.iterdir()) == [target]


def test_the_old_file_stays_when_writing_fails(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    replace_file(target, "first")
    monkeypatch.setattr("os.fsync", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_file(target, "second")
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="there it is no rehearsal")
def test_what_windows_does_not_flush_is_not_flushed(tmp_path, monkeypatch):
    """There `os.fsync` refuses a descriptor that cannot be written to, and a folder cannot be opened."""
    fcntl = pytest.importorskip("fcntl")
    flushed = []

    class OfWindows:
        name = "nt"
        __getattr__ = staticmethod(lambda name: getattr(os, name))

        @staticmethod
        def fsync(handle):
            if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "Bad file descriptor")
            flushed.append(os.fstat(handle).st_size)

    monkeypatch.setattr(files, "os", OfWindows())
    replace_file(tmp_path / "a.txt", "text")
    with replaced_folder(tmp_path / "data") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "b.txt").write_text("whole")
    assert flushed == [4, 5]


@pytest.fixture(params=[0o022, 0o027, 0o077], ids="{:03o}".format)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_what_is_written_has_the_mode_of_any_other_file(tmp_path, umask):
    (tmp_path / "plain.txt").write_text("1")
    (tmp_path / "plain").mkdir()
    replace_file(tmp_path / "a.txt", "1")
    assert mode(tmp_path / "a.txt") == mode(tmp_path / "plain.txt") == 0o666 & ~umask
    for write, name in ((replaced_folder, "replaced"), (merged_folder, "new"), (merged_folder, "plain")):
        with write(tmp_path / name) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "a.txt").write_text("1")
        assert mode(tmp_path / name) == mode(tmp_path / name / "deep") == 0o777 & ~umask
        assert mode(tmp_path / name / "deep" / "a.txt") == 0o666 & ~umask


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_replaced_file_keeps_its_mode(tmp_path):
    target = tmp_path / "a.txt"
    replace_file(target, "first")
    target.chmod(0o640)
    replace_file(target, "second")
    assert mode(target) == 0o640


def write_version(folder, number):
    for name in ("a", "b"):
        (folder / name).write_text(f"{number}")


def versions(folder):
    return {(folder / name).read_text() for name in ("a", "b")}


def after_changes_of_names(step, act, patch=setattr):
    """Let a function be called right after the n-th change of names by this process."""
    left = [step]

    def counting(function):
        def call(*args, **options):
            result = function(*args, **options)
            left[0] -= 1
            if not left[0]:
                act()
            return result

        return call

    for owner, name in (
        (Path, "rename"),
        (Path, "mkdir"),
        (Path, "replace"),
        (os, "link"),
        (shutil, "rmtree"),
        (tempfile, "mkdtemp"),
        (renaming, "_exchanged"),
    ):
        patch(owner, name, counting(getattr(owner, name)))


def killed_after(step, write, *args):
    """Run a function in a child process that is killed right after its n-th change of names; return whether it was."""
    child = os.fork()
    if not child:
        after_changes_of_names(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
        write(*args)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def begun(target, writer):
    """Write the first version of a folder, with a file of somebody else's in it; return what writes the next ones."""

    def write(number):
        with writer(target) as folder:
            write_version(folder, number)

    write(0)
    (target / "mine").write_text("mine")
    return write


def interrupted_after(step, write, *args):
    """Run a function that Ctrl-C ends right after its n-th change of names; return whether it did."""

    def interrupt():
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        after_changes_of_names(step, interrupt, patch.setattr)
        try:
            write(*args)
        except KeyboardInterrupt:
            return True
    return False


@pytest.mark.parametrize("writer", [replaced_folder, merged_folder])
def test_a_writer_that_is_interrupted_at_any_step_leaves_the_old_folder_or_the_new_at_its_place(
    tmp_path, writer, exchanges
):
    target = tmp_path / "data"
    write = begun(target, writer)
    steps = 0
    while interrupted_after(steps + 1, write, steps + 1):
        steps += 1
        assert versions(target) in ({f"{n}"} for n in range(steps + 1))
        assert writer is replaced_folder or (target / "mine").exists()
    assert steps >= 5
    write(-1)
    assert versions(target) == {"-1"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("writer", [replaced_folder, merged_folder])
def test_a_writer_that_is_killed_at_any_step_leaves_the_old_folder_or_the_new_and_nothing_for_the_next_one(
    tmp_path, writer, exchanges
):
    target = tmp_path / "data"
    write = begun(target, writer)
    steps = 0
    while killed_after(steps + 1, write, steps + 1):
        steps += 1
        assert len(read_folder(target, versions)) == 1
    assert steps >= 5
    write(-1)
    assert read_folder(target, versions) == {"-1"}
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "mine"][: 3 if writer is merged_folder else 2]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_file_whose_writer_is_killed_at_any_step_is_the_old_one_or_the_new(tmp_path):
    target = tmp_path / "a.txt"
    replace_file(target, "0")
    steps = 0
    while killed_after(steps + 1, replace_file, target, f"{steps + 1}"):
        steps += 1
        assert target.read_text() in {f"{n}" for n in range(steps + 1)}
    replace_file(target, "whole")
    assert list(tmp_path.iterdir()) == [target]


def test_readers_beside_writers_see_one_version(tmp_path, exchanges):
    target = tmp_path / "data"
    with replaced_folder(target) as folder:
        write_version(folder, 0)
    found, is_over = [], threading.Event()

    def read():
        while not is_over.is_set():
            found.append(read_folder(target, versions))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 150):
        with replaced_folder(target) as folder:
            write_version(folder, number)
    is_over.set()
    for reader in readers:
        reader.join()
    assert len(found) > 10
    assert {len(one) for one in found} == {1}


def test_what_a_living_writer_fills_is_not_taken_for_a_leftover(tmp_path):
    with replaced_folder(tmp_path / "data") as slow:
        with replaced_folder(tmp_path / "data") as fast:
            write_version(fast, 1)
        write_version(slow, 2)
    assert versions(tmp_path / "data") == {"2"}


def test_an_error_of_a_reader_is_its_own_when_nothing_was_replaced(tmp_path):
    with pytest.raises(ZeroDivisionError):
        read_folder(tmp_path, lambda folder: 1 / 0)
    with pytest.raises(FileNotFoundError):
        read_folder(tmp_path / "nothing", lambda folder: list(folder.iterdir()))


def test_other_files_stay_as_they_are_and_what_is_named_goes(tmp_path):
    target = tmp_path / "data"
    (target / "deep").mkdir(parents=True)
    for name in ("deep/mine", "deep/a", "gone"):
        (target / name).write_text("old")
    (target / "link").symlink_to("gone")
    number = (target / "deep" / "mine").stat().st_ino
    with merged_folder(target, without=["gone"]) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("new")
    assert sorted(f"{path.relative_to(target)}" for path in target.rglob("*")) == [
        "deep",
        "deep/a",
        "deep/mine",
        "link",
    ]
    assert (target / "deep" / "a").read_text() == "new"
    assert (target / "link").is_symlink()
    assert (target / "deep" / "mine").stat().st_ino == number  # the same file, not a copy


@pytest.fixture
def without_links(monkeypatch):
    """A disk without hard links."""

    def refuse(*args, **options):
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)


@pytest.mark.usefixtures("without_links")
def test_without_hard_links_other_files_are_copied(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("mine")
    with merged_folder(tmp_path / "data") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "data" / "mine").read_text() == "mine"


def test_the_folder_that_the_process_works_in_is_filled_and_not_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").write_text("1")
    with merged_folder(".", without=["gone"]) as folder:
        (folder / "a").write_text("1")
    assert [path.name for path in Path.cwd().iterdir()] == ["a"]


@pytest.mark.parametrize("why", ["ismount", "access"])
def test_a_folder_that_cannot_be_renamed_is_filled_where_it_is(tmp_path, monkeypatch, why):
    target = tmp_path / "data"
    target.mkdir()
    (target / "a").write_text("old")
    for name in ("deep/old", "deep/new", "gone/old"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("old")
    number = target.stat().st_ino
    if why == "ismount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with merged_folder(target, without=["a", "b", "deep", "gone"]) as folder:
        (folder / "deep").mkdir()
        for name in ("a", "deep/new"):
            (folder / name).write_text("new")
    assert target.stat().st_ino == number
    assert {f"{file.relative_to(target)}": file.read_text() for file in target.rglob("*") if file.is_file()} == {
        "a": "new",
        "deep/new": "new",
    }
    assert not (target / "gone").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_a_killed_writer_put_aside_is_found_and_put_back_whatever_the_name(tmp_path):
    target = tmp_path / "a[1]*?"
    aside = tmp_path / f".{target.name}.new-x" / "old"
    aside.mkdir(parents=True)
    (aside / "a").write_text("old")
    assert is_folder(target)
    assert read_folder(target, lambda folder: (folder / "a").read_text()) == "old"
    with merged_folder(target) as folder:
        (folder / "b").write_text("new")
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_folders_within_a_merged_folder_keep_their_mode(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep").chmod(0o700)
    with merged_folder(tmp_path / "data") as folder:
        (folder / "a").write_text("new")
    assert stat.S_IMODE((tmp_path / "data" / "deep").stat().st_mode) == 0o700


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replaced_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "1"


@pytest.mark.parametrize("write", [replaced_folder, merged_folder])
def test_a_file_at_the_place_of_a_folder_stays_and_is_an_error_before_anything_is_written(tmp_path, write):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("notes.txt")
    for name in ("notes.txt", "link"):
        with (
            pytest.raises(NotADirectoryError, match=r"A folder cannot replace a file.*notes\.txt"),
            write(tmp_path / name),
        ):
            pytest.fail("the block must not be entered")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "notes.txt"]


def test_errors_name_the_path_that_was_given(tmp_path):
    def full():
        raise OSError(28, "No space left on device", "/somewhere/temporary")

    for write in (replaced_folder, merged_folder):
        with (
            pytest.raises(OSError, match=r"Cannot be written \(No space left on device\).*data") as caught,
            write(tmp_path / "data"),
        ):
            full()
        assert caught.value.errno == 28


@pytest.mark.usefixtures("without_links")
def test_without_hard_links_readers_beside_writers_see_one_version_too(tmp_path, exchanges):
    test_of_writers_at_once_each_finishes_and_the_last_one_stays(tmp_path, merged_folder, exchanges)


@pytest.mark.parametrize("writer", [replaced_folder, merged_folder])
def test_of_writers_at_once_each_finishes_and_the_last_one_stays(tmp_path, writer, exchanges):
    target, errors, found, is_over = tmp_path / "data", [], [], threading.Event()

    def write(numbers):
        try:
            for number in numbers:
                with writer(target) as folder:
                    write_version(folder, number)
        except Exception as err:
            errors.append(err)

    def read():
        while not is_over.is_set():
            found.append(read_folder(target, versions))

    write([0])
    writers = [threading.Thread(target=write, args=(range(100 * i + 1, 100 * i + 60),)) for i in range(3)]
    reader = threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    is_over.set()
    reader.join()
    assert errors == []
    assert {len(one) for one in found} == {1}
    assert read_folder(target, versions) in ({"59"}, {"159"}, {"259"})
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("writer", [replaced_folder, merged_folder])
def test_a_folder_that_another_writer_sets_aside_meanwhile_is_not_taken_for_a_file(tmp_path, monkeypatch, writer):
    target, is_dir = tmp_path / "data", Path.is_dir
    write = begun(target, writer)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda path: path != target and is_dir(path))
        write(1)
    assert versions(target) == {"1"}


def test_what_another_writer_puts_there_while_files_are_joined_is_neither_mixed_nor_lost(
    tmp_path, monkeypatch, exchanges
):
    target, link, others = tmp_path / "data", folders._link, ["1", "2"]
    with replaced_folder(target) as folder:
        write_version(folder, 0)

    def overtaken(source, place):
        link(source, place)
        if others and source.is_relative_to(target):
            number = others.pop()
            with merged_folder(target) as folder:
                write_version(folder, number)
                (folder / f"new-{number}").write_text("1")

    monkeypatch.setattr(folders, "_link", overtaken)
    with merged_folder(target) as folder:
        (folder / "mine").write_text("mine")
    assert versions(target) in ({"1"}, {"2"})
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "mine", "new-1", "new-2"]


def test_what_another_writer_puts_there_after_files_were_joined_is_joined_too(tmp_path, monkeypatch, exchanges):
    target, put, others = tmp_path / "data", folders.put_in_place, [1, 2]
    with replaced_folder(target) as folder:
        write_version(folder, 0)

    def overtaken(new, place):
        if others:
            number = others.pop()
            with merged_folder(target) as folder:
                write_version(folder, number)
                (folder / f"new-{number}").write_text("1")
        return put(new, place)

    monkeypatch.setattr(folders, "put_in_place", overtaken)
    with merged_folder(target) as folder:
        (folder / "mine").write_text("mine")
    assert versions(target) in ({"1"}, {"2"})
    assert sorted(path.name for path in target.iterdir()) == ["a", "b", "mine", "new-1", "new-2"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("writer", [replaced_folder, merged_folder])
def test_no_reader_takes_a_folder_that_is_being_removed_for_the_old_one(tmp_path, monkeypatch, writer, exchanges):
    target, remove, found = tmp_path / "data", shutil.rmtree, []

    def remove_while_another_writer_is_between_two_renames(path, **options):
        aside = target.rename(tmp_path / "elsewhere")
        found.append(is_folder(target))
        aside.rename(target)
        remove(path, **options)

    for number in range(3):
        with writer(target) as folder:
            write_version(folder, number)
        monkeypatch.setattr(shutil, "rmtree", remove_while_another_writer_is_between_two_renames)
    assert found
    assert not any(found)
    assert list(tmp_path.iterdir()) == [target]


def test_a_writer_whose_place_another_one_took_between_two_renames_puts_its_own_there(tmp_path, monkeypatch):
    target = tmp_path / "data"
    with replaced_folder(target) as folder:
        write_version(folder, 1)
    monkeypatch.setattr(renaming, "_exchange_function", lambda: None)
    set_aside, others = renaming._set_aside, [2, 3]

    def overtaken(place, old):
        result = set_aside(place, old)
        if others:
            place.mkdir()
            write_version(place, others.pop(0))
        return result

    monkeypatch.setattr(renaming, "_set_aside", overtaken)
    with replaced_folder(target) as folder:
        write_version(folder, 4)
    assert versions(target) == {"4"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(leftovers.fcntl is None, reason="no locks on folders")
def test_a_new_folder_that_another_writer_removes_at_once_is_made_again(tmp_path, monkeypatch):
    make, taken = tempfile.mkdtemp, []

    def watched(**options):
        path = make(**options)
        if not taken:
            taken.append((path, leftovers._lock(Path(path))))
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", watched)
    replace_file(tmp_path / "a.txt", "whole")
    path, handle = taken[0]
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert list(Path(path).iterdir()) == []
    os.close(handle)


@pytest.mark.skipif(leftovers.fcntl is None, reason="no locks on folders")
def test_a_temporary_folder_goes_and_so_do_those_of_killed_processes_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / ".embedtune-push.new-dead").mkdir()
    (tmp_path / ".embedtune-push.new-dead" / "a").write_text("1")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old").write_text("1")
    (tmp_path / ".embedtune-push.new-link").symlink_to(tmp_path / "mine")
    with temporary_folder("push") as living, temporary_folder("push") as second:
        assert living.is_dir()
        assert second.is_dir()
        assert sorted(path.name for path in tmp_path.iterdir() if path not in (living, second)) == [
            ".embedtune-push.new-link",
            "mine",
        ]
    assert not living.exists()
    assert (tmp_path / "mine" / "old").exists()
