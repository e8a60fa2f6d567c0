"""What counts as a word, which questions are the same, and which text no file can hold: the one definition of each."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import regex

# Scripts without spaces between words: there each character counts as a word. U+30FC lengthens a Japanese vowel.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}"
_WORD = rf"[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}_]--[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]]+"
_WORDS = regex.compile(_WORD, regex.V1)
_SIMPLE_WORDS = re.compile(
    r"\w+"
)  # the same where there is neither a mark nor an unspaced script, and several times faster
_NOT_SIMPLE = regex.compile(rf"[\p{{M}}{_UNSPACED}]", regex.V1)
_WORDS_AND_SIGNS = regex.compile(rf"{_WORD}|\S", regex.V1)
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")  # soft hyphens, joiners, variation selectors

_DASHES = regex.compile(r"[\p{Pd}\u2212]")
_APOSTROPHES = regex.compile("[\u2018\u2019\u02bc\u00b4`]")
_QUOTATION_MARKS = regex.compile(
    r"[\p{Pi}\p{Pf}\u201e\u201a]|(?<!\p{N})\"|(?<!\w)'|(?<!\p{N})'(?!\w)"
)  # 5' and 5" are lengths
# What ends or divides a sentence. A sign inside a word or before one is kept: 3,5 and node.js and .NET.
_PUNCTUATION = regex.compile(
    r"[¿¡؟،؛।॥。、・]"
    rf"|[?!,;:](?=[{_UNSPACED}])|(?<=[{_UNSPACED}])[?!,;:.]"
    r"|(?<=[^\s?!.,;:])[?!.,;:]+(?=\s)",
    regex.V1,
)
_SIMPLE_PUNCTUATION = re.compile(r"(?<=[^\s?!.,;:])[?!.,;:]+(?=\s)")  # the same for ASCII, and several times faster
_SIMPLE_SIGNS = re.compile(r"\w+|\S")
_END = regex.compile(r"[^\s?!.;]", regex.V1 | regex.REVERSE)  # the last character that does not end a sentence
_MADE_OF_TEXT = re.compile(r"[0-9a-f]{16}#0")
_SURROGATE = regex.compile("[\ud800-\udfff]")
_UNPRINTABLE = regex.compile(r"[\p{Cc}\p{Cs}--[\n\t]]", regex.V1)


def plain(text: str) -> str:
    r"""Return text as it is compared: case folded, one way to type each letter, without invisible characters.

    Unicode's NFKC_Casefold, with "i" for the Turkish capital İ.

    Example:
        >>> plain("Not\u00adaus, İade, \u00e9") == plain("NOTAUS, iade, e\u0301")
        True
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", _IGNORABLE.sub("", text)).casefold()
    return unicodedata.normalize("NFKC", folded).replace("i\u0307", "i")


def words(text: str) -> list[str]:
    """Split text into words: runs of letters, digits and marks, as `plain` returns them.

    Scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give one word for each character.

    Example:
        >>> words("Größe: 3,5 mm (東京)")
        ['grösse', '3', '5', 'mm', '東', '京']
        >>> words("हिन्दी में")
        ['हिन्दी', 'में']
    """
    text = plain(text)
    simple = text.isascii() or not _NOT_SIMPLE.search(text)
    return (_SIMPLE_WORDS if simple else _WORDS).findall(text)


def same_question(text: str) -> str:
    """Return a key that is equal for two questions that differ only in case, spaces and sentence punctuation.

    The order of words and signs such as ``+``, ``#`` and ``<`` count. A question without words or signs gives an empty key.

    Example:
        >>> same_question("Where is it?") == same_question("where  IS it")
        True
        >>> same_question("What is C++?") == same_question("What is C#?")
        False
    """
    is_simple = text.isascii()
    text = plain(text).replace("`", "'") if is_simple else _DASHES.sub("-", _APOSTROPHES.sub("'", plain(text)))
    if not is_simple or '"' in text or "'" in text:
        text = _QUOTATION_MARKS.sub(" ", text)
    text = (_SIMPLE_PUNCTUATION if is_simple else _PUNCTUATION).sub(" ", text)
    last = _END.search(text)
    return " ".join((_SIMPLE_SIGNS if is_simple else _WORDS_AND_SIGNS).findall(text[: last.end()] if last else ""))


def text_hash(text: str) -> str:
    """Return a short hash by which a text is recognised: the first 16 digits of its SHA-256.

    Example:
        >>> text_hash("Press both.")
        'c5fb9896853c947b'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def hash_in_id(chunk_id: str) -> str:
    """Return the `text_hash` of which an id of `RetrievalDataset.from_pairs` is made, or an empty string for any other id.

    Example:
        >>> hash_in_id("c5fb9896853c947b#0"), hash_in_id("pump.md#0")
        ('c5fb9896853c947b', '')
    """
    return chunk_id[:-2] if _MADE_OF_TEXT.fullmatch(chunk_id) else ""


def storage_problem(text: str) -> str:
    r"""Return why no UTF-8 file can hold a text, or an empty string.

    Example:
        >>> storage_problem("5 \ud83d left")
        'half a character, U+D83D, at offset 2'
    """
    found = _SURROGATE.search(text)
    return f"half a character, U+{ord(found[0]):04X}, at offset {found.start()}" if found else ""


def storable(text: str) -> str:
    """Return the text with U+FFFD in place of each half character, so that all offsets stay the same."""
    return _SURROGATE.sub("\ufffd", text)


def printable(text: str) -> str:
    r"""Return a text as it is safe to print: characters that command a terminal, and half characters, are written as escapes.

    Example:
        >>> printable("Press both.\x1b[2J")
        'Press both.\\x1b[2J'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
