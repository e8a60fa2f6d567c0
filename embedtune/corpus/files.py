"""Finds and reads the files of a folder, and nothing outside it."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from embedtune.corpus.problems import Problems, UnreadableError, one_line

logger: logging.Logger = logging.getLogger(__name__)

MAX_BYTES = 256 * 2**20

_OLD = {
    ".doc",
    ".dot",
    ".ppt",
    ".xls",
    ".rtf",
    ".odt",
    ".odp",
    ".ods",
    ".pages",
    ".key",
    ".numbers",
    ".mobi",
    ".msg",
    ".eml",
}
_DECLARED = re.compile(rb"(?:charset|encoding)=[\"']?([\w-]+)", re.IGNORECASE)  # in HTML and XML
_SINGLE_BYTE = "cp1252"
MIN_LETTERS = 32  # bytes that are not ASCII; fewer say nothing about the script
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)  # fmt: skip


def names_in(folder: Path, extensions: Sequence[str], problems: Problems) -> list[str]:
    """Return the relative paths of the files to read, sorted.

    Raises:
        UnreadableError: If a folder cannot be listed, or there is no file to read.
    """
    names: list[str] = []
    ignored: Counter[str] = Counter()
    old: Counter[str] = Counter()
    for parent, subfolders, files in os.walk(folder, onerror=_raise_unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for link in (path for name in subfolders if (path := Path(parent, name)).is_symlink()):
            logger.warning(
                "%s is a link to a folder and was not followed. Read its target separately if you need it.",
                one_line(link),
            )
        for file in (Path(parent, name) for name in files if not name.startswith((".", "~$"))):
            extension = file.suffix.lower()
            if extension in extensions:
                names.append(file.relative_to(folder).as_posix())
            elif extension in _OLD:
                remedy = "Save it as .docx, .pptx, .xlsx or .pdf."
                problems.leave_out("in a format that is not read", f"{one_line(file)}: {remedy}")
                old[extension] += 1
            else:
                ignored[one_line(extension) or "no extension"] += 1
    found = sorted((ignored + old).items())
    others = ", ".join(f"{count} with {extension}" for extension, count in found) or "none"
    if not names:
        raise ValueError(
            f"{one_line(folder)} has no readable file. Supported are {', '.join(extensions)}; other files: {others}. "
            "Convert those, or pass their texts in a list."
        )
    if ignored:
        logger.info("Ignored files in %s: %s.", one_line(folder), others)
    return sorted(names)


def _raise_unreadable(err: OSError) -> None:
    raise ValueError(
        f"{one_line(err.filename)} cannot be listed: {err.strerror}. Change its permissions or move it."
    ) from err


def read_bytes(file: Path, *, inside: Path | None = None, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file.

    Args:
        file: The file.
        inside: The folder that it must not lead out of, by a link.
        limit: The largest size in bytes.

    Raises:
        UnreadableError: If it is a pipe or a device, too large, outside the folder, or cannot be opened.
    """
    shown = one_line(file)
    try:
        target = file.resolve(strict=True)
        if inside is not None and not target.is_relative_to(inside.resolve()):
            raise UnreadableError(
                "links that lead out of the folder",
                f"{shown} leads out of the folder, and was not read. Copy its target there.",
            )
        if not stat.S_ISREG(target.stat().st_mode):  # opening a pipe would wait, opening a device may do more
            raise UnreadableError("pipes or devices", f"{shown} is not a regular file.")
        # The target may have been replaced since: no link is followed, no pipe is waited for.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(target, flags), "rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("pipes or devices", f"{shown} is not a regular file.")
            data = opened.read(limit + 1)
    except (OSError, RuntimeError) as err:  # RuntimeError: a loop of links, in older Pythons
        reason = getattr(err, "strerror", None) or "its links form a loop"
        raise UnreadableError(
            "cannot be opened", f"{shown} cannot be read: {reason}. Repair it, or leave it out."
        ) from err
    if len(data) > limit:
        raise UnreadableError("too large", f"{shown} is larger than {limit / 2**20:,.0f} MB. Split it.")
    return data


def decoded(data: bytes, file: Path, encoding: str, problems: Problems) -> str:
    r"""Return the text of a file, whose newlines become ``\n``.

    A byte-order mark decides; otherwise the encoding that was given; if the file is not in it, the encoding is guessed, and
    the guess is reported.

    Raises:
        UnreadableError: If it is binary, or no encoding fits.
    """
    shown = one_line(file)
    given = next((name for mark, name in _MARKS if data.startswith(mark)), encoding)
    try:
        text = data.decode(given)
    except UnicodeDecodeError as err:
        found = _guess(data)
        if not found:
            byte = data[err.start]
            raise UnreadableError(
                "neither in the encoding nor in another that is known",
                f"{shown} is not {given}: byte 0x{byte:02x} at offset {err.start}. Pass its encoding, encoding=...",
            ) from err
        text = data.decode(found, "replace")
        problems.notes[f"{shown} is not {given} and was read as {found}: look at it, or convert it to UTF-8."] += 1
    if "\0" in text:
        raise UnreadableError(
            "binary",
            f"{shown} is binary or not {given}: NUL at character {text.index(chr(0))}. Pass its encoding, encoding=...",
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _guess(data: bytes) -> str:
    """Return the encoding that fits best, or an empty string for what is no text."""
    from charset_normalizer import from_bytes

    controls = data[:100_000].translate(None, bytes(range(9, 14)) + bytes(range(32, 256)))
    if len(controls) > len(data[:100_000]) / 100:
        return ""
    declared = _DECLARED.search(data[:2000])
    if declared is not None:
        with suppress(LookupError, UnicodeError):
            data.decode(declared[1].decode())
            return declared[1].decode()
    letters = data.translate(None, bytes(range(128)))
    if len(letters) >= MIN_LETTERS and len(letters) * 3 > len(data):  # not a Latin script: its bytes say which
        best = from_bytes(data[:100_000]).best()
        if best is not None:
            return best.encoding
    return _SINGLE_BYTE


def storable_name(name: str) -> str:
    """Return the name of a file as an id; one that is not UTF-8 is read as Latin-1, as old archives have it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name
