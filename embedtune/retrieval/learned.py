"""What a retriever has learned beside its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from embedtune.retrieval.word_weight import LearnedWords
    from embedtune.types import ContextPart


@dataclass(frozen=True, eq=False)
class Saved:
    """What makes a retriever out of a model and an index."""

    words: LearnedWords
    word_weight: float
    context: tuple[ContextPart, ...]
    model_fingerprint: str
    reranker: CrossEncoder | None = None
    rerank_depth: int = 50
