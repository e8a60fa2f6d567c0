"""The feedback log: questions, what was found and what people said about it, in one append-only SQLite file."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.text import same_question
from embedtune.types import Question

if TYPE_CHECKING:
    from embedtune.retrieval.retriever import Hit

# A later opinion is a row of its own. Rows are never changed, so processes cannot overwrite one another.
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
_MISSED_BEYOND = 10


@dataclass(frozen=True, slots=True)
class LoggedQuestion:
    """A question that was asked, and what is known about it.

    Attributes:
        number: Its number in the log.
        time: When it was asked, in UTC.
        text: The question, after redaction.
        outcome: ``"answered"``, ``"not in the documents"``, ``"failed"``, or an empty string if unknown.
        model: The fingerprint of the model that searched.
        retrieved: The ids and scores of the chunks that were found, best first.
        cited: The ids of the chunks that the answer cites.
        thumbs_up: The last rating of the answer; None if it was not rated.
        named: The relevant chunks, as last named by a person or a language model; empty if no chunk answers the question;
            None if nobody named any.
        named_by: Who named them.
        digests: A hash of the text of each chunk that was recorded with its text, by id.
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
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def chunk_ids(self) -> tuple[str, ...]:
        """The relevant chunks: those named, else those cited in an answer that was not disliked, else none."""
        if self.named is not None:
            return self.named
        return self.cited if self.outcome == "answered" and self.thumbs_up is not False else ()

    @property
    def is_confirmed(self) -> bool:
        """Whether `chunk_ids` are confirmed: they were named, or the answer that cites them was liked."""
        return bool(self.chunk_ids) and (self.named is not None or self.thumbs_up is True)

    def is_miss(self, k: int | None = None) -> bool:
        """Return whether the search failed: no relevant chunk, nor a copy of one, was among the first ``k``.

        If the relevant chunk is unknown, a question that was not answered, or whose answer was disliked, is a miss. A
        question that no chunk answers is not a miss.

        Args:
            k: The cut-off; by default 10, or the number of chunks that were logged if they are fewer.

        Raises:
            ValueError: If fewer than ``k`` chunks were logged and no relevant one is among them.
        """
        if self.named == ():
            return False
        if self.chunk_ids:
            found = {chunk for chunk, _ in self.retrieved[: k or _MISSED_BEYOND]}
            texts = {self.digests[chunk] for chunk in found if chunk in self.digests}
            if any(chunk in found or self.digests.get(chunk) in texts for chunk in self.chunk_ids):
                return False
            if k is not None and k > len(self.retrieved):
                raise ValueError(
                    f"Only {len(self.retrieved)} chunks were logged for question {self.number}, so it is unknown whether its "
                    f"relevant chunk was among the first {k}. Use a smaller k, or log more chunks."
                )
            return True
        return self.outcome == "not in the documents" or self.thumbs_up is False


class FeedbackLog:
    r"""Records questions and opinions in one SQLite file, from any number of threads and processes.

    A record is on disk when the method returns. Rows are added and never changed; `forget` removes old ones. The file
    contains the questions after ``redact``, and the ids of chunks with hashes of their texts, but no texts of documents.

    Args:
        path: The file; it is created if it does not exist.
        redact: Changes each question before it is stored, for instance to remove names or numbers.

    Raises:
        ValueError: If the file is not a feedback log.
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
            retrieved: What was found, best first: hits, or pairs of id and score. Hits are better: if a chunk changes
                later, its text is recognised.
            model: The fingerprint of the model that searched.
            outcome: ``"answered"``, ``"not in the documents"``, ``"failed"``, or empty if unknown.
            cited: The ids of the chunks that the answer cites.

        Raises:
            TypeError: If ``cited`` is a string.
        """
        rows = [(*hit, "") if isinstance(hit, tuple) else (hit.id, hit.score, digest_of(hit.text)) for hit in retrieved]
        found = json.dumps([(chunk, float(score), digest) for chunk, score, digest in rows])
        text = self.redact(question) if self.redact else question
        text = text.encode("utf-8", "replace").decode()  # lone surrogates are replaced
        return self._insert(
            "INSERT INTO asked (time, question, outcome, model, retrieved, cited) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), text, outcome, model, found, json.dumps(_listed("cited", cited))),
        )

    def rate(self, number: int, *, thumbs_up: bool) -> None:
        """Record whether the person who asked liked the answer."""
        self._say(number, thumbs_up=thumbs_up, source="person")

    def name_chunks(self, number: int, chunks: Sequence[str | Hit], *, by: str) -> None:
        """Record which chunks answer a question, each on its own, the best one first; none if no chunk does.

        Args:
            number: The number of the question.
            chunks: Hits, or ids. Hits are better: if a chunk changes later, its text is recognised.
            by: The name of the person or language model. The last call counts.

        Raises:
            TypeError: If ``chunks`` is a string.
            ValueError: If there is no such question.
        """
        named = [
            (one, "") if isinstance(one, str) else (one.id, digest_of(one.text)) for one in _listed("chunks", chunks)
        ]
        self._say(number, chunk_ids=json.dumps(named), source=by)

    def questions(self) -> list[LoggedQuestion]:
        """Return all questions, oldest first, each with its last rating and the chunks that were named last."""
        thumbs: dict[int, bool] = {}
        named: dict[int, tuple[list[tuple[str, str]], str]] = {}
        for asked, thumbs_up, chunk_ids, source in self._run(
            "SELECT asked, thumbs_up, chunk_ids, source FROM opinion ORDER BY number"
        ):
            if thumbs_up is not None:
                thumbs[asked] = bool(thumbs_up)
            if chunk_ids is not None:
                named[asked] = (json.loads(chunk_ids), source)
        rows = self._run("SELECT number, time, question, outcome, model, retrieved, cited FROM asked ORDER BY number")
        return [
            LoggedQuestion(
                number=number,
                time=datetime.fromtimestamp(seconds, tz=timezone.utc),
                text=text,
                outcome=outcome,
                model=model,
                retrieved=tuple((chunk, score) for chunk, score, _ in json.loads(retrieved)),
                cited=tuple(json.loads(cited)),
                thumbs_up=thumbs.get(number),
                named=tuple(chunk for chunk, _ in named[number][0]) if number in named else None,
                named_by=named[number][1] if number in named else "",
                digests={
                    chunk: digest
                    for chunk, *_, digest in [*json.loads(retrieved), *named.get(number, ([], ""))[0]]
                    if digest
                },
            )
            for number, seconds, text, outcome, model, retrieved, cited in rows
        ]

    def misses(self, k: int | None = None) -> list[LoggedQuestion]:
        """Return the questions that had no relevant chunk among the first ``k`` (see `LoggedQuestion.is_miss`).

        Raises:
            ValueError: If fewer than ``k`` chunks were logged for a question, so that this is unknown.
        """
        return [question for question in self.questions() if question.is_miss(k)]

    def to_questions(self) -> list[Question]:
        """Return the distinct questions whose relevant chunks are confirmed, to train on."""
        return [record_of(question) for question in distinct_questions(self.questions()) if question.is_confirmed]

    def forget(self, *, older_than: timedelta) -> int:
        """Delete questions that are older, with all opinions on them, and return their number.

        Their text is overwritten in the file. Rounds of `improve` keep the questions that they trained on.
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
                f"There is no question {number} in {self.path}. Pass a number that record() returned."
            ) from err

    def _insert(self, sql: str, values: tuple[Any, ...]) -> int:
        with self._lock:
            return int(self._database().execute(sql, values).lastrowid or 0)

    def _run(self, sql: str) -> list[Any]:
        with self._lock:
            return self._database().execute(sql).fetchall()

    def _database(self) -> sqlite3.Connection:
        """Return the connection of this process: one that was opened before a fork must not be used."""
        if self._connection is None or self._process != os.getpid():
            self._connection, self._process = _open(self.path), os.getpid()
        return self._connection


def distinct_questions(logged: Sequence[LoggedQuestion]) -> list[LoggedQuestion]:
    """Return one record for each question that was asked several times, the most reliable one.

    Named chunks count more than a rating, and a rating more than a citation that nobody rated; of equal records the last
    one counts. Questions without words, or without a relevant chunk, are left out.
    """
    best: dict[str, LoggedQuestion] = {}
    for one in logged:
        key = same_question(one.text)
        if key not in best or _reliability(one) >= _reliability(best[key]):
            best[key] = one
    return [one for key, one in best.items() if key and one.chunk_ids]


def _reliability(one: LoggedQuestion) -> int:
    if one.named is not None:
        return 3
    return 2 if one.cited and one.thumbs_up is not None else int(bool(one.chunk_ids))


def record_of(one: LoggedQuestion) -> Question:
    """Return a logged question as a `Question`, with an id that depends only on its words."""
    key = same_question(one.text).encode("utf-8", "surrogatepass")
    return Question(f"log/{hashlib.sha256(key).hexdigest()[:16]}", one.text, one.chunk_ids)


def digest_of(text: str) -> str:
    """Return a short hash by which the text of a chunk is recognised."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _listed(name: str, chunks: Collection[Any]) -> list[Any]:
    """Return a list of chunks, and refuse a single string, which would be taken apart into letters."""
    if isinstance(chunks, str):
        raise TypeError(f"{name}={chunks!r} is a string. Pass a list: [{chunks!r}].")
    return list(chunks)


def _open(path: Path) -> sqlite3.Connection:
    """Open the file, and create the tables if they do not exist.

    SQLite's rollback journal with full synchronisation is used, because a write-ahead log does not work on network disks,
    and before SQLite 3.51.3 several processes could damage it (https://sqlite.org/wal.html#walresetbug).
    """
    try:
        connection = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False)
        for pragma in ("foreign_keys = ON", "secure_delete = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript(_SCHEMA)
    except sqlite3.DatabaseError as err:
        if "not a database" in str(err):
            raise ValueError(f"{path} is not a feedback log ({err}). Choose another path.") from err
        raise OSError(f"Cannot open {path}: {err}. Check the free space and the permissions of the folder.") from err
    return connection
