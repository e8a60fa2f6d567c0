"""Fine-tune embedding models for retrieval on your own documents, and know whether it helped.

The names to begin with, in the order of use::

    load_model                          a name on the Hub, a folder or "minilm" -> a SentenceTransformer
    read_documents, chunk_documents     a folder -> documents -> chunks
    generate_questions, AnthropicLLM    chunks -> questions
    load_sample                         documents and questions to try everything on
    build_dataset                       chunks and questions -> corpus, queries and splits that do not leak
    TuningArguments, EmbeddingTrainer   a model and a dataset -> a tuned model
    TopKEvaluator, BM25, compare        models -> a verdict: better, worse or cannot tell
    push_to_hub, Retriever              publish it, serve it

All names are resolved on first use, so that ``import embedtune`` loads neither torch nor datasets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "BM25",
    "LLM",
    "Answer",
    "AnthropicLLM",
    "Chunk",
    "Completion",
    "CosineEmbeddingLoss",
    "Document",
    "EmbeddingTrainer",
    "Encoder",
    "Evaluation",
    "FeedbackLog",
    "FrozenIndexLoss",
    "FrozenIndexTrainer",
    "GroupedBatchSampler",
    "Hit",
    "Hybrid",
    "InBatchNegativesLoss",
    "IndexedCorpus",
    "LearningCurve",
    "LossComparison",
    "MemoryEstimate",
    "ModelEncoder",
    "ModelReport",
    "OpenAIEncoder",
    "OpenAILLM",
    "OptionalDependencyError",
    "Price",
    "Prompt",
    "Publication",
    "Question",
    "Questions",
    "Ranker",
    "Reindexing",
    "RemineNegatives",
    "RetrievalDataset",
    "Retriever",
    "Round",
    "Rounds",
    "TokenCounter",
    "TopKEvaluator",
    "TransformersLLM",
    "TripletMarginLoss",
    "TuningArguments",
    "Verdict",
    "answer",
    "ask_llm",
    "build_dataset",
    "build_prompt",
    "check_forgetting",
    "check_model",
    "chunk_documents",
    "compare",
    "compare_losses",
    "estimate_cost",
    "estimate_memory",
    "estimate_reindex",
    "evaluate_all",
    "filter_by_judge",
    "filter_by_round_trip",
    "freeze_index",
    "generate_questions",
    "improve",
    "label_misses",
    "learning_curve",
    "load_model",
    "load_nanobeir",
    "load_sample",
    "merge_with_base",
    "mine_hard_negatives",
    "push_to_hub",
    "read_documents",
    "reindex",
    "suggest_chunk",
]

_HOME = {
    "Answer": "embedtune.rag.answer",
    "AnthropicLLM": "embedtune.questions.anthropic_llm",
    "BM25": "embedtune.evaluation.bm25",
    "Chunk": "embedtune.types",
    "Completion": "embedtune.types",
    "CosineEmbeddingLoss": "embedtune.training.losses",
    "Document": "embedtune.types",
    "EmbeddingTrainer": "embedtune.training.trainer",
    "Encoder": "embedtune.types",
    "Evaluation": "embedtune.evaluation.evaluator",
    "FeedbackLog": "embedtune.rag.feedback",
    "FrozenIndexLoss": "embedtune.training.frozen_index",
    "FrozenIndexTrainer": "embedtune.training.frozen_index",
    "GroupedBatchSampler": "embedtune.training.batching",
    "Hit": "embedtune.rag.retriever",
    "Hybrid": "embedtune.evaluation.hybrid",
    "InBatchNegativesLoss": "embedtune.training.losses",
    "IndexedCorpus": "embedtune.evaluation.indexed_corpus",
    "LLM": "embedtune.types",
    "LearningCurve": "embedtune.training.learning_curve",
    "LossComparison": "embedtune.training.loss_comparison",
    "MemoryEstimate": "embedtune.training.memory",
    "ModelEncoder": "embedtune.evaluation.encoders",
    "ModelReport": "embedtune.models.selfcheck",
    "OpenAIEncoder": "embedtune.evaluation.openai_encoder",
    "OpenAILLM": "embedtune.questions.openai_llm",
    "OptionalDependencyError": "embedtune.errors",
    "Price": "embedtune.types",
    "Prompt": "embedtune.types",
    "Publication": "embedtune.hub",
    "Question": "embedtune.types",
    "Questions": "embedtune.questions.records",
    "Ranker": "embedtune.types",
    "Reindexing": "embedtune.rag.reindex",
    "RemineNegatives": "embedtune.training.remining",
    "RetrievalDataset": "embedtune.dataset",
    "Retriever": "embedtune.rag.retriever",
    "Round": "embedtune.rag.rounds",
    "Rounds": "embedtune.rag.rounds",
    "TokenCounter": "embedtune.types",
    "TopKEvaluator": "embedtune.evaluation.evaluator",
    "TransformersLLM": "embedtune.questions.transformers_llm",
    "TripletMarginLoss": "embedtune.training.losses",
    "TuningArguments": "embedtune.training.arguments",
    "Verdict": "embedtune.evaluation.verdict",
    "answer": "embedtune.rag.answer",
    "ask_llm": "embedtune.rag.answer",
    "build_dataset": "embedtune.dataset",
    "build_prompt": "embedtune.rag.answer",
    "check_forgetting": "embedtune.evaluation.forgetting",
    "check_model": "embedtune.models.selfcheck",
    "chunk_documents": "embedtune.corpus.chunking",
    "compare": "embedtune.evaluation.verdict",
    "compare_losses": "embedtune.training.loss_comparison",
    "estimate_cost": "embedtune.questions.generation",
    "estimate_memory": "embedtune.training.memory",
    "estimate_reindex": "embedtune.rag.reindex",
    "evaluate_all": "embedtune.evaluation.evaluate_all",
    "filter_by_judge": "embedtune.questions.judge",
    "filter_by_round_trip": "embedtune.questions.round_trip",
    "freeze_index": "embedtune.models.query_side",
    "generate_questions": "embedtune.questions.generation",
    "improve": "embedtune.rag.improve",
    "label_misses": "embedtune.rag.suggest",
    "learning_curve": "embedtune.training.learning_curve",
    "load_model": "embedtune.models.load",
    "load_nanobeir": "embedtune.evaluation.forgetting",
    "load_sample": "embedtune.sample",
    "merge_with_base": "embedtune.evaluation.merging",
    "mine_hard_negatives": "embedtune.training.mining",
    "push_to_hub": "embedtune.publishing.hub",
    "read_documents": "embedtune.corpus.documents",
    "reindex": "embedtune.rag.reindex",
    "suggest_chunk": "embedtune.rag.suggest",
}

if TYPE_CHECKING:
    from embedtune.corpus.chunking import chunk_documents as chunk_documents
    from embedtune.corpus.documents import read_documents as read_documents
    from embedtune.dataset import RetrievalDataset as RetrievalDataset
    from embedtune.dataset import build_dataset as build_dataset
    from embedtune.errors import OptionalDependencyError as OptionalDependencyError
    from embedtune.evaluation.bm25 import BM25 as BM25
    from embedtune.evaluation.encoders import ModelEncoder
    from embedtune.evaluation.evaluate_all import evaluate_all as evaluate_all
    from embedtune.evaluation.evaluator import Evaluation as Evaluation
    from embedtune.evaluation.evaluator import TopKEvaluator as TopKEvaluator
    from embedtune.evaluation.forgetting import check_forgetting as check_forgetting
    from embedtune.evaluation.forgetting import load_nanobeir as load_nanobeir
    from embedtune.evaluation.hybrid import Hybrid as Hybrid
    from embedtune.evaluation.indexed_corpus import IndexedCorpus as IndexedCorpus
    from embedtune.evaluation.merging import merge_with_base as merge_with_base
    from embedtune.evaluation.openai_encoder import OpenAIEncoder as OpenAIEncoder
    from embedtune.evaluation.verdict import Verdict as Verdict
    from embedtune.evaluation.verdict import compare as compare
    from embedtune.hub import Publication as Publication
    from embedtune.models.load import load_model as load_model
    from embedtune.models.query_side import freeze_index as freeze_index
    from embedtune.models.selfcheck import ModelReport as ModelReport
    from embedtune.models.selfcheck import check_model as check_model
    from embedtune.publishing.hub import push_to_hub as push_to_hub
    from embedtune.questions.anthropic_llm import AnthropicLLM as AnthropicLLM
    from embedtune.questions.generation import estimate_cost as estimate_cost
    from embedtune.questions.generation import generate_questions as generate_questions
    from embedtune.questions.judge import filter_by_judge as filter_by_judge
    from embedtune.questions.openai_llm import OpenAILLM as OpenAILLM
    from embedtune.questions.records import Questions as Questions
    from embedtune.questions.round_trip import filter_by_round_trip as filter_by_round_trip
    from embedtune.questions.transformers_llm import TransformersLLM as TransformersLLM
    from embedtune.rag.answer import Answer as Answer
    from embedtune.rag.answer import answer as answer
    from embedtune.rag.answer import ask_llm as ask_llm
    from embedtune.rag.answer import build_prompt as build_prompt
    from embedtune.rag.feedback import FeedbackLog as FeedbackLog
    from embedtune.rag.improve import improve as improve
    from embedtune.rag.reindex import Reindexing as Reindexing
    from embedtune.rag.reindex import estimate_reindex as estimate_reindex
    from embedtune.rag.reindex import reindex as reindex
    from embedtune.rag.retriever import Hit as Hit
    from embedtune.rag.retriever import Retriever as Retriever
    from embedtune.rag.rounds import Round as Round
    from embedtune.rag.rounds import Rounds as Rounds
    from embedtune.rag.suggest import label_misses as label_misses
    from embedtune.rag.suggest import suggest_chunk as suggest_chunk
    from embedtune.sample import load_sample as load_sample
    from embedtune.training.arguments import TuningArguments as TuningArguments
    from embedtune.training.batching import GroupedBatchSampler as GroupedBatchSampler
    from embedtune.training.frozen_index import FrozenIndexLoss as FrozenIndexLoss
    from embedtune.training.frozen_index import FrozenIndexTrainer as FrozenIndexTrainer
    from embedtune.training.learning_curve import LearningCurve as LearningCurve
    from embedtune.training.learning_curve import learning_curve as learning_curve
    from embedtune.training.loss_comparison import LossComparison as LossComparison
    from embedtune.training.loss_comparison import compare_losses as compare_losses
    from embedtune.training.losses import CosineEmbeddingLoss as CosineEmbeddingLoss
    from embedtune.training.losses import InBatchNegativesLoss as InBatchNegativesLoss
    from embedtune.training.losses import TripletMarginLoss as TripletMarginLoss
    from embedtune.training.memory import MemoryEstimate as MemoryEstimate
    from embedtune.training.memory import estimate_memory as estimate_memory
    from embedtune.training.mining import mine_hard_negatives as mine_hard_negatives
    from embedtune.training.remining import RemineNegatives as RemineNegatives
    from embedtune.training.trainer import EmbeddingTrainer as EmbeddingTrainer
    from embedtune.types import LLM as LLM
    from embedtune.types import Chunk as Chunk
    from embedtune.types import Completion as Completion
    from embedtune.types import Document as Document
    from embedtune.types import Encoder as Encoder
    from embedtune.types import Price as Price
    from embedtune.types import Prompt as Prompt
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
