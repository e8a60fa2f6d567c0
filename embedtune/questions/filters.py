"""Rules that cost nothing: each says why a question is not worth keeping."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from embedtune.questions.languages import is_other_script, language_code, language_of
from embedtune.text import words

if TYPE_CHECKING:
    from embedtune.types import Chunk, Question

MIN_CHARACTERS = 8
MAX_CHARACTERS = 500
MIN_ANSWER_SHARE = 0.5

# What only somebody with the passage in hand would say.
_SELF_REFERENCE = re.compile(
    r"\b(?:this|given|provided|above|following|preceding)\s+(?:passage|text|section|document|excerpt|paragraph|article"
    r"|chapter|context|snippet|table|figure|example|step)s?\b"
    r"|\bthe\s+(?:\w+\s+)?(?:passage|excerpt|snippet)s?\b|\bthe\s+(?:text|section|document|paragraph|context)\s+above\b"
    r"|\b(?:according\s+to|based\s+on|mentioned\s+in|described\s+in|discussed\s+in|stated\s+in|listed\s+in|given\s+in)"
    r"\s+(?:the\s+)?(?:passage|text|section|document|excerpt|paragraph|article|context|author)\b"
    r"|\b(?:mentioned|described|listed|stated)\s+(?:above|below|here)\b"
    r"|\b(?:dieser|diesem|diesen|dieses|der|dem|den|im|laut|obige[nmrs]?|vorliegende[nmrs]?)\s+"
    r"(?:text|textes|abschnitt|abschnitts|passage|textstelle|auszug)\b"
    r"|\b(?:ce|cet|le|du|selon\s+le)\s+(?:passage|texte|paragraphe|extrait)\b"
    r"|\b(?:este|el|del|según\s+el)\s+(?:pasaje|texto|párrafo|fragmento)\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"</?[a-z][^>]*>|```|https?://|www\.|\]\(|\{\s*\"|&(?:lt|gt|amp);", re.IGNORECASE)
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:instructions?|prompts?|rules|above|previous|everything)\b"
    r"|\bsystem\s+prompt\b|\byou\s+are\s+(?:now|a|an|the)\b.{0,40}\b(?:assistant|model|ai|chatbot|bot)\b"
    r"|\bas\s+an?\s+(?:ai|language\s+model)\b|\b(?:api|secret)\s+key\b.{0,20}\b(?:reveal|print|output)\b"
    r"|\b(?:reveal|print|output|repeat)\b.{0,30}\b(?:prompt|instructions|api\s+key|password)\b",
    re.IGNORECASE,
)
_STEM = 5  # characters of a word that count: "lubricate" is found in "lubrication"


def broken_rule(question: Question, chunk: Chunk, *, language: str = "") -> str:
    """Return the rule that a question breaks, or an empty string.

    Args:
        question: The question.
        chunk: The chunk that it was written for.
        language: The language that it should be in, or an empty string for the chunk's.

    Example:
        >>> from embedtune.types import Chunk, Question
        >>> chunk = Chunk("a#0", "a", "Press both buttons for ten seconds.", 0, 35)
        >>> broken_rule(Question("a#0/0", "What does the passage say?", ("a#0",)), chunk)
        'speaks of the passage'
        >>> broken_rule(Question("a#0/1", "How do I restart it?", ("a#0",), answer="Press both buttons."), chunk)
        ''
    """
    text = question.text
    checks = (
        (not text, "malformed"),
        (len(text) < MIN_CHARACTERS, "too short"),
        (len(text) > MAX_CHARACTERS, "too long"),
        (not any(map(str.isalpha, text)), "no words"),
        (bool(_MARKUP.search(text[:MAX_CHARACTERS])), "markup"),
        (bool(_INSTRUCTION.search(text[:MAX_CHARACTERS])), "reads like an instruction"),
        (bool(_SELF_REFERENCE.search(text[:MAX_CHARACTERS])), "speaks of the passage"),
    )
    for is_broken, reason in checks:
        if is_broken:
            return reason
    if is_other_language(text, chunk.text, language=language):
        return "other language"
    # An answer in another language than the chunk has other words.
    if not language and not is_grounded(question.answer, chunk):
        return "answer not in the chunk"
    return ""


def is_other_language(text: str, passage: str, *, language: str = "") -> bool:
    """Whether a text is clearly in another language than the one that was asked for, or than the passage.

    Example:
        >>> is_other_language("Wie lange muss ich die Taste drücken?", "Press both of the buttons for ten seconds.")
        True
    """
    found = language_of(text)
    if language:
        wanted = language_code(language)
        return bool(found and wanted and found != wanted)
    expected = language_of(passage)
    return is_other_script(text, passage) or bool(found and expected and found != expected)


def is_grounded(answer: str, chunk: Chunk) -> bool:
    """Whether at least half of an answer's words stand in the chunk, its headings or its title."""
    asked = [word[:_STEM] for word in words(answer)]
    there = _stems(" ".join((chunk.title, *chunk.headings, chunk.text)))
    return not asked or sum(word in there for word in asked) >= MIN_ANSWER_SHARE * len(asked)


@lru_cache(maxsize=64)  # a chunk is looked at once for each of its questions
def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in words(text))
