"""Chunks in Milvus, in a file or in a cluster, where they outgrow the memory of one process."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pyarrow
import pyarrow.compute

from embedtune.errors import OptionalDependencyError
from embedtune.retrieval.engine_words import WordTable, batches, create_collection, sparse_query, sparse_row
from embedtune.retrieval.index import SCHEMA, ChunkIndex, order_of_ids
from embedtune.retrieval.parts import IndexParts, SomeChunks
from embedtune.retrieval.tokens import hashed_tokens
from embedtune.retrieval.words import WordIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.fusion import Fusion
    from embedtune.retrieval.search import Similarity

# How far down the vectors and the words are each searched for candidates, unless more hits are wanted.
_CANDIDATES = 500

_GRAPH = {"M": 32, "efConstruction": 200}  # as in faiss.py

_QUESTIONS_PER_REQUEST = 16  # each has hundreds of hits with vectors and texts

_FIELDS = [*SCHEMA.names, "vector"]
_ALL = 'key >= ""'
_LONGEST_TEXT = 65_535  # bytes


@dataclass(frozen=True, eq=False, repr=False)
class EngineParts:
    """Chunks in Milvus, which a `Retriever` searches in the place of `IndexParts`.

    A row for each chunk has its text, its vector, and the BM25 scores of its words as a sparse vector. Both vectors are
    searched for candidates, whose scores are then computed from their vectors and texts by the same code as for an index in
    memory. What these need to know of all chunks, how many contain each word, is in a second collection, ``<name>_words``.

    Any number of processes may search at once, and one may write.

    Attributes:
        client: The ``MilvusClient``.
        name: Of the collection.
        words: How many chunks contain each word.
        settings: What never changes: the number of bits of `WordTable`, and what `ChunkIndex` has beside chunks and vectors.
    """

    client: Any
    name: str
    words: WordTable
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, index: ChunkIndex, address: str, *, name: str, token: str) -> EngineParts:
        """Write the chunks of an index. Raises what `create` and `require_room` raise."""
        require_room(index.chunks)
        words = index.words
        parts = cls.create(index, address, name=name, token=token, num_words=len(words.hashes))
        parts.write(index.chunks, index.vectors, words.lengths, mean_length=words.statistics.mean_length)
        parts.words.count(words.hashes, words.num_chunks_with)
        parts.client.flush(name)
        parts.finish(len(index), int(words.lengths.sum()))
        return parts

    @classmethod
    def create(cls, index: ChunkIndex, address: str, *, name: str, token: str, num_words: int) -> EngineParts:
        """Create collections for chunks like those of an index. They are not open to others before `finish`.

        Raises:
            OptionalDependencyError: If ``pymilvus`` is not installed.
            ValueError: If there is such a collection, or the similarity is neither the cosine nor the dot product.
        """
        if index.similarity not in ("cosine", "dot"):
            raise ValueError(
                f"In Milvus chunks are compared by cosine or dot product, not by {index.similarity!r}. Search them in memory."
            )
        client = _connect(address, token)
        for one in (name, f"{name}_words"):
            if client.has_collection(one):
                raise ValueError(
                    f"{address} already has a collection {one!r}. Choose another name, or drop it first: "
                    f"MilvusClient({address!r}).drop_collection({one!r})."
                )
        dim = index.vectors.shape[1]
        words = WordTable.create(client, f"{name}_words", num_words=num_words)
        _create_chunks(client, name, dim, in_file="://" not in address)
        settings = {
            "bits": words.bits,
            "dim": dim,
            "model_fingerprint": index.model_fingerprint,
            "similarity": index.similarity,
        }
        return cls(client, name, words, settings)

    @classmethod
    def open(cls, address: str, *, name: str, token: str) -> EngineParts:
        """Connect to chunks that were written.

        Raises:
            OptionalDependencyError: If ``pymilvus`` is not installed.
            FileNotFoundError: If there is no such collection.
            ValueError: If a writer was stopped while it changed them.
        """
        client = _connect(address, token)
        names = (name, f"{name}_words")
        if not all(client.has_collection(one) for one in names):
            raise FileNotFoundError(f"{address} has no chunks under the name {name!r}. Write them with to_engine().")
        for one in names:
            client.load_collection(one)
        size = WordTable(client, f"{name}_words").read_size()
        if not size.pop("is_whole"):
            raise ValueError(
                f"The chunks {name!r} at {address} were being changed when their writer stopped. Drop the collections {name!r} "
                f"and {names[1]!r}, and write them again."
            )
        return cls(client, name, WordTable(client, f"{name}_words", size["bits"]), size)

    def __len__(self) -> int:
        return int(self.words.read_size()["num_chunks"])

    @property
    def similarity(self) -> Similarity:
        """How vectors are compared."""
        return self.main.similarity

    @cached_property
    def main(self) -> ChunkIndex:
        """An index like that of the chunks, of none of them."""
        return self._index([])

    @property
    def merged(self) -> ChunkIndex:
        """All chunks as they are now, as one index in memory."""
        return self._index(self._iterate(_ALL))

    def sample(self, num: int) -> ChunkIndex:
        """Return an index of a few chunks, or of all where there are no more."""
        return self._index(self.client.query(self.name, filter=_ALL, limit=num, output_fields=_FIELDS))

    def around(self, ids: Sequence[str], document_ids: Sequence[str] = ()) -> IndexParts:
        """Return the chunks with some ids, and those of some documents. Change these, and the engine is changed."""
        found = [row for some in batches(ids) for row in self._get(some)]
        for some in batches(document_ids):
            found += self._iterate(f"document_id in {json.dumps(list(some), ensure_ascii=False)}")
        parts = IndexParts.of(self._index({row["_id"]: row for row in found}.values()))
        return _Around(parts.main, parts.tail, parts.gone, self)

    def candidates(
        self, fusion: Fusion, questions: Sequence[str], vectors: NDArray[np.float32], k: int
    ) -> Iterator[tuple[slice, IndexParts]]:
        """Yield for each question the chunks that may be among its ``k`` best."""
        depth = max(k, _CANDIDATES)
        found = self._search(vectors.tolist(), "vector", depth)
        corpus = self.words.statistics(np.unique(np.concatenate([hashed_tokens(question) for question in questions])))
        if fusion.word_weight:
            tokens = [np.unique(hashed_tokens(question, pairs=False)) for question in questions]
            learned = [np.ones(len(some)) if fusion.weights is None else fusion.weights.of(some) for some in tokens]
            queries = [sparse_query(some, w * corpus.idf(some)) for some, w in zip(tokens, learned, strict=True)]
            asked = [row for row, query in enumerate(queries) if query]
            for row, more in zip(asked, self._search([queries[row] for row in asked], "words", depth), strict=True):
                found[row] += more
        for row, rows in enumerate(found):
            index = self._index({one["_id"]: one for one in rows}.values())
            yield slice(row, row + 1), SomeChunks.of_corpus(index, corpus)

    def put(self, old: pyarrow.Table, chunks: pyarrow.Table, vectors: NDArray[np.float32]) -> None:
        """Replace some rows, all that there are of these chunks, by others. Raises what `require_room` raises."""
        require_room(chunks)
        size = self.words.read_size()
        removed, added = (WordIndex.build(table["text"].to_pylist()) for table in (old, chunks))
        num_chunks = size["num_chunks"] + len(added) - len(removed)
        num_tokens = size["num_tokens"] + int(added.lengths.sum() - removed.lengths.sum())
        self.words.write_size(size | {"is_whole": False})
        gone = sorted(set(old["_id"].to_pylist()) - set(chunks["_id"].to_pylist()))
        for some in batches(gone):
            self.client.delete(self.name, ids=[_key(one) for one in some])
        self.write(chunks, vectors, added.lengths, mean_length=num_tokens / max(num_chunks, 1))
        hashes, where = np.unique(np.concatenate([added.hashes, removed.hashes]), return_inverse=True)
        counts = np.concatenate([added.num_chunks_with, -removed.num_chunks_with])
        self.words.count(hashes, np.bincount(where, weights=counts, minlength=len(hashes)).astype(np.int64))
        self.finish(num_chunks, num_tokens)

    def write(
        self,
        chunks: pyarrow.Table,
        vectors: NDArray[np.float32],
        lengths: NDArray[np.float64],
        *,
        mean_length: float,
    ) -> None:
        """Write rows, whose texts have so many tokens; their words are not counted."""
        for rows in batches(range(len(chunks))):
            table = chunks.slice(rows[0], len(rows)).to_pylist()
            for at, row in zip(rows, table, strict=True):
                words = sparse_row(row["text"], lengths[at] / max(mean_length, 1.0))
                row |= {"key": _key(row["_id"]), "vector": vectors[at], "words": words}
            self.client.upsert(self.name, table)

    def finish(self, num_chunks: int, num_tokens: int) -> None:
        """Say how many chunks there are, and how many tokens they have: from now on others may open them."""
        size = {"num_chunks": num_chunks, "num_tokens": num_tokens, "is_whole": True}
        self.words.write_size(dict(self.settings) | size)

    def _index(self, rows: Iterable[Mapping[str, Any]]) -> ChunkIndex:
        rows = list(rows)
        table = pyarrow.Table.from_pylist(rows, schema=SCHEMA)
        order = order_of_ids(table)
        vectors = np.array([rows[row]["vector"] for row in order], dtype=np.float32).reshape(-1, self.settings["dim"])
        known = self.settings["model_fingerprint"], self.settings["similarity"]
        return ChunkIndex(table.take(pyarrow.array(order, pyarrow.int64())), vectors, *known)

    def _search(self, queries: Sequence[Any], field: str, k: int) -> list[list[dict[str, Any]]]:
        params = {"metric_type": "IP", "params": {"ef": 2 * k} if field == "vector" else {}}
        found = []
        for some in batches(queries, _QUESTIONS_PER_REQUEST):
            found += self.client.search(
                self.name, data=list(some), anns_field=field, limit=k, output_fields=_FIELDS, search_params=params
            )
        return [[dict(hit["entity"]) for hit in hits] for hits in found]

    def _get(self, ids: Collection[str]) -> list[dict[str, Any]]:
        return list(self.client.get(self.name, ids=[_key(one) for one in ids], output_fields=_FIELDS)) if ids else []

    def _iterate(self, condition: str) -> Iterator[dict[str, Any]]:
        iterator = self.client.query_iterator(self.name, filter=condition, output_fields=_FIELDS, batch_size=1_000)
        try:
            while rows := iterator.next():
                yield from rows
        finally:
            iterator.close()


@dataclass(frozen=True, eq=False, repr=False)
class _Around(IndexParts):
    """A few chunks of an engine, to be changed there."""

    engine: EngineParts

    def changed(self, old: Iterable[str], chunks: pyarrow.Table, vectors: NDArray[np.float32]) -> Any:
        """Write the change to the engine, and return it."""
        positions = self.find(sorted({*old, *chunks["_id"].to_pylist()}))
        self.engine.put(self.rows([p for p in positions if p >= 0]), chunks, vectors)
        return self.engine


def require_room(chunks: pyarrow.Table) -> None:
    """Raise a ``ValueError`` if a field of Milvus has no room for what a chunk has: a write would stop in the middle."""
    for name in ("_id", "text", "document_id", "document_title"):
        sizes = pyarrow.compute.binary_length(chunks[name]).to_numpy()
        if len(sizes) and sizes.max() > _LONGEST_TEXT:
            chunk = chunks["_id"][int(sizes.argmax())].as_py()
            raise ValueError(
                f"{name} of chunk {chunk[:80]!r} has {sizes.max():,} bytes, and Milvus takes at most {_LONGEST_TEXT:,}. Make smaller "
                "chunks, or search in memory."
            )


def _key(chunk_id: str) -> str:
    """Return an id without quotation marks, which Milvus's client does not escape when it iterates."""
    return quote(chunk_id, safe="/#: ")


def _connect(address: str, token: str) -> Any:
    try:
        from pymilvus import MilvusClient
    except ImportError as err:
        raise OptionalDependencyError("pymilvus", extra="milvus", purpose="a retriever in Milvus") from err
    return MilvusClient(address, token=token)


def _create_chunks(client: Any, name: str, dim: int, *, in_file: bool) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, max_length=_LONGEST_TEXT, is_primary=True)
    for field in ("_id", "text", "document_id", "document_title"):
        schema.add_field(field, DataType.VARCHAR, max_length=_LONGEST_TEXT)
    schema.add_field("headings", DataType.JSON)
    schema.add_field("page", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    # A graph is approximate, and Milvus Lite, which is for a few chunks, is no faster with one.
    how = {"index_type": "FLAT"} if in_file else {"index_type": "HNSW", "params": _GRAPH}
    index.add_index("vector", metric_type="IP", **how)
    index.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    index.add_index("document_id", index_type="INVERTED")
    create_collection(client, name, schema, index)
