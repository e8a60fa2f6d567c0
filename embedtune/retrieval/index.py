"""Chunks and their vectors: what a retriever searches, and how it lies on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.ipc
import torch
from safetensors.torch import load_file, save_file

from embedtune.retrieval.bm25 import BM25, BM25Index
from embedtune.retrieval.document_fingerprint import corpus_fingerprint
from embedtune.retrieval.faiss import build_graph, read_graph, write_graph
from embedtune.storage import replaced_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from embedtune.retrieval.search import Similarity
    from embedtune.types import Chunk, ContextPart

VECTORS, CHUNKS, GRAPH, SETTINGS = "vectors.safetensors", "chunks.arrow", "graph.faiss", "index.json"

_SCHEMA = pyarrow.schema(
    [
        ("_id", pyarrow.string()),
        ("text", pyarrow.string()),
        ("document_id", pyarrow.string()),
        ("document_title", pyarrow.string()),
        ("headings", pyarrow.list_(pyarrow.string())),
    ]
)


@dataclass(frozen=True, eq=False, repr=False)
class ChunkIndex:
    """Chunks sorted by id, and a vector for each. It never changes; adding a chunk makes another one.

    Attributes:
        chunks: A row for each chunk: ``_id``, ``text`` (what was embedded), ``document_id``, ``document_title`` and
            ``headings``.
        vectors: Of shape ``(num_chunks, dim)``, of unit length where the similarity is the cosine. Read from disk as they
            are needed, after `load`.
        model_fingerprint: Of the model that made them, see `document_fingerprint`.
        similarity: How they are compared.
        context: What stands before each chunk's text.
        model_path: Where the model that made them was loaded from, or an empty string.
    """

    chunks: pyarrow.Table
    vectors: NDArray[np.float32]
    model_fingerprint: str
    similarity: Similarity = "cosine"
    context: tuple[ContextPart, ...] = ()
    model_path: str = ""

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
    def bm25(self) -> BM25Index:
        """The words of the chunks, indexed when they are first asked for."""
        return BM25().index(self.texts())

    @cached_property
    def faiss(self) -> Any:
        """A graph for approximate search (HNSW), built when it is first asked for, and from then on saved, too."""
        return build_graph(self.vectors, self.similarity)

    def texts(self, positions: Sequence[int] | None = None) -> list[str]:
        """Return the texts of some rows, or of all."""
        table = self.chunks if positions is None else self.chunks.take(pyarrow.array(positions, pyarrow.int64()))
        texts: list[str] = table["text"].to_pylist()
        return texts

    def save(self, path: str | Path) -> None:
        """Write the index to a folder; an older one stays until the new one is whole.

        Raises:
            FileExistsError: If something else stands at ``path``.
        """
        target = Path(path)
        if target.exists() and not (target / SETTINGS).exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"{target} exists and is no saved index, so it is not replaced. Choose another path.")
        with replaced_folder(target) as folder:
            save_file({"vectors": torch.from_numpy(np.ascontiguousarray(self.vectors))}, folder / VECTORS)
            with pyarrow.ipc.new_file(folder / CHUNKS, self.chunks.schema) as writer:
                writer.write_table(self.chunks)
            if "faiss" in self.__dict__:
                write_graph(self.faiss, folder / GRAPH)
            settings = {
                "model_fingerprint": self.model_fingerprint,
                "corpus_fingerprint": self.corpus_fingerprint,
                "similarity": self.similarity,
                "context": list(self.context),
                "model_path": self.model_path,
            }
            (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ChunkIndex:
        """Read what `save` wrote. Vectors and chunks stay on disk and are mapped into memory.

        Raises:
            FileNotFoundError: If there is no index at ``path``.
            ValueError: If its files do not belong together.
        """
        folder = Path(path)
        if not (folder / SETTINGS).exists():
            raise FileNotFoundError(f"{folder} holds no saved index: there is no {folder / SETTINGS}.")
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        vectors = load_file(folder / VECTORS)["vectors"].numpy()  # pages of the file, read when they are touched
        chunks = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / CHUNKS))).read_all()
        if len(vectors) != len(chunks):
            raise ValueError(
                f"{folder} is damaged: {len(vectors)} vectors for {len(chunks)} chunks. Make the index again."
            )
        index = cls(
            chunks=chunks,
            vectors=vectors,
            model_fingerprint=settings["model_fingerprint"],
            similarity=settings["similarity"],
            context=tuple(settings["context"]),
            model_path=settings["model_path"],
        )
        if (folder / GRAPH).exists():
            index.__dict__["faiss"] = read_graph(folder / GRAPH)
        return index


def table_of_chunks(chunks: Sequence[Chunk], context: Sequence[ContextPart]) -> pyarrow.Table:
    """Return the rows of some chunks, sorted by id.

    Raises:
        ValueError: If an id stands twice, or a text is empty.
    """
    rows = [
        {
            "_id": chunk.id,
            "text": chunk.text_with(context),
            "document_id": chunk.document_id,
            "document_title": chunk.title,
            "headings": list(chunk.headings),
        }
        for chunk in chunks
    ]
    return _checked(pyarrow.Table.from_pylist(rows, schema=_SCHEMA))


def table_of_corpus(corpus: Dataset) -> pyarrow.Table:
    """Return the rows of a dataset's corpus, sorted by id; columns that it lacks are empty."""
    rows = corpus.select_columns([name for name in _SCHEMA.names if name in corpus.column_names])
    table: pyarrow.Table = rows.with_format("arrow")[:]
    for name in ("document_id", "document_title"):
        if name not in table.column_names:
            table = table.append_column(name, pyarrow.array([""] * len(table), pyarrow.string()))
    if "headings" not in table.column_names:
        table = table.append_column("headings", pyarrow.array([[]] * len(table), _SCHEMA.field("headings").type))
    return _checked(table.select(_SCHEMA.names).cast(_SCHEMA))


def _checked(table: pyarrow.Table) -> pyarrow.Table:
    ids = table["_id"].to_pylist()
    if len(set(ids)) < len(ids):
        repeated = next(chunk for chunk in ids if ids.count(chunk) > 1)
        raise ValueError(f"The chunk id {repeated!r} stands more than once. Ids must be unique.")
    if empty := [chunk for chunk, text in zip(ids, table["text"].to_pylist(), strict=True) if not text.strip()]:
        raise ValueError(f"The text of chunk {empty[0]!r} is empty ({len(empty)} in all). Leave it out.")
    return sorted_by_id(table)


def sorted_by_id(table: pyarrow.Table) -> pyarrow.Table:
    """Return the rows in the order of their ids, by which ties are broken."""
    return table.take(pyarrow.array(order_of_ids(table), pyarrow.int64()))


def order_of_ids(table: pyarrow.Table) -> list[int]:
    """Return the rows' positions in the order of their ids."""
    ids = table["_id"].to_pylist()
    return sorted(range(len(ids)), key=ids.__getitem__)  # as Python sorts, which is how the evaluator does
