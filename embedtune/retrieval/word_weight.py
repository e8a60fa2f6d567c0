"""learn_words: which words of a question matter, and how much words count beside vectors, from training questions."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers.util import SimilarityFunction

from embedtune.bounds import whole
from embedtune.dataset.folds import assign_folds, document_of_questions
from embedtune.retrieval.encoders import ModelEncoder, encode_questions
from embedtune.retrieval.fusion import question_blocks
from embedtune.retrieval.index import ChunkIndex, build_index, table_of_corpus
from embedtune.retrieval.words import WordWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset

logger: logging.Logger = logging.getLogger(__name__)

# In units of the spread of similarities, so that they suit a model whose similarities are all close together, too. For
# all-MiniLM-L6-v2 the spread is about 0.1.
MULTIPLES = (0.0, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 35.0, 50.0, 75.0, math.inf)
DEFAULT_MULTIPLE = 20.0

_NUM_FOLDS = 5
_MAX_QUESTIONS = 2000
NUM_SAMPLES = 64
MIN_CHUNKS_OF_SPREAD = 3
_UNKNOWN_SPREAD = 0.1
_MIN_SPREAD = 1e-4
# A difference of nDCG@10 that means nothing: among multiples this near to the best, the one nearest to the default is taken.
_PLATEAU = 0.005
_K = 10


@dataclass(frozen=True, eq=False)
class LearnedWords:
    """What training questions teach about words. Made by `learn_words`.

    Attributes:
        weights: How much each word of a question says.
        multiple: How much words count beside vectors, in units of the spread of the model's similarities: 0 for vectors
            alone, infinity for words alone.
        ndcg: The nDCG@10 of the training questions for each multiple that was tried, each question ranked with the weights
            that the other folds taught.
    """

    weights: WordWeights | None = None
    multiple: float = DEFAULT_MULTIPLE
    ndcg: Mapping[float, float] = field(default_factory=dict)


def learn_words(
    data: RetrievalDataset,
    model: SentenceTransformer,
    *,
    split: str = "train",
    batch_size: int = 32,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> LearnedWords:
    """Learn from training questions which of their words matter, and how much words count beside vectors.

    Call it before training, with the model as it is then: a model that was trained on the questions finds their chunks by
    itself, and the words would seem to add nothing. How much they count is chosen by five folds over the documents, the
    weights learned inside each, from 0 (vectors alone) to infinity (words alone). Nothing of another split is read.

    Args:
        data: Its corpus is searched, and the questions of ``split`` are learned from.
        model: The model before it is trained.
        split: Whose questions to learn from. Without such questions every word has the weight 1.
        batch_size: How many texts go through the model at once.
        seed: Draws the folds, and the questions where there are more than 2,000.
        show_progress_bar: Show the progress of encoding; by default only in a terminal, after two seconds.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs(
        ...     [("Press both buttons.", ["How do I restart?"]), ("Turn the key.", ["How do I lock?"])], test_size=0, dev_size=0
        ... )
        >>> words = learn_words(data, et.load_model("minilm", device="cpu"))
        >>> words.weights.num_questions
        2
    """
    whole("seed", seed, at_least=0)
    encoder = ModelEncoder(model, whole("batch_size", batch_size), show_progress_bar)
    return learn_from_index(data, build_index(encoder, table_of_corpus(data.corpus)), encoder, split=split, seed=seed)


def learn_from_index(
    data: RetrievalDataset, index: ChunkIndex, encoder: ModelEncoder, *, split: str = "train", seed: int = 0
) -> LearnedWords:
    """Do what `learn_words` does, with chunks that are encoded already."""
    relevant = data.relevant(split) if split in data.qrels else {}
    if not relevant:
        logger.warning(
            "There are no questions in %r to learn from, so every word of a question has the weight 1.", split
        )
        return LearnedWords()
    names = sorted(relevant)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(names))[:_MAX_QUESTIONS])
    asked = [names[row] for row in drawn]
    questions = [data.query_texts[name] for name in asked]
    documents = document_of_questions(data, {name: relevant[name] for name in asked})
    if len(set(documents.values())) == 1:  # folds over documents need two; over chunks is second best
        documents = {name: relevant[name][0] for name in asked}
    folds = assign_folds(documents, _NUM_FOLDS, seed=seed)
    ndcg = choose_multiple(
        index,
        questions,
        encode_questions(encoder, questions),
        [[index.position_of[chunk] for chunk in relevant[name]] for name in asked],
        np.array([folds[name] for name in asked]),
        show_progress_bar=encoder.show_progress_bar,
    )
    weights = WordWeights.learn([data.query_texts[name] for name in names])
    best = max(ndcg.values())
    nearly_best = [one for one, value in ndcg.items() if value >= best - _PLATEAU]
    multiple = min(nearly_best, key=lambda one: abs(math.log((one + 1) / (DEFAULT_MULTIPLE + 1))))
    logger.info(
        "Words count %g times the spread of similarities (nDCG@10 of %d folds: %s).", multiple, _NUM_FOLDS, ndcg
    )
    return LearnedWords(weights, multiple, ndcg)


def spread_of(index: ChunkIndex) -> float:
    """Return the mean standard deviation of a chunk's similarities to all other chunks, from a sample of at most 64.

    Fewer than three chunks have no spread; for them it is 0.1, that of all-MiniLM-L6-v2.
    """
    rows = np.unique(np.linspace(0, len(index) - 1, num=min(NUM_SAMPLES, len(index)), dtype=np.int64))
    if len(index) < MIN_CHUNKS_OF_SPREAD:
        return _UNKNOWN_SPREAD
    scores = _similarities(index, index.vectors[rows])
    scores[np.arange(len(rows)), rows] = np.nan
    return max(float(np.nanstd(scores, axis=1).mean()), _MIN_SPREAD)


def choose_multiple(
    index: ChunkIndex,
    questions: Sequence[str],
    vectors: NDArray[np.float32],
    relevant: Sequence[Sequence[int]],
    folds: NDArray[np.int64],
    *,
    show_progress_bar: bool | None = None,
) -> dict[float, float]:
    """Return the nDCG@10 of training questions for each multiple, by cross-validation.

    Args:
        index: All chunks.
        questions: The training questions.
        vectors: Their vectors, of shape ``(num_questions, dim)``, by a model that was not trained on them.
        relevant: The positions of the relevant chunks of each.
        folds: The fold of each, of shape ``(num_questions,)``: word weights are learned from the questions of other folds.
        show_progress_bar: By default only in a terminal, after two seconds.
    """
    unit = spread_of(index)
    gains: dict[float, list[float]] = {multiple: [] for multiple in MULTIPLES}
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        weights = WordWeights.learn([questions[row] for row in np.flatnonzero(folds != fold).tolist()])
        for block in question_blocks(len(rows), len(index), show_progress_bar):
            some = rows[block]
            words = index.words.scores([questions[row] for row in some.tolist()], weights)
            similarities = _similarities(index, vectors[some])
            for multiple, found in gains.items():
                scores = words if math.isinf(multiple) else similarities + np.float32(multiple * unit) * words
                found += [_ndcg(row, relevant[i]) for row, i in zip(scores, some.tolist(), strict=True)]
    return {multiple: float(np.mean(found)) for multiple, found in gains.items()}


def _similarities(index: ChunkIndex, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    score = SimilarityFunction.to_similarity_fn("dot" if index.similarity == "cosine" else index.similarity)
    found: NDArray[np.float32] = score(torch.from_numpy(vectors), torch.from_numpy(np.asarray(index.vectors))).numpy()
    return found


def _ndcg(scores: NDArray[np.float32], relevant: Sequence[int]) -> float:
    """Return the nDCG@10 of one question; ties are broken by position."""
    rows = np.asarray(relevant)
    better = [(scores > scores[row]).sum() + (scores[:row] == scores[row]).sum() for row in rows]
    discounts = 1 / np.log2(np.arange(_K) + 2)
    return float(sum(discounts[rank] for rank in better if rank < _K) / discounts[: len(rows)].sum())
