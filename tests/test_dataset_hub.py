"""RetrievalDataset on the Hub, with the real client against a server on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hub_server import serving

from embedtune import RetrievalDataset

SETUP = """
import json, sys
from embedtune import RetrievalDataset
pairs = [(f"The answer to {i} is {i * 7}.", [f"What is {i}?", f"Why {i}?"]) for i in range(12)]
"""


@pytest.fixture
def hub():
    with serving() as served:
        yield served


def run(program, endpoint, cache):
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret", "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", SETUP + program], capture_output=True, text=True, check=False, env=environment
    )


def test_what_is_pushed_loads_again_and_is_private(hub, tmp_path):
    server, endpoint = hub
    program = """
data = RetrievalDataset.from_pairs(pairs, seed=1)
revision = data.push_to_hub("me/pairs").revision
again = RetrievalDataset.load_from_hub("me/pairs", revision=revision)
assert again.corpus.to_list() == data.corpus.to_list()
assert {s: q.to_list() for s, q in again.qrels.items()} == {s: q.to_list() for s, q in data.qrels.items()}
print(revision)
"""
    done = run(program, endpoint, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == server.revision
    assert server.private == {"datasets/me/pairs": True}
    assert server.num_commits == 1
    assert "hf_secret" not in json.dumps([f.decode("latin-1") for f in server.files["datasets/me/pairs"].values()])


def test_pushing_again_leaves_no_split_of_the_older_dataset(hub, tmp_path):
    server, endpoint = hub
    program = """
RetrievalDataset.from_pairs(pairs, test_size=0.3, dev_size=0.2).push_to_hub("me/pairs", private=False)
RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0).push_to_hub("me/pairs", private=False)
print(RetrievalDataset.load_from_hub("me/pairs").splits)
"""
    done = run(program, endpoint, tmp_path)
    assert done.stdout.strip() == "['train']", done.stderr
    assert server.private == {"datasets/me/pairs": False}
    assert [name for name in server.files["datasets/me/pairs"] if name.startswith("qrels/")] == ["qrels/train.parquet"]


def test_a_refused_commit_is_an_error_and_leaves_the_repository_as_it_was(hub, tmp_path):
    server, endpoint = hub
    server.refuse_commits = True
    done = run('RetrievalDataset.from_pairs(pairs).push_to_hub("me/pairs")', endpoint, tmp_path)
    assert done.returncode != 0
    assert "403" in done.stderr
    assert server.files == {"datasets/me/pairs": {}}


def test_a_repository_that_does_not_exist_is_named(hub, tmp_path):
    _, endpoint = hub
    done = run('RetrievalDataset.load_from_hub("me/nothing")', endpoint, tmp_path)
    assert "me/nothing" in done.stderr
    assert "RepositoryNotFoundError" in done.stderr


def test_nothing_is_pushed_to_a_public_repository_unless_that_is_asked_for(hub, tmp_path):
    server, endpoint = hub
    server.create("datasets/me/pairs", private=False)
    done = run('RetrievalDataset.from_pairs(pairs).push_to_hub("me/pairs")', endpoint, tmp_path)
    assert "me/pairs is public" in done.stderr
    assert server.files == {"datasets/me/pairs": {}}


def test_a_dry_run_lists_every_file_and_asks_the_hub_nothing(hub):
    server, _ = hub
    pairs = [(f"The answer to {i} is {i * 7}.", [f"What is {i}?", f"Why {i}?"]) for i in range(12)]
    data = RetrievalDataset.from_pairs(pairs, seed=1)
    publication = data.push_to_hub("me/pairs", dry_run=True)
    assert list(publication.files) == ["README.md", "corpus.parquet", "embedtune.json", *sorted(
        f"qrels/{split}.parquet" for split in data.splits
    ), "queries.parquet"]  # fmt: skip
    assert "24 of unknown origin" in publication.card
    assert "The answer to" not in publication.card
    assert "What is" not in publication.card
    assert server.requests == []
