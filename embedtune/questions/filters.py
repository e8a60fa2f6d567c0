"""Free rules: each says why a question is not worth keeping."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from embedtune.text import plain, words

if TYPE_CHECKING:
    from embedtune.types import Chunk, Question

MIN_WIDTH = 8  # columns: a Chinese, Japanese or Korean character takes two
MAX_CHARACTERS = 500
MIN_ANSWER_SHARE = 0.5

_PASSAGE = "passage|text|section|document|excerpt|paragraph|article|chapter|context|snippet"
_TEXTABSCHNITT = "text|textes|abschnitt|abschnitts|passage|textstelle|auszug"
# What only somebody who sees the passage would say.
_SPEAKS_OF_PASSAGE = re.compile(
    rf"\b(?:given|provided|above|preceding)\s+(?:{_PASSAGE})\b|\bthe\s+(?:{_PASSAGE})\s+above\b"
    r"|\b(?:according\s+to|based\s+on|(?:mentioned|described|discussed|stated|listed|given)\s+in)"
    rf"\s+(?:the\s+|this\s+)(?:{_PASSAGE}|author)\b"
    r"|\b(?:mentioned|described|listed|stated)\s+(?:above|below|here)\b"
    rf"|\blaut\s+(?:dem\s+|diesem\s+)?(?:{_TEXTABSCHNITT})\b"
    rf"|\b(?:obige|vorliegende)[nmrs]?\s+(?:{_TEXTABSCHNITT})\b"
    r"|\b(?:selon|d'après)\s+(?:le|ce)\s+(?:passage|texte|paragraphe|extrait)\b"
    r"|\bsegún\s+(?:el|este)\s+(?:pasaje|texto|párrafo|fragmento)\b",
    re.IGNORECASE,
)
# The same, unless the passage itself is about such a thing: "the passage between the shelves", "sign this document".
_MAY_SPEAK_OF_PASSAGE = re.compile(
    rf"\b(?:this|these|following)\s+({_PASSAGE}|table|figure|example|step)s?\b"
    r"|\bthe\s+(?:\w+\s+)?(passage|excerpt|snippet)s?\b"
    rf"|\b(?:dieser|diesem|diesen|dieses|im)\s+({_TEXTABSCHNITT})\b"
    r"|\b(?:ce|cet)\s+(passage|texte|paragraphe|extrait)\b|\beste\s+(pasaje|texto|párrafo|fragmento)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"</?[a-z][^>]*>|```|https?://|www\.|\]\(|\{\s*\"|&(?:lt|gt|amp);", re.IGNORECASE)
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget|override)\s+(?:\w+\s+){0,2}(?:previous|prior|above|earlier|your)\s+"
    r"(?:\w+\s+)?(?:instructions?|prompts?)\b|\bsystem\s+prompt\b"
    r"|\byou\s+are\s+now\b.{0,40}\b(?:assistant|model|ai|chatbot|bot)\b|\bas\s+an?\s+(?:ai|language\s+model)\b"
    r"|\b(?:reveal|print|output|repeat)\s+(?:\w+\s+)?your\s+(?:\w+\s+)?(?:prompt|instructions)\b",
    re.IGNORECASE,
)
_STEM = 5  # characters of a word that count: "lubricate" is found in "lubrication"


def broken_rule(question: Question, chunk: Chunk, *, language: str = "") -> str:
    """Return the rule that a question breaks, or an empty string.

    Args:
        question: The question.
        chunk: The chunk that it was written for.
        language: The language that was asked for, or an empty string for the chunk's.

    Example:
        >>> from embedtune.types import Chunk, Question
        >>> chunk = Chunk("a#0", "a", "Press both buttons for ten seconds.", 0, 35)
        >>> broken_rule(Question("a#0/0", "What does the passage say?", ("a#0",)), chunk)
        'speaks of the passage'
        >>> broken_rule(Question("a#0/1", "How do I restart it?", ("a#0",), answer="Press both buttons."), chunk)
        ''
    """
    text = question.text
    start = text[:MAX_CHARACTERS]
    checks = (
        (not text, "malformed"),
        (len(start) < MIN_WIDTH and _width(start) < MIN_WIDTH, "too short"),
        (len(text) > MAX_CHARACTERS, "too long"),
        (not any(map(str.isalpha, text)), "no words"),
        (any(found[0] not in chunk.text for found in _MARKUP.finditer(start)), "markup"),
        (bool(_INSTRUCTION.search(start)), "reads like an instruction"),
        (_speaks_of_passage(start, chunk.text), "speaks of the passage"),
        # A question in another language than the chunk is in another script and has an answer in other words.
        (not language and is_other_script(start, chunk.text), "other script"),
        (not language and not is_grounded(question.answer, chunk), "answer not in the chunk"),
    )
    return next((reason for is_broken, reason in checks if is_broken), "")


def is_other_script(text: str, passage: str) -> bool:
    """Return whether a text shares no script with a passage.

    Example:
        >>> is_other_script("Как перезапустить?", "Press both buttons."), is_other_script("API-Key", "APIキー")
        (True, False)
    """
    scripts = _scripts(text)
    return bool(scripts) and scripts.isdisjoint(_scripts(passage))


def is_grounded(answer: str, chunk: Chunk) -> bool:
    """Return whether at least half of an answer's words are in the chunk, its headings or its title."""
    asked = [word[:_STEM] for word in words(answer)]
    if not asked:
        return True
    passage = " ".join((chunk.title, *chunk.headings, chunk.text))
    return _num_found(asked, passage) >= MIN_ANSWER_SHARE * len(asked)


def _num_found(stems: Sequence[str], passage: str) -> int:
    """Count the stems of words that a passage has. Most stand between spaces, and need no look at all of its words."""
    spaced = f" {_plain(passage)} "
    at_once = sum((f" {stem}" if len(stem) == _STEM else f" {stem} ") in spaced for stem in stems)
    return at_once if at_once >= MIN_ANSWER_SHARE * len(stems) else sum(stem in _stems(passage) for stem in stems)


def _speaks_of_passage(text: str, passage: str) -> bool:
    if _SPEAKS_OF_PASSAGE.search(text):
        return True
    named = [noun for found in _MAY_SPEAK_OF_PASSAGE.finditer(text) for noun in found.groups() if noun]
    return any(noun.lower() not in passage.lower() for noun in named)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@lru_cache(maxsize=64)  # a chunk is looked at once for each of its questions
def _plain(text: str) -> str:
    return plain(text)


@lru_cache(maxsize=64)
def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in words(text))


@lru_cache(maxsize=64)
def _scripts(text: str) -> frozenset[str]:
    return frozenset(map(_script, filter(str.isalpha, set(text))))


@lru_cache(maxsize=10_000)
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").partition(" ")[0]
    return {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HALFWIDTH": "CJK", "FULLWIDTH": "LATIN"}.get(name, name)
