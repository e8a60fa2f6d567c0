"""Anything that retrieves, asked in the same way: models, encoders and rankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sentence_transformers import SentenceTransformer

from embedtune.errors import refuse_name
from embedtune.retrieval.encoders import ModelEncoder, model_name
from embedtune.retrieval.search import Ranking, top_k
from embedtune.types import Encoder, Ranker

if TYPE_CHECKING:
    from numpy.typing import NDArray

Retrieving: TypeAlias = SentenceTransformer | Encoder | Ranker
"""What can be evaluated."""


def retrieve(
    retriever: Retrieving,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    k: int,
    *,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> Ranking:
    """Find the best ``k`` chunks for each query.

    Args:
        retriever: A SentenceTransformer, or anything with the methods of `Encoder` (its vectors are compared by cosine) or
            of `Ranker`.
        queries: Their texts by id.
        corpus: The chunks' texts by id.
        k: How many to find, at most the size of the corpus.
        batch_size: How many texts a SentenceTransformer encodes at once.
        show_progress_bar: Show the progress of encoding and searching; by default only in a terminal, after two seconds.

    Returns:
        Positions in ``corpus`` and scores, both of shape ``(num_queries, k)``, best first.

    Raises:
        TypeError: If it cannot retrieve.
        ValueError: If it gives no usable vectors or ranking.
    """
    check_retriever(retriever)
    if isinstance(retriever, Ranker):
        return _ranked(retriever, list(queries.values()), list(corpus.values()), k)
    if isinstance(retriever, SentenceTransformer):
        retriever = ModelEncoder(retriever, batch_size, show_progress_bar)
    model: Any = retriever.model if isinstance(retriever, ModelEncoder) else None
    return top_k(
        _vectors(retriever, retriever.encode_queries(list(queries.values()))),
        _vectors(retriever, retriever.encode_documents(list(corpus.values()))),
        k,
        similarity=model.similarity_fn_name if model is not None else "cosine",
        device=model.device if model is not None else "cpu",
        query_ids=list(queries),
        corpus_ids=list(corpus),
        show_progress_bar=show_progress_bar,
    )


def check_retriever(retriever: object) -> None:
    """Raise a TypeError unless an object can be evaluated."""
    if isinstance(retriever, (SentenceTransformer, Encoder, Ranker)) and not isinstance(retriever, type):
        return
    refuse_name(retriever)
    if isinstance(retriever, type):
        raise TypeError(f"{retriever.__name__} is a class. Give one of its objects, {retriever.__name__}(...).")
    raise TypeError(
        f"Cannot evaluate a {type(retriever).__name__}. Give a SentenceTransformer, an object with encode_queries and "
        "encode_documents, or one with rank."
    )


def is_approximate(retriever: object) -> bool:
    """Return whether a retriever may overlook something, by its own word."""
    return bool(getattr(retriever, "approximate", False))


def _vectors(encoder: Encoder, vectors: object) -> NDArray[np.float32]:
    if not isinstance(vectors, np.ndarray):
        raise TypeError(
            f"{type(encoder).__name__} returned its vectors as a {type(vectors).__name__}. Return a NumPy array of shape "
            "(num_texts, dim): np.array(rows, dtype=np.float32), or tensor.float().cpu().numpy()."
        )
    return vectors


def _ranked(ranker: Ranker, queries: list[str], documents: list[str], k: int) -> Ranking:
    found: Any = ranker.rank(queries, documents, k)
    positions: NDArray[Any]
    scores: NDArray[Any]
    try:
        positions, scores = map(np.asarray, found)
    except (TypeError, ValueError) as err:
        raise ValueError(
            f"{name_of(ranker)}.rank returned {found!r:.80}. Return a pair of arrays, positions and scores, both of shape "
            f"{(len(queries), k)}."
        ) from err
    if positions.dtype.kind not in "iu" or scores.dtype.kind not in "fiu":
        raise ValueError(
            f"{name_of(ranker)}.rank returned positions of the type {positions.dtype} and scores of the type {scores.dtype}. Return "
            "whole numbers, the places of documents from 0, and then their scores."
        )
    if not positions.shape == scores.shape == (len(queries), k):
        raise ValueError(
            f"{name_of(ranker)}.rank returned positions of shape {positions.shape} and scores of shape {scores.shape}, "
            f"expected {(len(queries), k)}: k for each query, -1 where it finds fewer."
        )
    if positions.min() < -1 or positions.max() >= len(documents):
        raise ValueError(
            f"{name_of(ranker)}.rank returned positions from {positions.min()} to {positions.max()}: those of {len(documents)} "
            f"documents are 0 to {len(documents) - 1}, and -1 means that nothing was found."
        )
    return Ranking(positions, scores)


def name_of(retriever: Retrieving) -> str:
    """Return what to call a retriever in a table."""
    if isinstance(retriever, SentenceTransformer):
        return model_name(retriever)
    return str(getattr(retriever, "name", type(retriever).__name__))
