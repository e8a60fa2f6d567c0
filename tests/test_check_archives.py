"""What a release is checked for is what the package has."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import embedtune

CHECK = Path(__file__).parent.parent / "tools" / "check_archives.py"
PACKAGE = Path(embedtune.__file__).parent


@pytest.mark.skipif(not CHECK.exists(), reason="the tests run without the repository around them")
def test_a_release_must_hold_each_file_that_is_not_python_and_no_file_that_is_gone():
    needed = set(runpy.run_path(str(CHECK))["NEEDED"])
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    files = {path.as_posix() for path in files if path.suffix not in (".py", ".pyi", ".pyc")}
    handbook = {path for path in files if path.startswith("sample/handbook/")}  # of which one is enough
    assert needed - handbook == files - handbook
    assert needed & handbook
