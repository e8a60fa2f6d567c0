"""What adding, updating and removing chunks does to an index: which chunks go, and which vectors stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedtune.retrieval.encoders import encode_chunks

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray

    from embedtune.retrieval.encoders import ModelEncoder
    from embedtune.retrieval.parts import IndexParts
    from embedtune.types import Chunk


def require_new(parts: IndexParts, chunk_ids: Sequence[str]) -> None:
    """Raise a ``ValueError`` if there is a chunk with one of some ids."""
    known = [chunk for chunk, position in zip(chunk_ids, parts.find(chunk_ids), strict=True) if position >= 0]
    if known:
        raise ValueError(
            f"The index already has chunk {known[0]!r} ({len(known)} in all). Use update() for its document."
        )


def ids_before_update(parts: IndexParts, chunks: Sequence[Chunk]) -> Collection[str]:
    """Return the ids that go where documents are replaced: all that these have.

    Raises:
        ValueError: If there is no chunk of one of the documents.
    """
    ids, documents = [chunk.id for chunk in chunks], list(dict.fromkeys(chunk.document_id for chunk in chunks))
    old = parts.of_documents(documents)
    had = set(parts.rows(parts.find(old))["document_id"].to_pylist())
    known = set(ids) - {chunk for chunk, p in zip(ids, parts.find(ids), strict=True) if p < 0}
    unknown = [one for one in chunks if one.document_id not in had and one.id not in known]
    if unknown:
        raise ValueError(
            f"The index has no chunk {unknown[0].id!r} and no other of its document ({len(unknown)} such chunks). Use "
            "add() for new documents."
        )
    return {*old, *known}


def require_known(parts: IndexParts, chunk_ids: Collection[str]) -> None:
    """Raise a ``ValueError`` unless there is a chunk with each of some ids."""
    unknown = [chunk for chunk in chunk_ids if parts.find([chunk])[0] < 0]
    if unknown:
        raise ValueError(f"The index has no chunk {min(unknown)!r} ({len(unknown)} such ids). Use add() for new ones.")


def vectors_of(parts: IndexParts, new: pyarrow.Table, encoder: ModelEncoder) -> NDArray[np.float32]:
    """Return the vectors of rows that come, of shape ``(num_rows, dim)``; those whose id and text are there are not encoded."""
    ids, texts = new["_id"].to_pylist(), new["text"].to_pylist()
    old = parts.find(ids)
    there = [p for p in old if p >= 0]
    known = dict(zip(there, parts.rows(there)["text"].to_pylist(), strict=True))
    changed = [row for row, (p, text) in enumerate(zip(old, texts, strict=True)) if known.get(p) != text]
    same = sorted(set(range(len(ids))) - set(changed))
    vectors = np.empty((len(ids), parts.main.vectors.shape[1]), dtype=np.float32)
    vectors[same] = parts.vectors_at([old[row] for row in same])
    vectors[changed] = encode_chunks(encoder, [texts[row] for row in changed], ids=[ids[row] for row in changed])
    return vectors
