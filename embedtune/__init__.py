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
    "InBatchNegativesLoss",
    "LearningCurve",
    "LossComparison",
    "MemoryEstimate",
    "ModelEncoder",
    "ModelReport",
    "OpenAIEncoder",
    "OpenAILLM",
    "OptionalDependencyError",
    "Price",
    "Publication",
    "Question",
    "Questions",
    "Ranker",
    "RemineNegatives",
    "Request",
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
    "build_request",
    "check_forgetting",
    "check_model",
    "chunk_documents",
    "compare",
    "compare_losses",
    "estimate_cost",
    "estimate_memory",
    "evaluate_all",
    "filter_by_judge",
    "filter_by_round_trip",
    "freeze_index",
    "generate_questions",
    "improve",
    "label_misses",
    "learn_words",
    "learning_curve",
    "load_gte_qwen2",
    "load_jina_v3",
    "load_model",
    "load_nanobeir",
    "load_sample",
    "merge_with_base",
    "mine_hard_negatives",
    "push_to_hub",
    "read_documents",
    "reindex",
    "suggest_chunk",
    "tune",
]

_HOME = {
    "Answer": "embedtune.serving.answer",
    "AnthropicLLM": "embedtune.llms.anthropic",
    "BM25": "embedtune.retrieval.bm25",
    "Chunk": "embedtune.types",
    "Completion": "embedtune.llms.protocol",
    "CosineEmbeddingLoss": "embedtune.training.losses",
    "Document": "embedtune.types",
    "EmbeddingTrainer": "embedtune.training.trainer",
    "Encoder": "embedtune.types",
    "Evaluation": "embedtune.evaluation.result",
    "FeedbackLog": "embedtune.serving.feedback",
    "FrozenIndexLoss": "embedtune.training.frozen_index",
    "FrozenIndexTrainer": "embedtune.training.frozen_index",
    "GroupedBatchSampler": "embedtune.training.encode_once.sampler",
    "Hit": "embedtune.retrieval.retriever",
    "InBatchNegativesLoss": "embedtune.training.losses",
    "LLM": "embedtune.llms.protocol",
    "LearningCurve": "embedtune.training.experiments.learning_curve",
    "LossComparison": "embedtune.training.experiments.loss_comparison",
    "MemoryEstimate": "embedtune.training.memory.estimate",
    "ModelEncoder": "embedtune.retrieval.encoders",
    "ModelReport": "embedtune.models.selfcheck",
    "OpenAIEncoder": "embedtune.retrieval.openai",
    "OpenAILLM": "embedtune.llms.openai",
    "OptionalDependencyError": "embedtune.errors",
    "Price": "embedtune.llms.protocol",
    "Publication": "embedtune.hub",
    "Question": "embedtune.types",
    "Questions": "embedtune.questions.records",
    "Ranker": "embedtune.types",
    "RemineNegatives": "embedtune.training.negatives.remining",
    "Request": "embedtune.llms.protocol",
    "RetrievalDataset": "embedtune.dataset",
    "Retriever": "embedtune.retrieval.retriever",
    "Round": "embedtune.improvement.rounds",
    "Rounds": "embedtune.improvement.rounds",
    "TokenCounter": "embedtune.types",
    "TopKEvaluator": "embedtune.evaluation.evaluator",
    "TransformersLLM": "embedtune.llms.local",
    "TripletMarginLoss": "embedtune.training.losses",
    "TuningArguments": "embedtune.training.arguments",
    "Verdict": "embedtune.evaluation.verdict",
    "answer": "embedtune.serving.answer",
    "ask_llm": "embedtune.serving.answer",
    "build_dataset": "embedtune.dataset",
    "build_request": "embedtune.serving.answer",
    "check_forgetting": "embedtune.evaluation.forgetting",
    "check_model": "embedtune.models.selfcheck",
    "chunk_documents": "embedtune.corpus.chunking",
    "compare": "embedtune.evaluation.verdict",
    "compare_losses": "embedtune.training.experiments.loss_comparison",
    "estimate_cost": "embedtune.questions.generation",
    "estimate_memory": "embedtune.training.memory.estimate",
    "learn_words": "embedtune.retrieval.word_weight",
    "evaluate_all": "embedtune.evaluation.evaluate_all",
    "filter_by_judge": "embedtune.questions.judge",
    "filter_by_round_trip": "embedtune.questions.round_trip",
    "freeze_index": "embedtune.models.query_side",
    "generate_questions": "embedtune.questions.generation",
    "improve": "embedtune.improvement.improve",
    "label_misses": "embedtune.serving.suggest",
    "learning_curve": "embedtune.training.experiments.learning_curve",
    "load_gte_qwen2": "embedtune.models.families.gte_qwen2",
    "load_jina_v3": "embedtune.models.families.jina_v3",
    "load_model": "embedtune.models.load",
    "load_nanobeir": "embedtune.evaluation.forgetting",
    "load_sample": "embedtune.sample",
    "merge_with_base": "embedtune.training.experiments.merging",
    "mine_hard_negatives": "embedtune.training.negatives.mining",
    "push_to_hub": "embedtune.publishing.hub",
    "read_documents": "embedtune.corpus.documents",
    "reindex": "embedtune.retrieval.reindex",
    "suggest_chunk": "embedtune.serving.suggest",
    "tune": "embedtune.training.tune",
}

if TYPE_CHECKING:
    from embedtune.corpus.chunking import chunk_documents as chunk_documents
    from embedtune.corpus.documents import read_documents as read_documents
    from embedtune.dataset import RetrievalDataset as RetrievalDataset
    from embedtune.dataset import build_dataset as build_dataset
    from embedtune.errors import OptionalDependencyError as OptionalDependencyError
    from embedtune.evaluation.evaluate_all import evaluate_all as evaluate_all
    from embedtune.evaluation.evaluator import TopKEvaluator as TopKEvaluator
    from embedtune.evaluation.forgetting import check_forgetting as check_forgetting
    from embedtune.evaluation.forgetting import load_nanobeir as load_nanobeir
    from embedtune.evaluation.result import Evaluation as Evaluation
    from embedtune.evaluation.verdict import Verdict as Verdict
    from embedtune.evaluation.verdict import compare as compare
    from embedtune.hub import Publication as Publication
    from embedtune.improvement.improve import improve as improve
    from embedtune.improvement.rounds import Round as Round
    from embedtune.improvement.rounds import Rounds as Rounds
    from embedtune.llms.anthropic import AnthropicLLM as AnthropicLLM
    from embedtune.llms.local import TransformersLLM as TransformersLLM
    from embedtune.llms.openai import OpenAILLM as OpenAILLM
    from embedtune.llms.protocol import LLM as LLM
    from embedtune.llms.protocol import Completion as Completion
    from embedtune.llms.protocol import Price as Price
    from embedtune.llms.protocol import Request as Request
    from embedtune.models.families.gte_qwen2 import load_gte_qwen2 as load_gte_qwen2
    from embedtune.models.families.jina_v3 import load_jina_v3 as load_jina_v3
    from embedtune.models.load import load_model as load_model
    from embedtune.models.query_side import freeze_index as freeze_index
    from embedtune.models.selfcheck import ModelReport as ModelReport
    from embedtune.models.selfcheck import check_model as check_model
    from embedtune.publishing.hub import push_to_hub as push_to_hub
    from embedtune.questions.generation import estimate_cost as estimate_cost
    from embedtune.questions.generation import generate_questions as generate_questions
    from embedtune.questions.judge import filter_by_judge as filter_by_judge
    from embedtune.questions.records import Questions as Questions
    from embedtune.questions.round_trip import filter_by_round_trip as filter_by_round_trip
    from embedtune.retrieval.bm25 import BM25 as BM25
    from embedtune.retrieval.encoders import ModelEncoder
    from embedtune.retrieval.openai import OpenAIEncoder as OpenAIEncoder
    from embedtune.retrieval.reindex import reindex as reindex
    from embedtune.retrieval.retriever import Hit as Hit
    from embedtune.retrieval.retriever import Retriever as Retriever
    from embedtune.retrieval.word_weight import learn_words as learn_words
    from embedtune.sample import load_sample as load_sample
    from embedtune.serving.answer import Answer as Answer
    from embedtune.serving.answer import answer as answer
    from embedtune.serving.answer import ask_llm as ask_llm
    from embedtune.serving.answer import build_request as build_request
    from embedtune.serving.feedback import FeedbackLog as FeedbackLog
    from embedtune.serving.suggest import label_misses as label_misses
    from embedtune.serving.suggest import suggest_chunk as suggest_chunk
    from embedtune.training.arguments import TuningArguments as TuningArguments
    from embedtune.training.encode_once.sampler import GroupedBatchSampler as GroupedBatchSampler
    from embedtune.training.experiments.learning_curve import LearningCurve as LearningCurve
    from embedtune.training.experiments.learning_curve import learning_curve as learning_curve
    from embedtune.training.experiments.loss_comparison import LossComparison as LossComparison
    from embedtune.training.experiments.loss_comparison import compare_losses as compare_losses
    from embedtune.training.experiments.merging import merge_with_base as merge_with_base
    from embedtune.training.frozen_index import FrozenIndexLoss as FrozenIndexLoss
    from embedtune.training.frozen_index import FrozenIndexTrainer as FrozenIndexTrainer
    from embedtune.training.losses import CosineEmbeddingLoss as CosineEmbeddingLoss
    from embedtune.training.losses import InBatchNegativesLoss as InBatchNegativesLoss
    from embedtune.training.losses import TripletMarginLoss as TripletMarginLoss
    from embedtune.training.memory.estimate import MemoryEstimate as MemoryEstimate
    from embedtune.training.memory.estimate import estimate_memory as estimate_memory
    from embedtune.training.negatives.mining import mine_hard_negatives as mine_hard_negatives
    from embedtune.training.negatives.remining import RemineNegatives as RemineNegatives
    from embedtune.training.trainer import EmbeddingTrainer as EmbeddingTrainer
    from embedtune.training.tune import tune as tune
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
