"""The feedback log: questions, what was found and what people said about it, in one append-only SQLite file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from embedtune.bounds import finite, whole
from embedtune.serving.shared_file import SharedFile, shared_file
from embedtune.tables import Listing, Row, excerpt
from embedtune.text import hash_in_id, same_question, text_hash
from embedtune.types import Question

if TYPE_CHECKING:
    from embedtune.retrieval.hits import Hit
    from embedtune.types import Chunk

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
_MISSED_BEYOND = 10

logger: logging.Logger = logging.getLogger(__name__)


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
        if k is not None:
            whole("k", k)
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


class LoggedQuestions(Listing[LoggedQuestion]):
    """Questions of a log, as a list that a notebook shows as a table."""

    header: ClassVar[Row] = ("asked", "question", "outcome", "liked", "relevant chunks")

    @staticmethod
    def row(one: LoggedQuestion) -> Row:
        """Return the cells of a question."""
        liked = "" if one.thumbs_up is None else ("yes" if one.thumbs_up else "no")
        chunks = "none answers it" if one.named == () else ", ".join(one.chunk_ids)
        return f"{one.time:%Y-%m-%d %H:%M}", excerpt(one.text), one.outcome, liked, chunks


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
        >>> from embedtune import Chunk
        >>> log = FeedbackLog(Path(tempfile.mkdtemp(), "feedback.sqlite"), redact=lambda text: re.sub(r"\d", "0", text))
        >>> number = log.record("Where is order 4711?", [("orders.md#2", 0.61)], outcome="not in the documents")
        >>> log.name_chunks(number, [Chunk("orders.md#7", "orders.md", "Orders are in the hall.", 80, 103)], by="Ada")
        >>> log.misses()[0].text
        'Where is order 0000?'
    """

    def __init__(self, path: str | Path, *, redact: Callable[[str], str] | None = None) -> None:
        self.path: Path = Path(path)
        self.redact = redact
        self.path.parent.mkdir(parents=True, exist_ok=True)
        len(self)  # opens the file

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._file.close()

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
            TypeError: If ``cited`` is a string, or a score is no number.
            ValueError: If a score is not finite.
            OSError: If the file cannot be written.
        """
        rows = [
            (*hit, hash_in_id(hit[0])) if isinstance(hit, tuple) else (hit.id, hit.score, text_hash(hit.text))
            for hit in retrieved
        ]
        found = json.dumps([(chunk, finite("score", score), digest) for chunk, score, digest in rows])
        text = self.redact(question) if self.redact else question
        number, _ = self._file.write(
            "INSERT INTO asked (time, question, outcome, model, retrieved, cited) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), *map(_storable, (text, outcome, model)), found, json.dumps(_listed("cited", cited))),
        )
        return number

    def rate(self, number: int, *, thumbs_up: bool) -> None:
        """Record whether the person who asked liked the answer."""
        self._say(number, thumbs_up=thumbs_up, source="person")

    def name_chunks(self, number: int, chunks: Sequence[str | Hit | Chunk], *, by: str) -> None:
        """Record which chunks answer a question, each on its own, the best one first; none if no chunk does.

        Args:
            number: The number of the question.
            chunks: Hits or chunks; their texts are recognised if ids move later. Or ids of hits that the question was recorded
                with, or that `RetrievalDataset.from_pairs` made of the texts. Any other id is a label of an unknown text: it is
                kept, with a warning, and never trained on.
            by: The name of the person or language model. The last call counts.

        Raises:
            TypeError: If ``chunks`` is a string.
            ValueError: If there is no such question.
        """
        named = [
            (one, hash_in_id(one)) if isinstance(one, str) else (one.id, text_hash(one.text))
            for one in _listed("chunks", chunks)
        ]
        self._say(number, chunk_ids=json.dumps(named), source=_storable(by))
        if {chunk for chunk, digest in named if not digest} - self._hashes_of(number).keys():
            logger.warning(
                "A chunk that answers question %d was named by its id alone, and the question was not recorded with its text. "
                "Ids move when documents change, so the label will not be used. Pass the hit or the chunk.",
                number,
            )

    def questions(self) -> list[LoggedQuestion]:
        """Return all questions, oldest first, each with its last rating and the chunks that were named last."""
        thumbs: dict[int, bool] = {}
        named: dict[int, tuple[list[tuple[str, str]], str]] = {}
        opinions, rows = self._file.read(
            "SELECT asked, thumbs_up, chunk_ids, source FROM opinion ORDER BY number",
            "SELECT number, time, question, outcome, model, retrieved, cited FROM asked ORDER BY number",
        )
        for asked, thumbs_up, chunk_ids, source in opinions:
            if thumbs_up is not None:
                thumbs[asked] = bool(thumbs_up)
            if chunk_ids is not None:
                named[asked] = (json.loads(chunk_ids), source)
        return LoggedQuestions(
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
                digests=_hashes_in([*json.loads(retrieved), *named.get(number, ([], ""))[0]]),
            )
            for number, seconds, text, outcome, model, retrieved, cited in rows
        )

    def misses(self, k: int | None = None) -> list[LoggedQuestion]:
        """Return the questions that had no relevant chunk among the first ``k`` (see `LoggedQuestion.is_miss`).

        Raises:
            ValueError: If fewer than ``k`` chunks were logged for a question, so that this is unknown.
        """
        return LoggedQuestions(question for question in self.questions() if question.is_miss(k))

    def to_questions(self) -> list[Question]:
        """Return the distinct questions whose relevant chunks are confirmed, to train on.

        Each label has the hash of the text that it was given for, so that `build_dataset` finds the text where ids have moved
        since, or sets the question aside. Questions with a label whose text was never logged, because the chunk was named by
        its id alone, are left out and counted in a warning.
        """
        found = [record_of(one) for one in distinct_questions(self.questions()) if one.is_confirmed]
        kept = [one for one in found if all(one.labels.values())]
        if len(kept) < len(found):
            logger.warning(
                "%d of %d labelled questions were left out: a chunk was named by its id alone, and its text was never logged.",
                len(found) - len(kept),
                len(found),
            )
        return kept

    def forget(self, *, older_than: timedelta) -> int:
        """Delete questions that are older, with all opinions on them, and return their number.

        Their text is overwritten in the file. Rounds of `improve` keep the questions that they trained on.

        Raises:
            ValueError: If ``older_than`` is no duration of 0 or more.
        """
        if not isinstance(older_than, timedelta) or older_than < timedelta(0):
            raise ValueError(f"older_than={older_than!r} must be a timedelta of 0 or more, such as timedelta(days=90).")
        _, num_rows = self._file.write("DELETE FROM asked WHERE time < ?", (time.time() - older_than.total_seconds(),))
        self._file.erase()
        return num_rows

    def __repr__(self) -> str:
        return f"FeedbackLog: {len(self):,} questions in {self.path}"

    def __len__(self) -> int:
        count: int = self._file.read("SELECT COUNT(*) FROM asked")[0][0][0]
        return count

    @property
    def _file(self) -> SharedFile:
        process = os.getpid()
        if self.__dict__.get("_opened", (None, 0))[1] != process:
            self._opened = shared_file(self.path, _SCHEMA), process
        return self._opened[0]

    def _hashes_of(self, number: int) -> dict[str, str]:
        """Return the hashes of the texts that a question was recorded with, by id."""
        rows = self._file.read(f"SELECT retrieved FROM asked WHERE number = {int(number)}")[0]
        return _hashes_in(json.loads(rows[0][0])) if rows else {}

    def _say(self, number: int, *, source: str, thumbs_up: bool | None = None, chunk_ids: str | None = None) -> None:
        whole("number", number, at_most=2**63 - 1)
        try:
            self._file.write(
                "INSERT INTO opinion (asked, time, thumbs_up, chunk_ids, source) VALUES (?, ?, ?, ?, ?)",
                (number, time.time(), thumbs_up, chunk_ids, source),
            )
        except sqlite3.IntegrityError as err:
            raise ValueError(
                f"There is no question {number} in {self.path}. Pass a number that record() returned."
            ) from err


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
    """Return a logged question as a `Question` with the hashes of its labels, and an id that depends only on its words."""
    key = same_question(one.text).encode("utf-8", "surrogatepass")
    labels = {chunk: one.digests.get(chunk, "") for chunk in one.chunk_ids}
    return Question(f"log/{hashlib.sha256(key).hexdigest()[:16]}", one.text, ()).with_labels(labels)


def _hashes_in(rows: Iterable[Sequence[Any]]) -> dict[str, str]:
    """Return the hashes of logged texts, by id: the first and the last entry of each row."""
    return {chunk: digest for chunk, *_, digest in rows if digest}


def _listed(name: str, chunks: Collection[Any]) -> list[Any]:
    """Return a list of chunks, and refuse a single string, which would be taken apart into letters."""
    if isinstance(chunks, str):
        raise TypeError(f"{name}={chunks!r} is a string. Pass a list: [{chunks!r}].")
    return list(chunks)


def _storable(text: str) -> str:
    """Return a text that SQLite can store: lone surrogates are replaced."""
    return text.encode("utf-8", "replace").decode()
