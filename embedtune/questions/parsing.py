"""Reads questions from what a model wrote: JSON, or else a list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from embedtune.llms.structured import json_in, without_thinking
from embedtune.questions.template import STYLES
from embedtune.text import storable

# The start of a list item: "1.", "1)", "(1)", "1 -", "1、", "**1.**", "a)", "①", "Q1:", "Question 1.", "Pregunta 1:", "-", "•".
_MARKER = re.compile(
    r"[*_#]{0,3} ?(?:\(\d{1,3}\)|(?:[^\W\d]{1,12} ?)?\d{1,3}(?:[.):](?=[*_ ]|$)| [-\u2013] |\u3001)|[a-h]\)(?= )"
    r"|[\u2460-\u2473]|(?:q|question):|[-*\u2022\u2013](?= ))[*_]{0,3} ?",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"[-*_]{0,3} ?(?:a|answer) ?\d{0,3}[.):][*_]{0,2} ?", re.IGNORECASE)
_STYLE = re.compile(rf"[*_]{{0,2}}({'|'.join(STYLES)})[*_]{{0,2}}:[*_]{{0,2}} ?", re.IGNORECASE)
_OFFER = re.compile(r"(?:would you like|do you want|shall i|should i|can i help|is there anything)\b", re.IGNORECASE)
_QUOTES = "\"'“”„«»*_` \t"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question as a model wrote it, not checked yet.

    Attributes:
        text: The question; empty if the model wrote something else instead.
        answer: Its answer, or an empty string.
        style: Its style, or an empty string.
    """

    text: str
    answer: str = ""
    style: str = ""


def parse_questions(text: str) -> list[Candidate] | None:
    r"""Read the questions in a reply, or return None if it has nothing that looks like questions.

    Example:
        >>> parse_questions('{"questions": [{"style": "keyword", "question": "pump reset", "answer": "Press both."}]}')
        [Candidate(text='pump reset', answer='Press both.', style='keyword')]
        >>> [candidate.text for candidate in parse_questions("Sure!\n1) How do I\n   restart?\n**2.** Who repairs it?")]
        ['How do I restart?', 'Who repairs it?']
    """
    text = storable(text)
    entries = _entries(list(json_in(text)), is_alone=text.strip(_QUOTES + "\r\n").startswith("["))
    if entries is not None:
        return [_candidate(entry) for entry in entries]
    return list(parse_list(text)) or None


def parse_list(text: str) -> Iterator[Candidate]:
    r"""Read a list of questions: numbered in any of the usual ways, bulleted, or one per line.

    An item may continue over several lines, up to a blank one. Text before the first item is left out.

    Example:
        >>> [candidate.text for candidate in parse_list("1.\r\n2. What\r\n   is it?\r\n- Why?")]
        ['What is it?', 'Why?']
    """
    lines = [" ".join(line.lstrip(" \t>").split()) for line in without_thinking(text).splitlines()]
    if not any(_MARKER.match(line) for line in lines):
        asked = [line for line in lines if line.rstrip(_QUOTES).endswith(("?", "\uff1f", "\u061f"))]
        lines = [f"- {line}" for line in asked if not _OFFER.match(line)]
    question: list[str] = []
    answer: list[str] = []
    continued: list[str] | None = None
    for line in [*lines, "- "]:
        marker, opens_answer = _MARKER.match(line), _ANSWER.match(line)
        if opens_answer and question:
            answer = continued = [line[opens_answer.end() :]]
        elif marker:
            if joined := _joined(question):
                yield _styled(Candidate(joined, _joined(answer)))
            question, answer = [line[marker.end() :]], []
            continued = question
        elif not line:
            continued = None if _joined(question) else continued
        elif continued is not None:
            continued.append(line)


def _entries(values: list[Any], *, is_alone: bool) -> list[Any] | None:
    """Return the entries that are questions, in whichever shape a model wrote them."""
    for value in values:
        lists = value.values() if isinstance(value, dict) else [value]
        for found in [value["questions"]] if isinstance(value, dict) and "questions" in value else lists:
            if isinstance(found, list) and any(isinstance(e, dict) and "question" in e for e in found):
                return found
    if one_each := [value for value in values if isinstance(value, dict) and "question" in value]:
        return one_each
    for value in values:
        found = value.get("questions") if isinstance(value, dict) else value if is_alone else None
        if isinstance(found, list) and all(isinstance(e, (str, dict)) for e in found):
            return found
    return None


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split()).strip(_QUOTES)


def _styled(candidate: Candidate) -> Candidate:
    """Move a style that was written before the question into its field."""
    if label := _STYLE.match(candidate.text):
        return replace(candidate, text=candidate.text[label.end() :].strip(_QUOTES), style=label[1].lower())
    return candidate


def _candidate(entry: Any) -> Candidate:
    if isinstance(entry, str):
        return Candidate(_line(entry))
    if not isinstance(entry, dict) or not isinstance(entry.get("question"), str):
        return Candidate("")
    answer, style = entry.get("answer"), entry.get("style")
    return Candidate(
        _line(entry["question"]),
        _line(answer) if isinstance(answer, str) else "",
        style if isinstance(style, str) and style in STYLES else "",
    )


def _line(text: str) -> str:
    """Return a text of the JSON on one line, which no half character keeps from being stored."""
    return " ".join(storable(text).split())
