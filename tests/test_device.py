"""What is computed on a GPU is tried out without one, on a device that only pretends: see ``pretend_device.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no devices written in Python",
)
def test_everything_works_on_another_device():
    checks = Path(__file__).with_name("device_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(checks)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checks.parent.parent)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
