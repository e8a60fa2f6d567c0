"""Chunks to vectors, with one model or with one process for each device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from embedtune.retrieval.document_fingerprint import document_fingerprint
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.index import ChunkIndex

if TYPE_CHECKING:
    import pyarrow
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedtune.types import ContextPart


def build_index(
    model: SentenceTransformer,
    table: pyarrow.Table,
    *,
    context: tuple[ContextPart, ...],
    model_path: str,
    batch_size: int,
    devices: Sequence[str] | None = None,
    show_progress_bar: bool = False,
) -> ChunkIndex:
    """Encode every row of a table of chunks, sorted by id."""
    return ChunkIndex(
        chunks=table,
        vectors=encode_chunks(
            model, table, batch_size=batch_size, devices=devices, show_progress_bar=show_progress_bar
        ),
        model_fingerprint=document_fingerprint(model),
        similarity=model.similarity_fn_name,
        context=context,
        model_path=model_path,
    )


def encode_chunks(
    model: SentenceTransformer,
    table: pyarrow.Table,
    *,
    batch_size: int,
    devices: Sequence[str] | None = None,
    show_progress_bar: bool = False,
) -> NDArray[np.float32]:
    """Return a vector for each row, of shape ``(num_chunks, dim)``, of unit length where the model compares by cosine.

    Raises:
        ValueError: If a vector is zero or not finite.
    """
    texts: list[str] = table["text"].to_pylist()
    if not texts:
        return np.empty((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    if devices is None:
        vectors = ModelEncoder(model, batch_size, show_progress_bar).encode_documents(texts)
    else:
        encoded = model.encode_document(
            texts, batch_size=batch_size, show_progress_bar=show_progress_bar, device=list(devices)
        )
        vectors = np.asarray(encoded, dtype=np.float32)
    return comparable(vectors, model, names=table["_id"].to_pylist())


def encode_questions(model: SentenceTransformer, questions: Sequence[str], *, batch_size: int) -> NDArray[np.float32]:
    """Return a vector for each question, of shape ``(num_questions, dim)``, likewise."""
    if blank := [row for row, question in enumerate(questions) if not question.strip()]:
        raise ValueError(f"Question {blank[0]} is empty. Nothing can be found for it.")
    return comparable(ModelEncoder(model, batch_size).encode_queries(questions), model, names=questions)


def comparable(
    vectors: NDArray[np.float32], model: SentenceTransformer, *, names: Sequence[str]
) -> NDArray[np.float32]:
    """Return vectors whose dot product is the model's similarity where that is the cosine; refuse useless ones."""
    rows = torch.from_numpy(vectors)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    bad = ((norms == 0) | ~norms.isfinite()).flatten().nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"The vector of {names[bad[0]]!r} ({len(bad)} in all) is zero or not finite, so nothing can be compared with it. "
            "Look for a model that overflows in float16: load it in float32 or bfloat16."
        )
    unit: NDArray[np.float32] = (rows / norms if model.similarity_fn_name == "cosine" else rows).numpy()
    return unit
