"""Requests that show numbered passages, and the passages that a reply names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from embedtune.llms.protocol import Request
from embedtune.llms.structured import context_tags, escaped, whole_number

if TYPE_CHECKING:
    from embedtune.retrieval.hits import Hit


@cache
def instructions(name: str) -> str:
    """Return instructions that come with the package."""
    return files("embedtune.serving").joinpath(f"{name}.txt").read_text("utf-8")


def request_with_passages(system: str, question: str, hits: Sequence[Hit], *, schema: Mapping[str, Any]) -> Request:
    """Put passages, numbered from 1, and a question into tags that neither can close."""
    passages = "\n".join(_passage(number, hit) for number, hit in enumerate(hits, start=1))
    return Request(system, f"{passages}\n<question>\n{escaped(question)}\n</question>", schema)


def passages_in(found: Mapping[str, Any], hits: Sequence[Hit]) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """Return the ids of the passages that a reply names, in its order, and the numbers that no passage has.

    Returns:
        The ids and the unknown numbers, or None if ``found["passages"]`` is not a list of numbers.
    """
    named = found.get("passages")
    read = [whole_number(number) for number in named] if isinstance(named, list) else [None]
    numbers = dict.fromkeys(number for number in read if number is not None)
    if len(numbers) < len(set(read)):
        return None
    known = tuple(hits[n - 1].id for n in numbers if 1 <= n <= len(hits))
    return known, tuple(n for n in numbers if not 1 <= n <= len(hits))


def _passage(number: int, hit: Hit) -> str:
    lines = [f'<passage number="{number}">', *context_tags(hit.title, hit.headings), escaped(hit.text), "</passage>"]
    return "\n".join(lines)
