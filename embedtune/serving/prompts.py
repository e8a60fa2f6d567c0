"""Prompts with passages in tags, and what a language model wrote in reply to them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from embedtune.llms.errors import TemporaryError
from embedtune.llms.protocol import LLM, Completion, Prompt
from embedtune.llms.retries import wait_before
from embedtune.questions.parsing import json_in
from embedtune.questions.prompt import escaped

if TYPE_CHECKING:
    from embedtune.retrieval.retriever import Hit

MAX_TRIES = 3


@cache
def instructions(name: str) -> str:
    """Return a system prompt that comes with the package."""
    return files("embedtune.serving").joinpath(f"{name}.txt").read_text("utf-8")


def schema_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with these properties, all of them and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def prompt_with_passages(system: str, question: str, hits: Sequence[Hit], *, schema: Mapping[str, Any]) -> Prompt:
    """Put passages, numbered from 1, and a question into tags that neither can close."""
    passages = "\n".join(_passage(number, hit) for number, hit in enumerate(hits, start=1))
    return Prompt(system, f"{passages}\n<question>\n{escaped(question)}\n</question>", schema)


def ask(llm: LLM, prompt: Prompt) -> Completion:
    """Send one prompt and return the reply; what may work in a moment is tried again, twice.

    Raises:
        TemporaryError: If it did not work in a moment either.
        RequestError: If the model refuses the request.
        GenerationStoppedError: If no request can work.
    """
    request = llm.request(prompt)
    for attempt in range(1, MAX_TRIES):
        try:
            return llm.read(llm.send(request))
        except TemporaryError as err:
            time.sleep(wait_before(attempt, err.retry_after))
    return llm.read(llm.send(request))


def object_in(completion: Completion) -> dict[str, Any] | None:
    """Return the JSON object of a reply, or None if there is no usable one."""
    found = None if completion.problem else json_in(completion.text)
    return found if isinstance(found, dict) else None


def passages_in(found: Mapping[str, Any], hits: Sequence[Hit]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the ids of the passages that a reply names, in its order, and the numbers that no passage has."""
    named = found.get("passages")
    numbers = (
        dict.fromkeys(n for n in named if isinstance(n, int) and not isinstance(n, bool))
        if isinstance(named, list)
        else {}
    )
    known = tuple(hits[n - 1].id for n in numbers if 1 <= n <= len(hits))
    return known, tuple(n for n in numbers if not 1 <= n <= len(hits))


def _passage(number: int, hit: Hit) -> str:
    headings = " > ".join(hit.headings)
    lines = [
        f"<document_title>{escaped(hit.title)}</document_title>" if hit.title else "",
        f"<headings>{escaped(headings)}</headings>" if headings else "",
        escaped(hit.text),
    ]
    return "\n".join([f'<passage number="{number}">', *filter(None, lines), "</passage>"])
