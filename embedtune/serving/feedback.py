"""The feedback log: what was asked, what was found and what people said of it, in one SQLite file that only grows."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.text import same_question
from embedtune.types import Question

if TYPE_CHECKING:
    from embedtune.retrieval.retriever import Hit

# What is said of a question later is a row of its own: nothing is ever changed, so processes cannot undo one another.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS asked (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, question TEXT NOT NULL, outcome TEXT NOT NULL,
    model TEXT NOT NULL, retrieved TEXT NOT NULL, cited TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS opinion (
    number INTEGER PRIMARY KEY AUTOINCREMENT, asked INTEGER NOT NULL REFERENCES asked (number) ON DELETE CASCADE,
    time REAL NOT NULL, thumbs_up INTEGER, chunk_ids TEXT, source TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS opinion_of ON opinion (asked);
CREATE TRIGGER IF NOT EXISTS asked_stays BEFORE UPDATE ON asked
    BEGIN SELECT RAISE (ABORT, 'the log is append-only'); END;
CREATE TRIGGER IF NOT EXISTS opinion_stays BEFORE UPDATE ON opinion
    BEGIN SELECT RAISE (ABORT, 'the log is append-only'); END;
"""
_SECONDS_TO_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class LoggedQuestion:
    """A question that was asked, and what is known about it by now.

    Attributes:
        number: Its number in the log.
        time: When it was asked, in UTC.
        text: The question, redacted where the log redacts.
        outcome: ``"answered"``, ``"not in the documents"``, ``"failed"``, or an empty string where nobody said.
        model: The fingerprint of the model that searched.
        retrieved: The ids of the chunks that were found and their scores, best first.
        cited: The chunks that the answer rests on.
        thumbs_up: What the person who asked thought of the answer last; None if nothing.
        named: The right chunks, as a person or a language model named them last; empty if they said that there is none;
            None if nobody did.
        named_by: Who named them.
    """

    number: int
    time: datetime
    text: str
    outcome: str
    model: str
    retrieved: tuple[tuple[str, float], ...]
    cited: tuple[str, ...]
    thumbs_up: bool | None = None
    named: tuple[str, ...] | None = None
    named_by: str = ""

    @property
    def chunk_ids(self) -> tuple[str, ...]:
        """The chunks that answer it: those named, else those cited in an answer that nobody disliked, else none."""
        if self.named is not None:
            return self.named
        return self.cited if self.outcome == "answered" and self.thumbs_up is not False else ()

    @property
    def is_confirmed(self) -> bool:
        """Whether somebody vouches for `chunk_ids`: they were named, or the answer that cites them was liked."""
        return bool(self.chunk_ids) and (self.named is not None or self.thumbs_up is True)

    def is_miss(self, k: int = 10) -> bool:
        """Say whether the search failed: the right chunk was not among the first ``k``.

        Where the right chunk is not known, a question that was not answered, or whose answer was disliked, counts as
        missed. One that no chunk answers is no miss.
        """
        if self.named == ():
            return False
        if self.chunk_ids:
            return not {chunk for chunk, _ in self.retrieved[:k]} & set(self.chunk_ids)
        return self.outcome == "not in the documents" or self.thumbs_up is False


class FeedbackLog:
    r"""Records questions and opinions in one SQLite file, from any number of threads and processes.

    A record is on the disk when its method returns. Rows are added and never changed; `forget` removes old ones. Of
    documents the file holds chunk ids alone; of people it holds what they asked, as ``redact`` leaves it.

    Args:
        path: The file; it is made if it is not there.
        redact: Changes each question before it is stored, to take out names or numbers for instance.

    Raises:
        ValueError: If the file is something else.
        OSError: If it cannot be written.

    Example:
        >>> import re, tempfile
        >>> log = FeedbackLog(Path(tempfile.mkdtemp(), "feedback.sqlite"), redact=lambda text: re.sub(r"\d", "0", text))
        >>> number = log.record("Where is order 4711?", [("orders.md#2", 0.61)], outcome="not in the documents")
        >>> log.name_chunks(number, ["orders.md#7"], by="Ada")
        >>> log.misses()[0].text
        'Where is order 0000?'
    """

    def __init__(self, path: str | Path, *, redact: Callable[[str], str] | None = None) -> None:
        self.path: Path = Path(path)
        self.redact = redact
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._run("SELECT 1 FROM asked LIMIT 1")

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                self._connection.close()
            self._connection = None

    def record(
        self,
        question: str,
        retrieved: Sequence[Hit | tuple[str, float]],
        *,
        model: str = "",
        outcome: str = "",
        cited: Collection[str] = (),
    ) -> int:
        """Record a question and what was found for it, and return its number.

        Args:
            question: The question.
            retrieved: What was found, best first: hits, or pairs of a chunk's id and a score.
            model: The fingerprint of the model that searched.
            outcome: ``"answered"``, ``"not in the documents"``, ``"failed"``, or empty if there is no answer to speak of.
            cited: The chunks that the answer rests on.
        """
        pairs = [hit if isinstance(hit, tuple) else (hit.id, hit.score) for hit in retrieved]
        found = json.dumps([(chunk, float(score)) for chunk, score in pairs])
        text = self.redact(question) if self.redact else question
        text = text.encode("utf-8", "replace").decode()  # half a character is no reason to lose a question
        return self._insert(
            "INSERT INTO asked (time, question, outcome, model, retrieved, cited) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), text, outcome, model, found, json.dumps(list(cited))),
        )

    def rate(self, number: int, *, thumbs_up: bool) -> None:
        """Record whether the person who asked liked the answer."""
        self._say(number, thumbs_up=thumbs_up, source="person")

    def name_chunks(self, number: int, chunk_ids: Sequence[str], *, by: str) -> None:
        """Record which chunks answer a question, each on its own, the best one first; none if no chunk does.

        Args:
            number: The question's number.
            chunk_ids: The chunks' ids.
            by: Who says so: a person, or the name of a language model. The last word counts.
        """
        self._say(number, chunk_ids=json.dumps(list(chunk_ids)), source=by)

    def questions(self) -> list[LoggedQuestion]:
        """Return everything that was asked, oldest first, with the last that was said of it."""
        thumbs, named = {}, {}
        for asked, thumbs_up, chunk_ids, source in self._run(
            "SELECT asked, thumbs_up, chunk_ids, source FROM opinion ORDER BY number"
        ):
            if thumbs_up is not None:
                thumbs[asked] = bool(thumbs_up)
            if chunk_ids is not None:
                named[asked] = (tuple(json.loads(chunk_ids)), source)
        rows = self._run("SELECT number, time, question, outcome, model, retrieved, cited FROM asked ORDER BY number")
        return [
            LoggedQuestion(
                number=number,
                time=datetime.fromtimestamp(seconds, tz=timezone.utc),
                text=text,
                outcome=outcome,
                model=model,
                retrieved=tuple((chunk, score) for chunk, score in json.loads(retrieved)),
                cited=tuple(json.loads(cited)),
                thumbs_up=thumbs.get(number),
                named=named[number][0] if number in named else None,
                named_by=named[number][1] if number in named else "",
            )
            for number, seconds, text, outcome, model, retrieved, cited in rows
        ]

    def misses(self, k: int = 10) -> list[LoggedQuestion]:
        """Return the questions whose right chunk was not among the first ``k``, see `LoggedQuestion.is_miss`."""
        return [question for question in self.questions() if question.is_miss(k)]

    def to_questions(self) -> list[Question]:
        """Return the questions whose right chunks are confirmed, to train on; of equal ones the last."""
        return questions_of([question for question in self.questions() if question.is_confirmed])

    def forget(self, *, older_than: timedelta) -> int:
        """Delete what was asked longer ago than that, with all opinions on it, and return how many questions it was.

        The text is overwritten in the file, too. Rounds of `improve` keep the questions that they trained on.
        """
        with self._lock:
            cursor = self._database().execute(
                "DELETE FROM asked WHERE time < ?", (time.time() - older_than.total_seconds(),)
            )
        return cursor.rowcount

    def __len__(self) -> int:
        count: int = self._run("SELECT COUNT(*) FROM asked")[0][0]
        return count

    def _say(self, number: int, *, source: str, thumbs_up: bool | None = None, chunk_ids: str | None = None) -> None:
        try:
            self._insert(
                "INSERT INTO opinion (asked, time, thumbs_up, chunk_ids, source) VALUES (?, ?, ?, ?, ?)",
                (number, time.time(), thumbs_up, chunk_ids, source),
            )
        except sqlite3.IntegrityError as err:
            raise ValueError(
                f"There is no question {number} in {self.path}. Give a number that record() returned."
            ) from err

    def _insert(self, sql: str, values: tuple[Any, ...]) -> int:
        with self._lock:
            return int(self._database().execute(sql, values).lastrowid or 0)

    def _run(self, sql: str) -> list[Any]:
        with self._lock:
            return self._database().execute(sql).fetchall()

    def _database(self) -> sqlite3.Connection:
        """Return this process's connection: one that went through a fork must not be used."""
        if self._connection is None or self._process != os.getpid():
            self._connection, self._process = _open(self.path), os.getpid()
        return self._connection


def questions_of(logged: Sequence[LoggedQuestion]) -> list[Question]:
    """Return questions with the chunks that answer them; of equal ones the last, with an id made of the text."""
    by_words: dict[str, Question] = {}
    for question in logged:
        key = same_question(question.text)
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        if question.chunk_ids and key:
            by_words[key] = Question(f"log/{digest}", question.text, question.chunk_ids)
    return list(by_words.values())


def _open(path: Path) -> sqlite3.Connection:
    """Open the file, creating the tables if need be.

    SQLite's own rollback journal and full synchronisation: a write-ahead log would be faster, but does not work on network
    disks, and before SQLite 3.51.3 several processes could damage it (https://sqlite.org/wal.html#walresetbug).
    """
    try:
        connection = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False)
        for pragma in ("foreign_keys = ON", "secure_delete = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript(_SCHEMA)
    except sqlite3.DatabaseError as err:
        if "not a database" in str(err):
            raise ValueError(f"{path} is no feedback log ({err}). Choose another path.") from err
        raise OSError(f"Cannot use {path}: {err}. Make room, or make the folder writable.") from err
    return connection
