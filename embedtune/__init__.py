"""Fine-tune embedding models for retrieval on your own documents, and know whether it helped.

The names below are resolved on first use, so that ``import embedtune`` loads neither torch nor datasets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BM25",
    "Chunk",
    "CosineEmbeddingLoss",
    "Document",
    "EmbeddingTrainer",
    "Encoder",
    "Evaluation",
    "InBatchNegativesLoss",
    "OptionalDependencyError",
    "Question",
    "Ranker",
    "RetrievalDataset",
    "TokenCounter",
    "TopKEvaluator",
    "TripletMarginLoss",
    "TuningArguments",
    "Verdict",
    "build_dataset",
    "chunk_documents",
    "compare",
    "load_model",
    "load_sample",
    "read_documents",
]

_HOME = {
    "BM25": "embedtune.evaluation.bm25",
    "Chunk": "embedtune.types",
    "CosineEmbeddingLoss": "embedtune.training.losses",
    "Document": "embedtune.types",
    "EmbeddingTrainer": "embedtune.training.trainer",
    "Encoder": "embedtune.types",
    "Evaluation": "embedtune.evaluation.evaluator",
    "InBatchNegativesLoss": "embedtune.training.losses",
    "OptionalDependencyError": "embedtune.errors",
    "Question": "embedtune.types",
    "Ranker": "embedtune.types",
    "RetrievalDataset": "embedtune.dataset",
    "TokenCounter": "embedtune.types",
    "TopKEvaluator": "embedtune.evaluation.evaluator",
    "TripletMarginLoss": "embedtune.training.losses",
    "TuningArguments": "embedtune.training.arguments",
    "Verdict": "embedtune.evaluation.verdict",
    "build_dataset": "embedtune.dataset",
    "chunk_documents": "embedtune.corpus.chunking",
    "compare": "embedtune.evaluation.verdict",
    "load_model": "embedtune.models.load",
    "load_sample": "embedtune.sample",
    "read_documents": "embedtune.corpus.documents",
}

if TYPE_CHECKING:
    from embedtune.corpus.chunking import chunk_documents as chunk_documents
    from embedtune.corpus.documents import read_documents as read_documents
    from embedtune.dataset import RetrievalDataset as RetrievalDataset
    from embedtune.dataset import build_dataset as build_dataset
    from embedtune.errors import OptionalDependencyError as OptionalDependencyError
    from embedtune.evaluation.bm25 import BM25 as BM25
    from embedtune.evaluation.evaluator import Evaluation as Evaluation
    from embedtune.evaluation.evaluator import TopKEvaluator as TopKEvaluator
    from embedtune.evaluation.verdict import Verdict as Verdict
    from embedtune.evaluation.verdict import compare as compare
    from embedtune.models.load import load_model as load_model
    from embedtune.sample import load_sample as load_sample
    from embedtune.training.arguments import TuningArguments as TuningArguments
    from embedtune.training.losses import CosineEmbeddingLoss as CosineEmbeddingLoss
    from embedtune.training.losses import InBatchNegativesLoss as InBatchNegativesLoss
    from embedtune.training.losses import TripletMarginLoss as TripletMarginLoss
    from embedtune.training.trainer import EmbeddingTrainer as EmbeddingTrainer
    from embedtune.types import Chunk as Chunk
    from embedtune.types import Document as Document
    from embedtune.types import Encoder as Encoder
    from embedtune.types import Question as Question
    from embedtune.types import Ranker as Ranker
    from embedtune.types import TokenCounter as TokenCounter


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'embedtune' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def __dir__() -> list[str]:
    return __all__
