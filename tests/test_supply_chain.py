"""What the package never does with files of others, and what it depends on."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import embedtune

MODULES = sorted(Path(embedtune.__file__).parent.rglob("*.py"))
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
OF_PROCESSES = {"Parallel", "cpu_count", "delayed", "parallel_config"}  # of joblib: they read no file
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}


def dangers(source: str) -> list[str]:
    """Return what runs the code of a file or a text, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not (
            node.module == "joblib" and OF_PROCESSES.issuperset(alias.name for alias in node.names)
        ):
            names.append(node.module or "")
        found += [f"{node.lineno}: import {name}" for name in names if name.partition(".")[0] in PICKLES]
        if not isinstance(node, ast.Call):
            continue
        called, options = ast.unparse(node.func), {one.arg: ast.unparse(one.value) for one in node.keywords}
        unsafe = {
            "torch.load": options.get("weights_only") != "True",
            "yaml.load": options.get("Loader") not in ("yaml.BaseLoader", "yaml.SafeLoader"),
            "yaml.unsafe_load": True,
            "os.system": True,
        }
        is_unsafe = called in RUNS_TEXT or unsafe.get(called, False)
        is_unsafe |= any(
            options.get(name, "False") != "False" for name in ("trust_remote_code", "allow_pickle", "shell")
        )
        found += [f"{node.lineno}: {called}"] * is_unsafe
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_code_of_a_file_is_run(module):
    assert dangers(module.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=trusted)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_check_sees_what_it_looks_for(source):
    assert len(dangers(source)) == 1
    assert dangers("torch.load(path, weights_only=True); model.eval(); yaml.load(text, Loader=yaml.BaseLoader)") == []


def test_each_dependency_has_a_lower_bound_and_a_reason():
    lines = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    start = lines.index("dependencies = [") + 1
    listed = lines[start : lines.index("]", start)]
    assert len(listed) > 5
    for line in listed:
        assert ">=" in line, line
        assert line.partition("#")[2].strip(), line
