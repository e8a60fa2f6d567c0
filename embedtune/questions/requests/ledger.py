"""The ledger: every reply that was paid for, in one SQLite file, written before it is read."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

FILE_NAME = "ledger.sqlite"

SYNC_SECONDS = 0.2

# Before a request is sent, the most that it can cost is stored as reserved; its reply replaces that. If no reply arrives (a
# crash, a lost connection), it may have been paid for anyway: when it is sent again, the amount is counted as lost.
# A batch without a name was being created when the process ended. is_done is 1 once collected, and 2 once given up.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS request (
    key TEXT PRIMARY KEY, reserved INTEGER NOT NULL DEFAULT 0, lost INTEGER NOT NULL DEFAULT 0,
    paid INTEGER NOT NULL DEFAULT 0, model TEXT, reply TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, created REAL NOT NULL, model TEXT NOT NULL,
    reserved INTEGER NOT NULL, keys TEXT NOT NULL, is_done INTEGER NOT NULL DEFAULT 0
);
"""
_RESERVE = (
    "INSERT INTO request (key, reserved) VALUES (?, ?)"
    " ON CONFLICT (key) DO UPDATE SET lost = lost + reserved, reserved = excluded.reserved"
)
_PUT = (
    "INSERT INTO request (key, paid, model, reply) VALUES (?, ?, ?, ?) ON CONFLICT (key)"
    " DO UPDATE SET reserved = 0, paid = excluded.paid, model = excluded.model, reply = excluded.reply"
    " WHERE reply IS NULL"
)


@dataclass(frozen=True, slots=True)
class StoredReply:
    """A reply to keep.

    Attributes:
        key: The hash of the request that it answers.
        model: The model that gave it.
        microdollars: What it cost.
        body: The reply, unchanged.
    """

    key: str
    model: str
    microdollars: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch that has not been collected yet.

    Attributes:
        id: Its number in the ledger.
        name: Its name at the provider, or None if the reply to its creation never arrived.
        created: When its creation began, in seconds since 1970.
        model: The model that answers it.
        keys: The hashes of its requests.
    """

    id: int
    name: str | None
    created: float
    model: str
    keys: tuple[str, ...]


_Statement = tuple[str, tuple[Any, ...]]


class Ledger:
    """Stores replies and their cost, so that nothing is paid for twice.

    One process at a time uses a folder; the lock ends with the process. A write survives a crash of the process as soon as
    its method returns, and a power cut a fifth of a second later (intents to create batches: at once). Methods may be
    called from any thread.

    Args:
        folder: The folder of ``ledger.sqlite``, which is created if necessary.

    Raises:
        RuntimeError: If another process, or another ledger of this one, is using the folder.
        OSError: If the file cannot be written.
        ValueError: If the file is not a ledger.

    Example:
        >>> import tempfile
        >>> with Ledger(tempfile.mkdtemp()) as ledger:
        ...     ledger.put(StoredReply("a1", "model", 120, {"text": "..."}))
        ...     ledger.reply("a1"), ledger.spent()
        ({'text': '...'}, 120)
    """

    def __init__(self, folder: str | Path) -> None:
        self.path: Path = Path(folder) / FILE_NAME
        self._lock = threading.Lock()
        self._synced = 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = _open(self.path)
        except sqlite3.Error as err:
            raise _explained(err, self.path) from err

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, so that others can use it."""
        with self._lock:
            self._database.close()

    def stored(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that have a reply."""
        return set(keys).intersection(self.all_keys())

    def reply(self, key: str) -> dict[str, Any] | None:
        """Return the reply of a key, or None."""
        rows = self._select("SELECT reply FROM request WHERE key = ? AND reply IS NOT NULL", (key,))
        reply: dict[str, Any] | None = json.loads(rows[0][0]) if rows else None
        return reply

    def all_keys(self) -> list[str]:
        """Return the keys of all replies."""
        return [key for (key,) in self._select("SELECT key FROM request WHERE reply IS NOT NULL")]

    def paid(self, keys: Iterable[str]) -> int:
        """Return the cost of the replies of some keys, in micro-dollars, including those that were cut off before."""
        wanted = {key.partition("-")[0] for key in keys}
        rows = self._select("SELECT key, paid FROM request")
        return sum(paid for key, paid in rows if key.partition("-")[0] in wanted)

    def spent(self) -> int:
        """Return the most that everything in this folder can have cost so far, in micro-dollars.

        Requests without a reply and batches that were not collected count with the most that they can cost.
        """
        return self._number(
            "SELECT (SELECT COALESCE(SUM(paid + lost + reserved), 0) FROM request)"
            " + (SELECT COALESCE(SUM(reserved), 0) FROM batch WHERE is_done != 1)"
        )

    def in_doubt(self) -> int:
        """Return the part of `spent` that is not known to have been paid: the most that lost requests can have cost."""
        return self.spent() - self._number("SELECT COALESCE(SUM(paid), 0) FROM request")

    def num_in_doubt(self) -> int:
        """Return the number of requests that were sent and have no reply, because a run ended before it arrived."""
        return self._number("SELECT COUNT(*) FROM request WHERE reserved > 0")

    def reserve(self, key: str, microdollars: int) -> None:
        """Record that a request is about to be sent, and the most that it can cost."""
        self._write((_RESERVE, (key, microdollars)))

    def release(self, key: str) -> None:
        """Record that a request was not paid for."""
        self._write(("UPDATE request SET reserved = 0 WHERE key = ?", (key,)))

    def put(self, *replies: StoredReply) -> None:
        """Store replies, in place of what was reserved for them. The first reply to a key is kept."""
        self._write(*((_PUT, _row(reply)) for reply in replies))

    def charge(self, costs: Mapping[str, int]) -> None:
        """Record what stored replies cost, in micro-dollars, by their keys."""
        self._write(*(("UPDATE request SET paid = ? WHERE key = ?", (cost, key)) for key, cost in costs.items()))

    def intend_batch(self, keys: Sequence[str], *, model: str, microdollars: int) -> StoredBatch:
        """Record that a batch is about to be created."""
        highest = self._number("SELECT COALESCE(MAX(id), 0) FROM batch")
        batch = StoredBatch(highest + 1, None, time.time(), model, tuple(keys))
        row = (batch.id, batch.created, model, microdollars, json.dumps(batch.keys))
        insert = "INSERT INTO batch (id, created, model, reserved, keys) VALUES (?, ?, ?, ?, ?)"
        self._write((insert, row), at_once=True)
        return batch

    def name_batch(self, batch: StoredBatch, name: str | None) -> None:
        """Record the provider's name of a batch, or None to forget it."""
        self._write(("UPDATE batch SET name = ? WHERE id = ?", (name, batch.id)), at_once=True)

    def finish_batch(self, batch: StoredBatch) -> None:
        """Record that all results of a batch are stored."""
        self._write(("UPDATE batch SET is_done = 1 WHERE id = ?", (batch.id,)), at_once=True)

    def forget_batch(self, batch: StoredBatch) -> None:
        """Record that a batch was never created."""
        self._write(("DELETE FROM batch WHERE id = ?", (batch.id,)), at_once=True)

    def give_up_batch(self, name: str) -> None:
        """Record that a batch will never be collected, so that its requests are sent again.

        What it may have cost still counts towards budgets.

        Raises:
            ValueError: If there is no open batch of that name.
        """
        if name not in {batch.name for batch in self.open_batches()}:
            raise ValueError(f"{self.path} has no open batch {name!r}.")
        self._write(("UPDATE batch SET is_done = 2 WHERE name = ?", (name,)), at_once=True)

    def open_batches(self) -> list[StoredBatch]:
        """Return the batches that have not been collected yet."""
        rows = self._select("SELECT id, name, created, model, keys FROM batch WHERE is_done = 0 ORDER BY id")
        return [StoredBatch(i, name, created, model, tuple(json.loads(keys))) for i, name, created, model, keys in rows]

    def batch_names(self) -> set[str]:
        """Return the names of all batches in this ledger."""
        return {name for (name,) in self._select("SELECT name FROM batch WHERE name IS NOT NULL")}

    def _number(self, sql: str) -> int:
        return int(self._select(sql)[0][0])

    def _select(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._database.execute(sql, values).fetchall()
            except sqlite3.Error as err:
                raise _explained(err, self.path) from err

    def _write(self, *statements: _Statement, at_once: bool = False) -> None:
        """Commit statements together. From time to time, wait for the disk, which makes all earlier commits durable."""
        with self._lock:
            is_due = at_once or time.monotonic() - self._synced >= SYNC_SECONDS
            try:
                if is_due:
                    self._database.execute("PRAGMA synchronous = FULL")
                _commit(self._database, statements)
                if is_due:
                    self._database.execute("PRAGMA synchronous = NORMAL")
                    self._synced = time.monotonic()
            except sqlite3.Error as err:
                raise _explained(err, self.path) from err


def _commit(database: sqlite3.Connection, statements: Sequence[_Statement]) -> None:
    if len(statements) == 1:  # the usual case; SQLite commits a single statement by itself
        database.execute(*statements[0])
        return
    with database:
        database.execute("BEGIN")
        for sql, values in statements:
            database.execute(sql, values)


def _row(reply: StoredReply) -> tuple[Any, ...]:
    body = json.dumps(reply.body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return reply.key, reply.microdollars, reply.model, body.encode("utf-8", "replace").decode()


def _open(path: Path) -> sqlite3.Connection:
    """Open the file for this process alone, and create the tables if necessary."""
    database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        # With a write-ahead log, commits survive the process without waiting for the disk. The exclusive lock makes shared
        # memory unnecessary, so that it also works in a folder on another machine.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN EXCLUSIVE")
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute("COMMIT")
        database.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        database.close()
        raise
    return database


def _explained(error: sqlite3.Error, path: Path) -> Exception:
    """Translate an error of SQLite into one that says what to do."""
    message = str(error)
    if "locked" in message:
        return RuntimeError(f"{path} is in use by another run. Wait until it has ended, or use another folder.")
    if "not a database" in message or "malformed" in message:
        return ValueError(f"{path} is not a ledger ({message}). Move it away, or choose another folder.")
    return OSError(
        f"cannot use {path}: {message}. Make room or make the folder writable, and run again: what was written "
        f"before is safe and is not paid for again."
    )
