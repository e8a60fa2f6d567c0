"""Guesses the language of a text by its commonest words, or says nothing: a guess must not cost a good question."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_COMMON_WORDS = {
    "en": "the of and to is are what how which when why does do can with for from by be it that this my you should",
    "de": "der die das und ist sind wie was welche wann warum ich muss kann mit für von den dem ein eine nicht auf bei",
    "fr": "le la les des et est sont comment quel quelle quand pourquoi je dois peut avec pour du une dans pas sur au",
    "es": "el los las y es son cómo qué cuál cuándo por con para del una en no se al debe puede mi cuánto dónde",
    "it": "il gli e è sono come che quale quando perché con per della di una nel non si al deve può mio quanto dove",
    "pt": "o os as e é são como que qual quando por com para do da uma em não se ao deve pode meu quanto onde",
    "nl": "de het en is zijn hoe wat welke wanneer waarom ik moet kan met voor van een niet op bij naar er mijn",
    "pl": "i w na jest są jak co który kiedy dlaczego czy z do się nie może od po dla oraz mój ile gdzie",
    "sv": "och är hur vad vilken när varför jag måste kan med för av den det en ett inte på vid till min",
    "tr": "ve bir bu ne nasıl hangi zaman neden mi için ile de da olarak gibi kadar kaç nerede benim",  # noqa: RUF001
}
_LANGUAGES_OF = {
    word: tuple(code for code, text in _COMMON_WORDS.items() if word in text.split())
    for all_words in _COMMON_WORDS.values()
    for word in all_words.split()
}
_NAMES = {
    "en": "english englisch anglais inglés",
    "de": "german deutsch allemand alemán",
    "fr": "french français französisch francés",
    "es": "spanish español spanisch espagnol",
    "it": "italian italiano italienisch",
    "pt": "portuguese português portugiesisch",
    "nl": "dutch nederlands niederländisch",
    "pl": "polish polski polnisch",
    "sv": "swedish svenska schwedisch",
    "tr": "turkish türkçe türkisch",
}
_WORD = re.compile(r"[^\W\d_]+")
_ONE_SCRIPT = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "FULLWIDTH": "LATIN", "HALFWIDTH": "CJK"}


@lru_cache(maxsize=64)  # a chunk is looked at once for each of its questions
def language_of(text: str) -> str:
    """Return the code of a text's language, or an empty string where that is not clear.

    Example:
        >>> language_of("Wie lange muss ich die Taste drücken?"), language_of("pump reset")
        ('de', '')
    """
    counted = Counter(code for word in _WORD.findall(text.lower()) for code in _LANGUAGES_OF.get(word, ()))
    (code, best), (_, second) = [*counted.most_common(2), ("", 0), ("", 0)][:2]
    return code if best >= 2 and best >= 2 * second else ""


def language_code(name: str) -> str:
    """Return the code of a language's name, or an empty string for one that is not known.

    Example:
        >>> language_code("German"), language_code("de"), language_code("Klingon")
        ('de', 'de', '')
    """
    wanted = name.casefold().strip()
    return next((code for code, names in _NAMES.items() if wanted == code or wanted in names.split()), "")


def is_other_script(text: str, passage: str) -> bool:
    """Whether most letters of a text are of a script that the passage has no letter of.

    Example:
        >>> is_other_script("Как перезапустить?", "Press both buttons."), is_other_script("API-Key", "APIキー")
        (True, False)
    """
    if text.isascii() and passage[:200].isascii():
        return False
    counted = Counter(_script(c) for c in text if c.isalpha())
    return bool(counted) and counted.most_common(1)[0][0] not in _scripts(passage)


@lru_cache(maxsize=64)
def _scripts(passage: str) -> frozenset[str]:
    return frozenset(_script(c) for c in set(passage) if c.isalpha())


@lru_cache(maxsize=10_000)
def _script(character: str) -> str:
    first = unicodedata.name(character, "UNKNOWN").partition(" ")[0]
    return _ONE_SCRIPT.get(first, first)
