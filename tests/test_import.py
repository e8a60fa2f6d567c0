"""``import embedtune`` costs nothing, and every public name is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import embedtune


def imported_by(program):
    """Run a program in a fresh interpreter and return the top-level packages it imported."""
    code = program + "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split())


def test_importing_embedtune_imports_the_standard_library_alone():
    assert imported_by("import embedtune") - set(sys.stdlib_module_names) <= {"embedtune", "__main__"} | site_packages()


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


def test_completion_offers_the_public_names_alone():
    assert dir(embedtune) == sorted(embedtune.__all__) == sorted(embedtune._HOME)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'embedtune' has no attribute 'fine_tune'"):
        embedtune.fine_tune  # noqa: B018
