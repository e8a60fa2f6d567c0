"""The training benchmark runs, and prints its table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "training.py"


@pytest.mark.slow
def test_the_quick_benchmark_prints_a_row_for_each_contender():
    command = [sys.executable, str(SCRIPT), "--quick"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines() if line.startswith("| ")]
    contenders = [row[2] for row in table[1:]]
    assert contenders == ["sentence-transformers", "hand-written loop", "embedtune"] * 2
    ratios = {(row[0], row[2]): float(row[4]) for row in table[1:]}
    assert ratios["5 x 1", "sentence-transformers"] == 1
    assert ratios["5 x 1", "embedtune"] > ratios["1 x 1", "embedtune"]
    assert all(re.fullmatch(r"\d+%", row[5]) for row in table[1:])
