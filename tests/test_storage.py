"""Writing: whole or not at all."""

from __future__ import annotations

import os
import stat
import sys

import pytest

from embedtune.storage import merged_folder, replace_file, replaced_folder


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


def test_the_old_folder_comes_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    target = tmp_path / "data"
    target.mkdir()
    (target / "old").write_text("1")
    rename = type(target).rename

    def fail(self, other):
        if self.name == "new":
            raise OSError("no")
        return rename(self, other)

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
