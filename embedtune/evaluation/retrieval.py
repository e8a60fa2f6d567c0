"""Anything that retrieves, asked in the same way: models, encoders and rankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from sentence_transformers import SentenceTransformer

from embedtune.errors import refuse_name
from embedtune.evaluation.encoders import ModelEncoder, model_name
from embedtune.evaluation.search import Precision, top_k
from embedtune.types import Encoder, Ranker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Retriever: TypeAlias = SentenceTransformer | Encoder | Ranker
"""What can be evaluated."""


def retrieve(
    retriever: Retriever,
    queries: Mapping[str, str],
    corpus: Mapping[str, str],
    k: int,
    *,
    batch_size: int = 32,
    precision: Precision = "float32",
    show_progress_bar: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the best ``k`` chunks for each query.

    Args:
        retriever: A SentenceTransformer, or anything with the methods of `Encoder` (its vectors are compared by cosine) or
            of `Ranker`.
        queries: Their texts by id.
        corpus: The chunks' texts by id.
        k: How many to find, at most the size of the corpus.
        batch_size: How many texts a SentenceTransformer encodes at once.
        precision: Of the search among vectors, see `top_k`.
        show_progress_bar: Show the progress of encoding and searching.

    Returns:
        Scores and positions in ``corpus``, both of shape ``(num_queries, k)``, best first.

    Raises:
        TypeError: If it is no retriever.
        ValueError: If it gives no usable vectors or ranking.
    """
    refuse_name(retriever)
    if isinstance(retriever, SentenceTransformer):
        encoder: Encoder = ModelEncoder(retriever, batch_size, show_progress_bar)
        similarity, device = retriever.similarity_fn_name, retriever.device
    elif isinstance(retriever, Ranker):
        return _ranked(retriever, list(queries.values()), list(corpus.values()), k)
    elif isinstance(retriever, Encoder):
        encoder, similarity, device = retriever, "cosine", "cpu"
    else:
        raise TypeError(
            f"Cannot evaluate a {type(retriever).__name__}. Give a SentenceTransformer, an object with encode_queries and "
            "encode_documents, or one with rank."
        )
    return top_k(
        encoder.encode_queries(list(queries.values())),
        encoder.encode_documents(list(corpus.values())),
        k,
        similarity=similarity,
        precision=precision,
        device=device,
        query_ids=list(queries),
        corpus_ids=list(corpus),
        show_progress_bar=show_progress_bar,
    )


def _ranked(
    ranker: Ranker, queries: list[str], documents: list[str], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    positions, scores = ranker.rank(queries, documents, k)
    if positions.shape != (len(queries), k):
        raise ValueError(
            f"{name_of(ranker)}.rank returned positions of shape {positions.shape}, expected {(len(queries), k)}: k for each "
            "query."
        )
    return scores, positions


def name_of(retriever: Retriever) -> str:
    """Return what to call a retriever in a table."""
    return model_name(retriever) if isinstance(retriever, SentenceTransformer) else type(retriever).__name__
