"""What could not be read, and why: told once at the end, by kind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

logger: logging.Logger = logging.getLogger(__name__)

OnError = Literal["warn", "raise"]

MAX_SHOWN = 10  # of one kind
MAX_NOTES = 30


class UnreadableError(ValueError):
    """A file or row that gives no document.

    Args:
        kind: What is wrong, as a heading of the summary: "protected by a password".
        message: One line that names the place and the remedy.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Problems:
    """Collects what was left out, and what was read differently than it was written.

    Attributes:
        on_error: ``"raise"`` raises the first problem instead.
        left_out: The messages of each kind.
        notes: How often something was done to the texts that the user should know.
    """

    on_error: OnError
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def tolerated(self) -> Iterator[None]:
        """Leave out what cannot be read, or raise, as ``on_error`` says."""
        try:
            yield
        except ValueError as err:
            if self.on_error == "raise":
                raise
            self.leave_out(err.kind if isinstance(err, UnreadableError) else "not usable", str(err))

    def leave_out(self, kind: str, message: str) -> None:
        """Record something that gives no document and is not an error."""
        self.left_out.setdefault(kind, []).append(message)

    def summary(self) -> str:
        """Return what was left out, by kind, the most frequent first; an empty string if nothing was."""
        lines = []
        for kind, messages in sorted(self.left_out.items(), key=lambda pair: (-len(pair[1]), pair[0])):
            lines.append(f"  {len(messages)} {kind}:")
            lines += [f"    {message}" for message in messages[:MAX_SHOWN]]
            lines += [f"    and {len(messages) - MAX_SHOWN} more"] if len(messages) > MAX_SHOWN else []
        return "\n".join(lines)

    def log(self) -> None:
        """Log one warning with all that was left out, and one with what was changed."""
        if self.left_out:
            logger.warning("Left out %d files or rows:\n%s", sum(map(len, self.left_out.values())), self.summary())
        if self.notes:
            notes = [f"  {note}" + (f" ({count} times)" if count > 1 else "") for note, count in self.notes.items()]
            notes[MAX_NOTES:] = [f"  and {len(notes) - MAX_NOTES} more"] if len(notes) > MAX_NOTES else []
            logger.warning("Read, but look at this:\n%s", "\n".join(notes))


def one_line(text: object) -> str:
    r"""Return a name as it is safe to log: without newlines, escapes and other characters that do not print.

    Example:
        >>> one_line("a\nERROR: b\x1b[2J.md")
        'a\\nERROR: b\\x1b[2J.md'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
