"""Structure in requests and replies: tags that no document can close, JSON schemas, and the JSON in a reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedtune.llms.protocol import Completion

_TAG = re.compile(
    r"<(?=\s*(?:/\s*)?(?:passage|document|document_title|headings|questions?|example_questions)\b)", re.IGNORECASE
)
_THINKING = re.compile(r"\s*<think(?:ing)?>", re.IGNORECASE)
_END_OF_THINKING = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
# A string that is not closed ends with the text, so that the pattern never fails at its far end and takes linear time.
_STRING_OR_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.|\\\Z)*(?:"|\Z))|,(?=\s*[}\]])', re.DOTALL)
_STARTS_WITH_JSON = re.compile(r"\s*[{\[]")
_MAX_OPENINGS = 50  # tried as the start of JSON, so that no reply takes long


def escaped(text: str) -> str:
    """Return a document's text, unable to close its tag or to break the encoding of the request."""
    return _TAG.sub("&lt;", text).encode("utf-8", "replace").decode()


def context_tags(title: str, headings: Sequence[str]) -> list[str]:
    """Return the title and the headings of a passage in tags, without those that are empty."""
    parts = {"document_title": title, "headings": " > ".join(headings)}
    return [f"<{tag}>{escaped(text)}</{tag}>" for tag, text in parts.items() if text]


def schema_of(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def without_thinking(text: str) -> str:
    """Return a reply without the draft that a reasoning model writes before it; some begin it in the request.

    Example:
        >>> without_thinking("<think>Perhaps 2?</think>3"), without_thinking("Perhaps 2?</think>3")
        ('3', '3')
        >>> without_thinking("<think>Perhaps 2?")  # no reply yet
        ''
    """
    if _STARTS_WITH_JSON.match(text):
        return text
    ends = [end.end() for end in _END_OF_THINKING.finditer(text)]
    return text[ends[-1] :] if ends else "" if _THINKING.match(text) else text


def json_in(text: str) -> Iterator[Any]:
    """Yield the JSON objects and arrays in a reply, also those in fences or between sentences.

    Example:
        >>> list(json_in('<think>{"a": 0}</think> Sure: {"a": 1,} [2]'))
        [{'a': 1}, [2]]
    """
    text = _STRING_OR_TRAILING_COMMA.sub(lambda found: found[1] or "", without_thinking(text))
    decoder = json.JSONDecoder()
    end = 0
    for number, match in enumerate(re.finditer(r"[{\[]", text)):
        if number >= _MAX_OPENINGS:
            return
        if match.start() < end:
            continue
        try:
            found, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        yield found


def object_in(completion: Completion) -> dict[str, Any] | None:
    """Return the first JSON object of a reply, or None if it has no usable one."""
    return None if completion.problem else next((v for v in json_in(completion.text) if isinstance(v, dict)), None)


def whole_number(value: Any) -> int | None:
    """Read a whole number as models write it: 1, 1.0 or "1"; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
