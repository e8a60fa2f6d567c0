"""The code on the page about evaluation runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from test_evaluator import build, made_up

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.types import Encoder

PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def vectors_of(texts, input_type):
    return [[float(len(text)), float(ord(text[-1])), float("query" in input_type) + 1] for text in texts]


class VoyageClient:
    """Takes what ``voyageai.Client.embed`` takes, and refuses what it refuses."""

    log: list

    def embed(self, texts, model=None, input_type=None, truncation=True, output_dtype=None, output_dimension=None):
        assert isinstance(texts, list)
        assert len(texts) <= 1000
        assert input_type in {"query", "document"}
        self.log.append((len(texts), input_type))
        return SimpleNamespace(embeddings=vectors_of(texts, input_type), total_tokens=0)


class CohereClient:
    """Takes what ``cohere.ClientV2.embed`` takes, and refuses what it refuses."""

    log: list

    def embed(self, *, model, input_type, texts=None, embedding_types=None, truncate=None):
        assert len(texts) <= 96
        assert input_type in {"search_query", "search_document"}
        assert embedding_types == ["float"]
        self.log.append((len(texts), input_type))
        return SimpleNamespace(embeddings=SimpleNamespace(float_=vectors_of(texts, input_type)))


@pytest.mark.parametrize(
    ("name", "package", "client", "class_name"),
    [("VoyageEncoder", "voyageai", VoyageClient, "Client"), ("CohereEncoder", "cohere", CohereClient, "ClientV2")],
)
def test_the_encoders_of_other_providers_work_with_their_clients(monkeypatch, name, package, client, class_name):
    client.log = []
    module = ModuleType(package)
    setattr(module, class_name, client)
    monkeypatch.setitem(sys.modules, package, module)
    (code,) = [block for block in BLOCKS if f"class {name}" in block]
    assert len(code.strip().splitlines()) <= 22
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    encoder = names[name]()
    assert isinstance(encoder, Encoder)
    texts = [f"text {i}" for i in range(300)]
    vectors = encoder.encode_documents(texts)
    np.testing.assert_array_equal(vectors, np.array(vectors_of(texts, "document"), dtype=np.float32))
    assert vectors.dtype == np.float32
    assert len(client.log) > 1
    assert TopKEvaluator(build(*made_up())).evaluate(encoder).num_queries == 40
    assert {input_type.removeprefix("search_") for _, input_type in client.log} == {"query", "document"}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0][:30])
def test_each_block_is_python(block):
    compile(block, str(PAGE), "exec")


@pytest.mark.slow
def test_the_first_example_prints_what_the_page_shows(capsys):
    exec(compile(BLOCKS[0], str(PAGE), "exec"), {})
    printed = capsys.readouterr().out
    shown = re.search(r"^```\n\n```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)[1]
    # Figures may differ in the last digit from machine to machine.
    assert [line.split()[:1] for line in printed.splitlines()] == [line.split()[:1] for line in shown.splitlines()]
