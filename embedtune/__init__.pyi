# The public names, in the order of use; __init__.py reads this file.

__version__: str

# documents and chunks
from .corpus.documents import read_documents as read_documents
from .sample import load_sample as load_sample
from .corpus.chunking import chunk_documents as chunk_documents
from .types import Document as Document
from .types import Chunk as Chunk
from .types import Question as Question

# questions
from .llms.anthropic import AnthropicLLM as AnthropicLLM
from .llms.openai import OpenAILLM as OpenAILLM
from .llms.local import TransformersLLM as TransformersLLM
from .questions.generation import estimate_cost as estimate_cost
from .questions.generation import generate_questions as generate_questions
from .questions.round_trip import filter_by_round_trip as filter_by_round_trip
from .questions.judge import filter_by_judge as filter_by_judge

# the dataset
from .dataset.retrieval_dataset import build_dataset as build_dataset
from .dataset.retrieval_dataset import RetrievalDataset as RetrievalDataset

# models
from .models.load import load_model as load_model
from .models.families.gte_qwen2 import load_gte_qwen2 as load_gte_qwen2
from .models.families.jina_v3 import load_jina_v3 as load_jina_v3
from .models.selfcheck import check_model as check_model
from .models.query_side import freeze_index as freeze_index

# training
from .training.tune import tune as tune
from .training.arguments import TuningArguments as TuningArguments
from .training.memory.presets import arguments_for_gpu as arguments_for_gpu
from .training.memory.estimate import estimate_memory as estimate_memory
from .training.trainer import EmbeddingTrainer as EmbeddingTrainer
from .training.losses import InBatchNegativesLoss as InBatchNegativesLoss
from .training.losses import TripletMarginLoss as TripletMarginLoss
from .training.losses import CosineEmbeddingLoss as CosineEmbeddingLoss
from .training.negatives.mining import mine_hard_negatives as mine_hard_negatives
from .training.frozen_index import FrozenIndexTrainer as FrozenIndexTrainer
from .training.experiments.loss_comparison import compare_losses as compare_losses
from .training.experiments.learning_curve import learning_curve as learning_curve
from .training.experiments.merging import merge_with_base as merge_with_base
from .training.experiments.cross_validation import cross_validate as cross_validate

# retrieval
from .retrieval.bm25 import BM25 as BM25
from .retrieval.word_weight import learn_words as learn_words
from .retrieval.openai import OpenAIEncoder as OpenAIEncoder
from .retrieval.retriever import Retriever as Retriever
from .retrieval.reindex import reindex as reindex

# evaluation
from .evaluation.evaluator import TopKEvaluator as TopKEvaluator
from .evaluation.evaluate_all import evaluate_all as evaluate_all
from .evaluation.verdict import compare as compare
from .evaluation.forgetting import check_forgetting as check_forgetting

# publishing
from .publishing.hub import push_to_hub as push_to_hub

# serving
from .serving.answer import answer as answer
from .serving.feedback import FeedbackLog as FeedbackLog
from .serving.suggest import suggest_chunk as suggest_chunk
from .serving.suggest import label_misses as label_misses

# improvement
from .improvement.improve import improve as improve
from .improvement.rounds import Rounds as Rounds
