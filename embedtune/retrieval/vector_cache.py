"""Vectors on disk by what was embedded, so that each is paid for once."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEYS_PER_QUERY = 500
_SECONDS_TO_WAIT = 60.0


def vector_key(encoder: str, text: str) -> str:
    """Return the hash under which a text's vector is cached.

    Args:
        encoder: Everything except the text that the vector depends on.
        text: The exact text that is embedded.
    """
    return hashlib.sha256(json.dumps([encoder, text]).encode()).hexdigest()


class VectorCache:
    """Vectors by key in an SQLite file, which several processes may use at once. Writes are atomic.

    Args:
        path: The file; it is created with the first vector.

    Example:
        >>> import tempfile
        >>> cache = VectorCache(Path(tempfile.mkdtemp()) / "vectors.sqlite")
        >>> cache.put({"a": np.array([0.5, 1.0], dtype=np.float32)})
        >>> cache.get(["a", "b"])
        {'a': array([0.5, 1. ], dtype=float32)}
    """

    def __init__(self, path: str | Path) -> None:
        self.path: Path = Path(path)

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors that are cached."""
        if not self.path.exists():
            return {}
        found: dict[str, NDArray[np.float32]] = {}
        with self._database() as database:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                rows = database.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", some)
                found |= {key: np.frombuffer(vector, dtype="<f4") for key, vector in rows}
        return found

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Store vectors, all of them or none."""
        rows = [(key, np.asarray(vector, dtype="<f4").tobytes()) for key, vector in vectors.items()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._database() as database, database:
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_SECONDS_TO_WAIT)) as database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID")
                yield database
        except sqlite3.DatabaseError as err:
            raise RuntimeError(
                f"{self.path} cannot be used as a cache: {err}. Move it away, or choose another file."
            ) from err
