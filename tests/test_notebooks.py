"""The notebooks are stored without output, and run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from loopback import world

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
FASTER = {
    "EPOCHS": 1,
    "NUM_DOCUMENTS": 6,
    "BATCH_SIZE": 8,
    "MAX_SEQ_LENGTH": 64,
}


def read(path):
    return nbformat.read(path, as_version=4)


def with_fewer_steps(notebook):
    """Put a cell behind the one of parameters that sets some of them anew."""
    position = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    names = [name for name in FASTER if f"{name} = " in notebook.cells[position].source]
    lines = [f"{name} = {FASTER[name]!r}" for name in names]
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_output(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert cells
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, tiny_model_folder):
    nbformat.write(with_fewer_steps(read(path)), tmp_path / path.name)
    with world(tmp_path, bert=tiny_model_folder) as environment:
        if path.stem == "continuous_improvement":  # its script takes the place of the language model
            del environment["ANTHROPIC_API_KEY"]
        done = subprocess.run(
            [sys.executable, "-m", "jupyter", "execute", "--inplace", path.name],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    outputs = [output for cell in read(tmp_path / path.name).cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}).get("text/html", "") for output in outputs]
    assert any(shown)
    judges = any(re.search(r"^(run|verdict)$", cell.source, re.MULTILINE) for cell in read(path).cells)
    assert judges == any("<svg" in html for html in shown)
