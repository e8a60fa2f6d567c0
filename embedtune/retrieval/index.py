"""Chunks, their vectors and their words: what a retriever searches, and its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import pyarrow.ipc
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as map_file
from sentence_transformers.util import SimilarityFunction

from embedtune.retrieval.encoders import ModelEncoder, encode_chunks
from embedtune.retrieval.faiss import Graph
from embedtune.retrieval.fingerprint import corpus_fingerprint, model_fingerprint
from embedtune.retrieval.words import WordIndex
from embedtune.storage import read_folder, reading, replaced_folder
from embedtune.types import require_descriptions

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from embedtune.retrieval.search import Similarity
    from embedtune.types import Chunk, ContextPart

VECTORS, CHUNKS, WORDS, GRAPH, NODES, SETTINGS = (
    "vectors.safetensors",
    "chunks.arrow",
    "words.safetensors",
    "graph.faiss",
    "graph_nodes.safetensors",
    "index.json",
)

_REMEDY = "Copy the whole folder again, or make the index again."

SCHEMA = pyarrow.schema(
    [
        ("_id", pyarrow.string()),
        ("text", pyarrow.string()),
        ("document_id", pyarrow.string()),
        ("document_title", pyarrow.string()),
        ("headings", pyarrow.list_(pyarrow.string())),
        ("page", pyarrow.int64()),
    ]
)
_EMPTY: dict[str, object] = {"document_id": "", "document_title": "", "headings": [], "page": 0}


@dataclass(frozen=True, eq=False, repr=False)
class ChunkIndex:
    """Chunks sorted by id, with a vector and the words of each. It never changes; `replaced` returns another one.

    Attributes:
        chunks: A row for each chunk: ``_id``, ``text`` (what was embedded), ``document_id``, ``document_title``,
            ``headings`` and ``page``.
        vectors: Of shape ``(num_chunks, dim)``, of unit length where the similarity is the cosine. After `load` they are read
            from disk as they are needed.
        model_fingerprint: Of the document side of the model that made them, see `model_fingerprint`.
        similarity: How they are compared.
    """

    chunks: pyarrow.Table
    vectors: NDArray[np.float32]
    model_fingerprint: str
    similarity: Similarity = "cosine"

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def ids(self) -> list[str]:
        """The chunks' ids, ascending."""
        ids: list[str] = self.chunks["_id"].to_pylist()
        return ids

    @cached_property
    def position_of(self) -> dict[str, int]:
        """The row of each id."""
        return {chunk: row for row, chunk in enumerate(self.ids)}

    @cached_property
    def corpus_fingerprint(self) -> str:
        """A SHA-256 of the ids and texts."""
        return corpus_fingerprint(zip(self.ids, self.texts(), strict=True))

    @cached_property
    def words(self) -> WordIndex:
        """The words of the chunks, counted when they are first asked for."""
        return WordIndex.build(self.texts())

    @cached_property
    def graph(self) -> Graph:
        """A graph for approximate search, built when it is first asked for, and saved from then on."""
        return Graph.build(self.vectors, self.similarity)

    def texts(self, positions: Sequence[int] | None = None) -> list[str]:
        """Return the texts of some rows, or of all."""
        texts: list[str] = (self.chunks if positions is None else self.rows(positions))["text"].to_pylist()
        return texts

    def rows(self, positions: Sequence[int] | NDArray[np.int64]) -> pyarrow.Table:
        """Return some rows of `chunks`."""
        return self.chunks.take(pyarrow.array(positions, pyarrow.int64()))

    def vectors_at(self, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows of `vectors`."""
        return self.vectors[np.asarray(positions, dtype=np.int64)]

    def replaced(
        self, old: set[str], chunks: pyarrow.Table, vectors: NDArray[np.float32], *, words: WordIndex | None = None
    ) -> ChunkIndex:
        """Return an index without some chunks and with others; what is known of the rest is kept.

        Args:
            old: The ids that go.
            chunks: The rows that come.
            vectors: Their vectors, of shape ``(num_rows, dim)``.
            words: Their words, if they are counted already.
        """
        kept = [row for row, chunk in enumerate(self.ids) if chunk not in old]
        table = pyarrow.concat_tables([self.rows(kept), chunks])
        order = np.array(order_of_ids(table), dtype=np.int64)
        index = replace(
            self,
            chunks=table.take(pyarrow.array(order)),
            vectors=np.concatenate([self.vectors[kept], vectors])[order],
        )
        if "words" in self.__dict__:
            new = WordIndex.build(chunks["text"].to_pylist()) if words is None else words
            index.__dict__["words"] = self.words.take(kept).joined(new).take(order)
        if "graph" in self.__dict__:
            place = np.argsort(order)
            moved = np.full(len(self), -1)
            moved[kept] = place[: len(kept)]
            index.__dict__["graph"] = self.graph.changed(moved, place[len(kept) :].tolist(), vectors)
        return index

    def save(self, path: str | Path) -> None:
        """Write the index to a folder; an older one stays until the new one is whole.

        Raises:
            FileExistsError: If ``path`` exists and is not a saved index.
        """
        target = Path(path)
        if target.exists() and not (target / SETTINGS).exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(
                f"{target} exists and is not a saved index, so it is not replaced. Choose another path."
            )
        with replaced_folder(target) as folder:
            self.write(folder)

    def write(self, folder: Path) -> None:
        """Write the files of the index to an empty folder. The settings name each with its SHA-256, so that none can be another's."""
        save_file({"vectors": np.ascontiguousarray(self.vectors)}, folder / VECTORS)
        with pyarrow.OSFile(str(folder / CHUNKS), "wb") as sink, pyarrow.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(self.chunks.cast(SCHEMA))
        if "words" in self.__dict__:
            save_file(self.words.arrays(), folder / WORDS)
        if "graph" in self.__dict__:
            self.graph.write(folder / GRAPH)
            save_file({"positions": self.graph.positions}, folder / NODES)
        settings = {
            "model_fingerprint": self.model_fingerprint,
            "corpus_fingerprint": self.corpus_fingerprint,
            "similarity": self.similarity,
            "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ChunkIndex:
        """Read what `save` wrote. Vectors and chunks stay on disk and are mapped into memory.

        Each file is compared with its SHA-256 first. An index that is replaced meanwhile is read again.

        Raises:
            FileNotFoundError: If there is no index at ``path``, or one of its files is missing.
            ValueError: If a file is damaged, or the files do not belong together.
        """
        return read_folder(path, cls._read)

    @classmethod
    def _read(cls, folder: Path) -> ChunkIndex:
        if not (folder / SETTINGS).exists():
            raise FileNotFoundError(f"{folder} is not a saved index: it has no {SETTINGS}.")
        with reading(folder / SETTINGS, remedy=_REMEDY):
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            fingerprint, corpus = str(settings["model_fingerprint"]), str(settings["corpus_fingerprint"])
            similarity = SimilarityFunction(settings["similarity"]).value
            files = {
                name: digest
                for name, digest in _known_files(settings["files"]).items()
                if name in (VECTORS, CHUNKS)
                or (folder / name).exists()  # the others are made again when they are needed
            }
        for name, expected in files.items():
            with reading(folder / name, remedy=_REMEDY):
                _require(_sha256(folder / name) == expected, "it is not the file that was written with the others")
        index = cls(_read_chunks(folder / CHUNKS), _map_vectors(folder / VECTORS), fingerprint, similarity)
        if len(index.vectors) != len(index.chunks):
            raise ValueError(
                f"{folder} is damaged: it has {len(index.chunks)} chunks and {len(index.vectors)} vectors. {_REMEDY}"
            )
        index.__dict__["corpus_fingerprint"] = corpus  # of the texts in a file that is as it was written
        if WORDS in files:
            with reading(folder / WORDS, remedy=_REMEDY):
                index.__dict__["words"] = WordIndex.of_arrays(load_file(folder / WORDS), num_chunks=len(index))
        if GRAPH in files and NODES in files:
            with reading(folder / GRAPH, remedy=_REMEDY):
                nodes = load_file(folder / NODES)["positions"]
                _require(len(nodes) == 0 or -1 <= nodes.min() <= nodes.max() < len(index), "nodes of other chunks")
                index.__dict__["graph"] = Graph.read(folder / GRAPH, nodes)
        return index


def _known_files(files: object) -> dict[str, str]:
    """Return the SHA-256 of each file of an index. Others are not opened: a path could lead outside."""
    names = {VECTORS, CHUNKS, WORDS, GRAPH, NODES}
    is_whole = (
        isinstance(files, dict) and {VECTORS, CHUNKS} <= set(files) <= names and (GRAPH in files) == (NODES in files)
    )
    if not isinstance(files, dict) or not is_whole:
        raise ValueError(f"files={files!r}")
    return {str(name): str(digest) for name, digest in files.items()}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(partial(file.read, 2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _require(is_right: bool, problem: str) -> None:
    if not is_right:
        raise ValueError(problem)


def _read_chunks(path: Path) -> pyarrow.Table:
    """Map a table of chunks from a file. Every offset in it is checked: a wrong one would end the process, not raise."""
    with reading(path, remedy=_REMEDY):
        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        table.validate(full=True)
        return table.cast(SCHEMA)


def _map_vectors(path: Path) -> NDArray[np.float32]:
    """Map vectors from a file: its pages are read when they are touched."""
    with reading(path, remedy=_REMEDY):
        vectors: NDArray[np.float32] = map_file(path)["vectors"].numpy()
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise ValueError(f"vectors of shape {vectors.shape} and type {vectors.dtype}")
        return vectors


def build_index(encoder: ModelEncoder, chunks: pyarrow.Table) -> ChunkIndex:
    """Encode every row of a table of chunks, sorted by id."""
    return ChunkIndex(
        chunks=chunks,
        vectors=encode_chunks(encoder, chunks["text"].to_pylist(), ids=chunks["_id"].to_pylist()),
        model_fingerprint=model_fingerprint(encoder.model, side="document"),
        similarity=encoder.model.similarity_fn_name,
    )


def table_of_chunks(chunks: Sequence[Chunk], context: Sequence[ContextPart]) -> pyarrow.Table:
    """Return the rows of some chunks, sorted by id.

    Raises:
        ValueError: If an id occurs twice, a text is empty, or the context has descriptions and no chunk has.
    """
    require_descriptions(chunks, context)
    rows = [
        {
            "_id": chunk.id,
            "text": chunk.text_with(context),
            "document_id": chunk.document_id,
            "document_title": chunk.title,
            "headings": list(chunk.headings),
            "page": chunk.page,
        }
        for chunk in chunks
    ]
    return _checked(pyarrow.Table.from_pylist(rows, schema=SCHEMA))


def table_of_corpus(corpus: Dataset) -> pyarrow.Table:
    """Return the rows of a dataset's corpus, sorted by id; columns that it lacks are empty."""
    rows = corpus.select_columns([name for name in SCHEMA.names if name in corpus.column_names])
    return table_of_rows(rows.with_format("arrow")[:])


def table_of_rows(table: pyarrow.Table) -> pyarrow.Table:
    """Return rows with ``_id`` and ``text``, sorted by id; other columns that they lack are empty.

    Raises:
        ValueError: If an id occurs twice, or a text is empty.
    """
    for name, empty in _EMPTY.items():
        if name not in table.column_names:
            table = table.append_column(name, pyarrow.array([empty] * len(table), SCHEMA.field(name).type))
    return _checked(table.select(SCHEMA.names).cast(SCHEMA))


def table_of_texts(texts: Sequence[str]) -> pyarrow.Table:
    """Return rows whose ids are the texts' positions, in their order."""
    ids = [f"{position:012}" for position in range(len(texts))]
    empty = {name: [value] * len(ids) for name, value in _EMPTY.items()}
    return pyarrow.table({"_id": ids, "text": list(texts), **empty}, schema=SCHEMA)


def _checked(table: pyarrow.Table) -> pyarrow.Table:
    ids = table["_id"].to_pylist()
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        repeated = next(chunk for chunk in ids if chunk in seen or seen.add(chunk))  # type: ignore[func-returns-value]
        raise ValueError(f"The chunk id {repeated!r} occurs more than once. Ids must be unique.")
    if empty := [chunk for chunk, text in zip(ids, table["text"].to_pylist(), strict=True) if not text.strip()]:
        raise ValueError(f"The text of chunk {empty[0]!r} is empty ({len(empty)} in all). Leave it out.")
    return table.take(pyarrow.array(order_of_ids(table), pyarrow.int64()))


def order_of_ids(table: pyarrow.Table) -> list[int]:
    """Return the rows' positions in the order of their ids, by which ties are broken."""
    ids = table["_id"].to_pylist()
    return sorted(range(len(ids)), key=ids.__getitem__)  # as Python sorts, which is how the evaluator does
