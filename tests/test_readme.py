"""The README keeps its figures in one place, and the page on the package index has no link that breaks there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]*\]\(([^)]*)\)")


def test_links_to_files_lead_somewhere():
    targets = {link.partition("#")[0] for link in LINK.findall(README) if not link.startswith(("http", "#"))}
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_the_page_on_the_index_has_no_link_to_a_file():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    hook = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    page = README
    for one in hook["substitutions"]:
        page = re.sub(one["pattern"], one["replacement"], page)
    assert [link for link in LINK.findall(page) if not link.startswith(("http", "#"))] == []
    assert "![" not in page
    assert "benchmarks" in page
    assert len(page) > 0.8 * len(README)


def test_every_figure_of_the_demo_is_in_one_block_below_its_command():
    before, _, rest = README.partition("<!-- demo: ")
    comment, _, rest = rest.partition("-->")
    block, _, after = rest.removeprefix("\n```").partition("```")
    assert "python examples/quickstart.py" in comment
    assert re.match(r"\n(Ship it|Keep what you have|Cannot tell yet): ", block)
    assert max(map(len, block.splitlines())) <= 80
    figures = re.compile(r"\d%|\b0\.\d\d|\b\d\d+ (?:chunks|questions)")
    assert figures.search(block)
    assert figures.findall((before + after).replace("95%", "")) == []
