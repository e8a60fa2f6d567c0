"""An SQLite file that many threads of many processes write to at once, each in its turn."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

_SECONDS_TO_WAIT = 60.0
_JOURNAL = "DELETE" if sys.platform == "win32" else "WAL"
_OPEN: WeakValueDictionary[tuple[str, int, str], SharedFile] = WeakValueDictionary()
_OPENING = threading.Lock()


@dataclass(eq=False)
class _Job:
    sql: str
    values: Sequence[Any]
    number: int = 0
    num_rows: int = 0
    error: Exception | None = None
    is_done: bool = False


class SharedFile:
    """One connection a process to an SQLite file. What threads write at the same time is one transaction.

    SQLite lets waiting processes ask again and again, so some wait for minutes. Here they queue for a lock on a file beside it,
    which the system hands on, and the wait is as long as the transactions before. A transaction is on disk when `write` returns.

    The file has SQLite's write-ahead log with full synchronisation: of 40 processes it takes thirty times as many transactions
    as the rollback journal. Before SQLite 3.51.3 a writer and a checkpoint at the same moment could damage it
    (https://sqlite.org/wal.html#walresetbug); here both happen in the turn of one process. On Windows, where the turns are
    SQLite's, it has the rollback journal. The file must be on a disk of this machine.

    Args:
        path: The file.
        schema: What creates the tables where they do not exist.

    Raises:
        ValueError: If the file is something else.
        OSError: If it cannot be read or written.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self.schema = schema
        self._connection: sqlite3.Connection | None = None
        # Locks are taken in this order, those that are needed: writing, opening, the turn of this process, using.
        self._writing, self._opening, self._using = threading.Lock(), threading.Lock(), threading.Lock()
        self._queueing = threading.Lock()
        self._waiting: list[_Job] = []

    def read(self, *statements: str) -> list[list[Any]]:
        """Return the rows of some statements, all of the same state of the file."""
        with self._naming():
            database = self._database()
            with self._using:
                database.execute("BEGIN")
                try:
                    return [database.execute(sql).fetchall() for sql in statements]
                finally:
                    database.execute("ROLLBACK")

    def write(self, sql: str, values: Sequence[Any]) -> tuple[int, int]:
        """Execute a statement, and return the number of the last row that it added, and how many rows it changed."""
        job = _Job(sql, values)
        with self._queueing:
            self._waiting.append(job)
        with self._writing:
            if not job.is_done:  # else another thread has just written it with its own
                with self._queueing:
                    jobs, self._waiting = self._waiting, []
                self._write_all(jobs)
        if job.error is not None:
            with self._naming():
                raise job.error
        return job.number, job.num_rows

    def erase(self) -> None:
        """Write the content to the file itself and empty the log beside it, so that nothing deleted is left."""
        with self._naming():
            database = self._database()
            with _turn(self.path), self._using:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._writing, self._opening, self._using:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _write_all(self, jobs: list[_Job]) -> None:
        try:
            database = self._database()
            with _turn(self.path), self._using:
                database.execute("BEGIN IMMEDIATE")
                try:
                    for job in jobs:
                        _execute(database, job)
                    database.execute("COMMIT")
                except BaseException:
                    if database.in_transaction:
                        database.execute("ROLLBACK")
                    raise
        except BaseException as err:  # a thread must not take for written what this one could not write
            for job in jobs:
                job.error = err if isinstance(err, Exception) else InterruptedError(f"{self.path} was not written.")
            if not isinstance(err, Exception):
                raise
        finally:
            for job in jobs:
                job.is_done = True

    def _database(self) -> sqlite3.Connection:
        with self._opening:
            if self._connection is None:
                self._connection = _opened(self.path, self.schema)
            return self._connection

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Raise SQLite's errors as what `SharedFile` documents."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as err:
            if "not a database" in str(err):
                raise ValueError(f"{self.path} is not a feedback log ({err}). Choose another path.") from err
            raise OSError(
                f"Cannot open or write {self.path}: {err}. Check the free space and the permissions of the folder."
            ) from err


def shared_file(path: Path, schema: str) -> SharedFile:
    """Return the file of this process at a path; a process that was forked opens it anew."""
    key = str(path.resolve()), os.getpid(), schema
    with _OPENING:
        found = _OPEN.get(key)
        if found is None:
            found = _OPEN[key] = SharedFile(path, schema)
        return found


def _opened(path: Path, schema: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("foreign_keys = ON", "secure_delete = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        with _turn(path):
            connection.execute(f"PRAGMA journal_mode = {_JOURNAL}")
            connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _execute(database: sqlite3.Connection, job: _Job) -> None:
    """Execute one of several statements; a row that is refused does not take the others with it."""
    try:
        cursor = database.execute(job.sql, job.values)
    except sqlite3.IntegrityError as err:
        job.error = err
    else:
        job.number, job.num_rows = int(cursor.lastrowid or 0), cursor.rowcount


if sys.platform == "win32":

    @contextmanager
    def _turn(_path: Path) -> Iterator[None]:
        yield  # SQLite's own waiting

else:
    import fcntl

    @contextmanager
    def _turn(path: Path) -> Iterator[None]:
        """Wait for this process's turn to write.

        Whoever waits for the turn holds the queue, so the process that had the last turn cannot take the next one before it.
        The files are others than SQLite's, since closing one of its own would release its locks.
        """
        with ExitStack() as stack:
            try:
                queue, turn = (
                    stack.enter_context(path.with_name(f"{path.name}.{name}").open("ab")) for name in ("queue", "lock")
                )
                fcntl.flock(queue, fcntl.LOCK_EX)
                fcntl.flock(turn, fcntl.LOCK_EX)  # until it is closed
                fcntl.flock(queue, fcntl.LOCK_UN)
            except OSError:
                pass  # a read-only folder, or a disk without such locks: SQLite says what it can do
            yield
