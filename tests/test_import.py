"""``import embedtune`` costs nothing, and every public name is there."""

from __future__ import annotations

import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import embedtune


def imported_by(program):
    """Run a program in a fresh interpreter and return the top-level packages it imported."""
    code = program + "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split())


def test_importing_embedtune_imports_only_the_standard_library_and_the_lazy_loader():
    allowed = {"embedtune", "lazy_loader", "__main__"} | site_packages()
    assert imported_by("import embedtune") - set(sys.stdlib_module_names) <= allowed


def site_packages():
    """What an empty interpreter imports here, for instance through .pth files."""
    return imported_by("")


@pytest.mark.parametrize("names", ["Document, Chunk, Question", "read_documents, chunk_documents", "load_sample"])
def test_the_text_half_imports_neither_torch_nor_datasets(names):
    heavy = {"torch", "transformers", "sentence_transformers", "datasets", "pandas", "pyarrow", "scipy"}
    assert imported_by(f"from embedtune import {names}") & heavy == set()


def test_loading_the_sample_imports_no_torch():
    assert "torch" not in imported_by("import embedtune; embedtune.load_sample()")


@pytest.mark.parametrize("name", embedtune.__all__)
def test_every_public_name_resolves(name):
    assert getattr(embedtune, name).__name__ == name


def test_completion_offers_only_the_public_names():
    assert dir(embedtune) == sorted(embedtune.__all__)


def test_the_public_names_are_about_45():
    assert 40 <= len(embedtune.__all__) <= 50


def test_the_stub_lists_the_names_in_the_order_of_use():
    stub = Path(embedtune.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    names = [line.rpartition(" as ")[2] for line in stub.splitlines() if line.startswith("from ")]
    assert sorted(names) == sorted(embedtune.__all__)
    steps = [
        "read_documents",
        "chunk_documents",
        "generate_questions",
        "build_dataset",
        "load_model",
        "EmbeddingTrainer",
    ]
    steps += ["Retriever", "TopKEvaluator", "compare", "push_to_hub", "answer", "improve"]
    assert [name for name in names if name in steps] == steps


@pytest.mark.parametrize("name", ["Verdict", "Evaluation", "Hit", "Answer", "Round", "LLM", "Encoder", "Price"])
def test_results_and_protocols_stay_in_their_modules(name):
    assert name not in embedtune.__all__


@pytest.mark.parametrize(
    ("module", "names"),
    [("types", ["Encoder", "Ranker", "TokenCounter"]), ("llms", ["LLM", "Completion", "Price", "Request"])],
)
def test_what_a_user_may_implement_is_in_two_modules(module, names):
    assert all(hasattr(importlib.import_module(f"embedtune.{module}"), name) for name in names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="fine_tune"):
        embedtune.fine_tune  # noqa: B018


def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(grimp.build_graph("embedtune", cache_dir=None)) == []


def test_a_circle_is_found_also_if_it_is_only_for_annotations(tmp_path, monkeypatch):
    package = tmp_path / "circular_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("import circular_package.second")
    (package / "second.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import circular_package.first"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = circle_in(grimp.build_graph("circular_package", cache_dir=None))
    assert {"circular_package.first", "circular_package.second"} == set(found)


def circle_in(graph):
    """Return modules that import each other in a circle, packages and their own modules included, or an empty list."""
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []
