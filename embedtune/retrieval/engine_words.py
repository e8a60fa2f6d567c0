"""How many chunks of an engine contain each word: a table in buckets, of which a question reads a few."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedtune.retrieval.tokens import hashed_tokens
from embedtune.retrieval.words import K1, B, WordStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS_PER_REQUEST = 500

_NO_WORD = 1e-9  # Milvus wants a number in each sparse vector
_NUM_DIMENSIONS = 2**32 - 1  # of Milvus's sparse vectors
# Common words take most of the time of a search and say little. It looks for the words that hold this share of the weight.
_SHARE_OF_WEIGHT = 0.9

# A bucket holds the words whose hashes begin with the same bits. As a field of Milvus it has room for 4,096 of them.
_WORDS_PER_BUCKET = 128
_ENTRY = np.dtype([("hash", "<u8"), ("count", "<u4")])
_SIZE = -1  # the id of the row with the settings and the size of the corpus
_VECTOR = [0.0, 0.0]  # Milvus wants one in each row


@dataclass(frozen=True, eq=False)
class WordTable:
    """A collection of Milvus with the settings of a corpus, its size, and how many of its chunks contain each word.

    Attributes:
        client: The ``MilvusClient``.
        name: Of the collection.
        bits: How many bits of a hash say which bucket has the word.
    """

    client: Any
    name: str
    bits: int = 1

    @classmethod
    def create(cls, client: Any, name: str, *, num_words: int) -> WordTable:
        """Create the collection for about so many words; there is room for thirty times as many."""
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", _type("INT64"), is_primary=True)
        schema.add_field("vector", _type("FLOAT_VECTOR"), dim=len(_VECTOR))
        schema.add_field("content", _type("VARCHAR"), max_length=65_535)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="L2")
        create_collection(client, name, schema, index)
        return cls(client, name, max(1, (num_words // _WORDS_PER_BUCKET).bit_length()))

    def read_size(self) -> dict[str, Any]:
        """Return what `write_size` wrote."""
        found: dict[str, Any] = json.loads(self._rows([_SIZE]).get(_SIZE, '{"is_whole": false}'))
        return found

    def write_size(self, size: dict[str, Any]) -> None:
        """Write settings and the size of the corpus, as JSON."""
        self._write([(_SIZE, json.dumps(size))])

    def statistics(self, hashes: NDArray[np.uint64]) -> WordStatistics:
        """Return what the whole corpus says about some words, ascending."""
        buckets = np.unique(self._bucket_of(hashes)).tolist()
        rows = self._rows([_SIZE, *buckets])
        size = json.loads(rows.pop(_SIZE))
        entries = np.concatenate([_unpacked(""), *(_unpacked(rows[one]) for one in buckets if one in rows)])
        return WordStatistics.of_counts(
            entries["hash"],
            entries["count"].astype(np.int64),
            num_chunks=size["num_chunks"],
            num_tokens=size["num_tokens"],
        )

    def count(self, hashes: NDArray[np.uint64], changes: NDArray[np.int64]) -> None:
        """Add to the number of chunks that contain some words, each given once."""
        order = np.argsort(hashes)
        hashes, changes = hashes[order], changes[order]
        buckets, starts = np.unique(self._bucket_of(hashes), return_index=True)
        for rows in batches(range(len(buckets))):
            known = self._rows(buckets[list(rows)].tolist())
            new = []
            for row in rows:
                words = slice(starts[row], starts[row + 1] if row + 1 < len(starts) else None)
                bucket = int(buckets[row])
                new.append((bucket, _packed(_changed(_unpacked(known.get(bucket, "")), hashes[words], changes[words]))))
            self._write(new)

    def _bucket_of(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return hashes >> np.uint64(64 - self.bits)

    def _rows(self, ids: Sequence[int]) -> dict[int, str]:
        rows = [
            row
            for some in batches(ids)
            for row in self.client.get(self.name, ids=list(some), output_fields=["content"])
        ]
        return {row["id"]: row["content"] for row in rows}

    def _write(self, rows: Sequence[tuple[int, str]]) -> None:
        self.client.upsert(self.name, [{"id": one, "vector": _VECTOR, "content": content} for one, content in rows])


def create_collection(client: Any, name: str, schema: Any, index: Any) -> None:
    """Create a collection with its indexes, in which what was written is found at once."""
    client.create_collection(name, schema=schema, consistency_level="Strong")
    client.create_index(
        name, index, sync=False
    )  # there is nothing to wait for, and Milvus Lite does not say when it is done
    client.load_collection(name)


def sparse_row(text: str, length: float) -> dict[int, float]:
    """Return the BM25 scores of the words of a chunk as they would be with an idf of 1, without those of pairs of words.

    Args:
        text: The chunk.
        length: Its length, in units of the mean length.
    """
    hashes, counts = np.unique(hashed_tokens(text, pairs=False), return_counts=True)
    values = counts / (counts + K1 * (1 - B + B * length))
    return dict(zip(_dimensions(hashes).tolist(), values.tolist(), strict=True)) or {0: _NO_WORD}


def sparse_query(hashes: NDArray[np.uint64], weights: NDArray[np.float64]) -> dict[int, float]:
    """Return the words of a question that hold most of its weight."""
    order = np.argsort(-weights, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    kept = order[before < _SHARE_OF_WEIGHT * weights.sum()]
    return dict(zip(_dimensions(hashes[kept]).tolist(), weights[kept].tolist(), strict=True))


def batches(items: Sequence[Any], size: int = _ROWS_PER_REQUEST) -> Iterator[Any]:
    """Yield slices that one request can take."""
    yield from (items[start : start + size] for start in range(0, len(items), size))


def _dimensions(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the dimension of each word; two that share one only make a candidate more."""
    return (hashes % np.uint64(_NUM_DIMENSIONS)).astype(np.int64)


def _changed(known: NDArray[Any], hashes: NDArray[np.uint64], changes: NDArray[np.int64]) -> NDArray[Any]:
    """Return the entries of a bucket with other counts, ascending; words that no chunk contains go."""
    together, where = np.unique(np.concatenate([known["hash"], hashes]), return_inverse=True)
    counts = np.bincount(
        where, weights=np.concatenate([known["count"].astype(np.int64), changes]), minlength=len(together)
    )
    entries = np.empty(len(together), _ENTRY)
    entries["hash"], entries["count"] = together, counts
    return entries[entries["count"] > 0]


def _packed(entries: NDArray[Any]) -> str:
    return base64.b64encode(entries.tobytes()).decode()


def _unpacked(content: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(content), dtype=_ENTRY)


def _type(name: str) -> Any:
    from pymilvus import DataType

    return DataType[name]
