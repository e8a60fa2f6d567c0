"""Every block of Python in the README and the documentation runs, page by page, in a fresh folder and process.

Claude, OpenAI and the Hub are played on loopback; the Hub has tiny models under the names that the pages use. A block that
cannot run here stands under a comment that says why: `<!-- not run: needs a GPU -->`; one that needs more than the tests, under its
packages, `<!-- needs: chromadb -->`, and it runs where they are installed (`make integrations`). A page whose lines go on where the
first steps end says so in a comment at its top, `<!-- continues: index.md -->`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from loopback import FIRST_STEPS, world

import embedtune as et

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"(<!-- not run: (?P<reason>[^>]+) -->\n|<!-- needs: (?P<packages>[^>]+) -->\n)?```python\n(?P<code>.*?)```",
    re.DOTALL,
)
CONTINUES = "<!-- continues: index.md -->"
REASONS = {"needs a GPU", "needs an account", "needs the internet"}


def blocks(page):
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def missing(block):
    return [name for name in (block["packages"] or "").split(", ") if name and not is_installed(name)]


def is_installed(name):
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that a dotted name is in
        return False


def program(page):
    """Return the page's code at its own lines, so that an error names the line of the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in blocks(page):
        if not block["reason"] and not missing(block):
            first = text.count("\n", 0, block.start("code"))
            for offset, line in enumerate(block["code"].splitlines()):
                lines[first + offset] = line
    return "\n".join(lines)


def runnable():
    """Yield the pages with code; the first steps train a real model on the whole sample, as the demo does."""
    for page in PAGES:
        if program(page).strip():
            yield pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem == "index" else [])


@pytest.mark.parametrize("page", list(runnable()))
def test_the_code_of_a_page_runs(page, tmp_path, tiny_model_folder):
    with world(tmp_path, bert=tiny_model_folder) as environment:
        before = FIRST_STEPS if CONTINUES in page.read_text(encoding="utf-8") else ""
        code = f"{before}\nexec(compile({program(page)!r}, {str(page.relative_to(ROOT))!r}, 'exec'))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, f"{page.name}:\n{done.stderr[-4000:]}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block["packages"] for block in blocks(page))], ids=lambda page: page.stem
)
def test_every_package_that_a_page_needs_is_installed(page):
    if absent := sorted({name for block in blocks(page) for name in missing(block)}):
        pytest.skip(f"the blocks of {page.name} that need {', '.join(absent)} were left out: make integrations")


def test_only_what_cannot_run_is_left_out():
    reasons = [block["reason"] for page in PAGES for block in blocks(page) if block["reason"]]
    assert set(reasons) <= REASONS
    assert len(reasons) < sum(len(blocks(page)) for page in PAGES) / 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if CONTINUES in page.read_text(encoding="utf-8")], ids=lambda page: page.stem
)
def test_a_page_that_goes_on_says_what_it_begins_with(page):
    text = page.read_text(encoding="utf-8")
    assert "index.md#first-steps" in text or "sample = et.load_sample()" in text


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert set(et.__all__) <= {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in navigation
