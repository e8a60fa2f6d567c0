"""Reads questions from what a model wrote: JSON, or else a numbered list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from embedtune.questions.prompt import STYLES

# "1.", "1)", "**1.**", "Q1:", "Question 1.", "-", "*", "•": what an item of a list starts with.
_MARKER = re.compile(
    r"[ \t>]*[*_#]{0,3}[ \t]*(?:(?:q|question)?[ \t]*\d{1,3}[.):](?=[*_\s]|$)|(?:q|question):|[-*•\u2013](?=[ \t]))[*_]{0,3}[ \t]*",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"[ \t>]*[-*_]{0,3}[ \t]*(?:a|answer)[ \t]*\d{0,3}[.):][*_]{0,2}[ \t]*", re.IGNORECASE)
_MAX_OPENINGS = 50  # tried as the start of JSON, so that no reply takes long
_QUOTES = "\"'“”„«»*_` \t"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question as a model wrote it, not checked yet.

    Attributes:
        text: The question; empty if the model wrote something else in its place.
        answer: Its answer, or an empty string.
        style: Its style, or an empty string.
    """

    text: str
    answer: str = ""
    style: str = ""


def parse_questions(text: str) -> list[Candidate] | None:
    r"""Read the questions in a reply, or return None if there is nothing in it that looks like questions.

    Example:
        >>> parse_questions('{"questions": [{"style": "keyword", "question": "pump reset", "answer": "Press both."}]}')
        [Candidate(text='pump reset', answer='Press both.', style='keyword')]
        >>> [candidate.text for candidate in parse_questions("Sure!\n1) How do I\n   restart?\n**2.** Who repairs it?")]
        ['How do I restart?', 'Who repairs it?']
    """
    found = json_in(text)
    if isinstance(found, dict):
        found = found.get("questions")
    if isinstance(found, list):
        return [_candidate(entry) for entry in found]
    return list(parse_list(text)) or None


def parse_list(text: str) -> Iterator[Candidate]:
    r"""Read a list of questions: numbered in any of the usual ways, bulleted, or one to a line.

    An item may go on over several lines, up to a blank one; what stands before the first item is left out.

    Example:
        >>> [candidate.text for candidate in parse_list("1.\r\n2. What\r\n   is it?\r\n- Why?")]
        ['What is it?', 'Why?']
    """
    lines = text.splitlines()
    if not any(_MARKER.match(line) for line in lines):
        lines = [f"- {line.strip()}" for line in lines if line.rstrip(_QUOTES).endswith(("?", "\uff1f", "\u061f"))]
    question: list[str] = []
    answer: list[str] = []
    goes_on: list[str] | None = None
    for line in [*lines, "-"]:
        marker, opens_answer = _MARKER.match(line), _ANSWER.match(line)
        if opens_answer and question:
            answer, goes_on = [line[opens_answer.end() :]], answer
            goes_on = answer
        elif marker or line == "-":
            if joined := _joined(question):
                yield Candidate(joined, _joined(answer))
            question, answer = [line[marker.end() :]] if marker else [], []
            goes_on = question
        elif not line.strip():
            goes_on = None if _joined(question) else goes_on
        elif goes_on is not None:
            goes_on.append(line)


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split()).strip(_QUOTES)


def _candidate(entry: Any) -> Candidate:
    if isinstance(entry, str):
        return Candidate(" ".join(entry.split()))
    if not isinstance(entry, dict) or not isinstance(entry.get("question"), str):
        return Candidate("")
    answer, style = entry.get("answer"), entry.get("style")
    return Candidate(
        " ".join(entry["question"].split()),
        " ".join(answer.split()) if isinstance(answer, str) else "",
        style if style in STYLES else "",
    )


def json_in(text: str) -> Any:
    """Return the first JSON object or array in a text, also one in a fence or behind a sentence; None without one."""
    decoder = json.JSONDecoder()
    for match in islice(re.finditer(r"[{\[]", text), _MAX_OPENINGS):
        try:
            found = decoder.raw_decode(text, match.start())[0]
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) or (isinstance(found, list) and found):
            return found
        if found == [] and not text[: match.start()].strip(_QUOTES):
            return found
    return None
