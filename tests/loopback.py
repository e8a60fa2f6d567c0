"""The world that the documentation and the notebooks speak of, on loopback: language models, the Hub, a folder of documents."""

from __future__ import annotations

import os
from contextlib import contextmanager

import hub_server
import llm_server

import embedtune as et


@contextmanager
def world(folder):
    """Put a folder `handbook` into a folder, serve the rest, and yield the environment of a process that finds it."""
    (folder / "handbook").mkdir()
    for document in et.load_sample(num_documents=5).documents:
        (folder / "handbook" / document.id).write_text(document.text, encoding="utf-8")
    with llm_server.serving() as models, hub_server.serving() as (_, endpoint):
        yield {
            **os.environ,
            "ANTHROPIC_BASE_URL": models.url,
            "ANTHROPIC_API_KEY": models.key,
            "OPENAI_BASE_URL": f"{models.url}/v1",
            "OPENAI_API_KEY": models.key,
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(folder / "hub"),
            "HF_TOKEN": "hf_secret",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        }
