"""Takes out of a text what no one reads: pictures and keys in base64, hex dumps, minified code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import regex

MIN_BASE64 = 200  # characters in one run
MIN_HEX = 160  # more than a SHA-512
MIN_MINIFIED = 500  # characters in one line

# Each is a run of one class of characters between borders, so that time is linear.
_DATA_URI = re.compile(r"data:[\w.+-]{1,60}/[\w.+-]{1,80}(?:;[\w.+=-]{1,80}){0,4},[^\s\"'<>)\]]*", re.IGNORECASE)
_BASE64 = re.compile(rf"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{{{MIN_BASE64},}}={{0,2}}")
_BASE64_LINES = re.compile(
    r"^[ \t]*[A-Za-z0-9+/]{60,76}\n(?:[ \t]*[A-Za-z0-9+/]{60,76}\n){2,}[ \t]*[A-Za-z0-9+/]*={0,2}$", re.MULTILINE
)
_HEX = re.compile(rf"(?<![0-9A-Za-z])[0-9a-fA-F]{{{MIN_HEX},}}(?![0-9A-Za-z])")
# Possessive, so that nothing is tried twice.
_HEX_DUMP = regex.compile(
    r"(?:^[ \t]*+[0-9a-fA-F]{4,16}+:?[ \t]++(?:[0-9a-fA-F]{2,8}+[ \t]++){4,}+.*+(?:\n|\Z)){2,}+", regex.MULTILINE
)
_BYTES = re.compile(r"(?:0x[0-9a-fA-F]{2}[,;]?\s*){24,}|(?:\\x[0-9a-fA-F]{2}){24,}")
_LONG_LINE = re.compile(rf"^.{{{MIN_MINIFIED},}}$", re.MULTILINE)
_CODE = "{}()[];=:,\"'&|!<>"


def without_junk(text: str) -> tuple[str, Counter[str]]:
    r"""Return a text without what only a machine reads, and how many pieces of each kind were taken out.

    Example:
        >>> import base64, hashlib
        >>> picture = base64.b64encode(b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(20))).decode()
        >>> without_junk(f"Press both.\n\n![wiring](data:image/png;base64,{picture})\n\nThen wait.")
        ('Press both.\n\n![wiring]()\n\nThen wait.', Counter({'data URI': 1}))
    """
    counts: Counter[str] = Counter()

    def take(kind: str, pattern: re.Pattern[str] | regex.Pattern[str], is_junk: Callable[[str], bool]) -> None:
        nonlocal text

        def judged(match: re.Match[str] | regex.Match[str]) -> str:
            if not is_junk(match[0]):
                return match[0]
            counts[kind] += 1
            return ""

        text = pattern.sub(judged, text)

    if "data:" in text:
        take("data URI", _DATA_URI, lambda uri: len(uri) > 100)
    take("hex dump", _HEX, _is_hex)
    take("base64", _BASE64, _is_base64)
    take("base64", _BASE64_LINES, _is_base64)
    take("hex dump", _HEX_DUMP, _is_dump)
    take("hex dump", _BYTES, lambda _: True)
    take("line of minified code or data", _LONG_LINE, _is_minified)
    return text, counts


def _is_hex(run: str) -> bool:
    """Whether both digits and letters occur as often as in random bytes, roughly; DNA and repeated letters do not."""
    return 0.4 < sum(c.isdigit() for c in run) / len(run) < 0.85 and len(set(run)) >= 12


def _is_dump(lines: str) -> bool:
    """Whether the groups have letters, too: a table of numbers has none."""
    groups = re.findall(r"\b[0-9a-fA-F]{2,8}\b", lines)
    return sum(not group.isdigit() for group in groups) > len(groups) * 0.2


def _is_base64(run: str) -> bool:
    """Whether digits, upper-case and lower-case letters are mixed as in random bytes; words and paths are not."""
    shares = (sum(map(test, run)) / len(run) for test in (str.isdigit, str.isupper, str.islower))
    return all(share > least for share, least in zip(shares, (0.05, 0.15, 0.15), strict=True))


def _is_minified(line: str) -> bool:
    """Whether there are hardly any spaces and many signs of code; prose and tables have spaces, Chinese has no signs."""
    return sum(map(line.count, " \t")) < len(line) * 0.08 and sum(map(line.count, _CODE)) > len(line) * 0.12
