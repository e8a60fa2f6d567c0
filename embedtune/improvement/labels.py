"""A check for random labels: the relevant chunk of a question rarely ranks in the lower half of the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from sentence_transformers.util import SimilarityFunction

from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.words import WordIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.types import Encoder

# A random chunk is in the lower half of two independent rankings with probability 1/4.
_SHARE_OF_RANDOM_LABELS = 0.25
_SIGNIFICANCE = 0.05
_QUESTIONS_PER_BLOCK = 16


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """How many labels seem to be random.

    Attributes:
        doubtful: The positions of the questions whose relevant chunk is in the lower half of both rankings.
        num_labels: The number of questions.
    """

    doubtful: tuple[int, ...]
    num_labels: int

    @property
    def share_wrong(self) -> float:
        """The share of wrong labels if all doubtful ones were random: an upper estimate, as misses are hard to find."""
        return min(1.0, len(self.doubtful) / max(self.num_labels, 1) / _SHARE_OF_RANDOM_LABELS)

    def exceeds(self, share: float) -> bool:
        """Return whether significantly more than that share is wrong (one-sided binomial test)."""
        if not self.num_labels:
            return False
        expected = share * _SHARE_OF_RANDOM_LABELS
        test = stats.binomtest(len(self.doubtful), self.num_labels, expected, alternative="greater")
        return bool(test.pvalue < _SIGNIFICANCE)


def check_labels(
    encoder: Encoder, corpus: Mapping[str, str], questions: Sequence[str], chunk_ids: Sequence[Sequence[str]]
) -> LabelCheck:
    """Look up the ranks of the labelled chunks in a ranking by vectors and in one by words (BM25).

    Args:
        encoder: The model.
        corpus: The texts of all chunks, by id.
        questions: The questions.
        chunk_ids: The labels of each question, of which the best-ranked one counts.

    Example:
        >>> import embedtune as et
        >>> from embedtune.retrieval.encoders import ModelEncoder
        >>> corpus = {"key": "Turn the key.", "door": "Oil the hinge.", "cat": "Feed the cat.", "paint": "Paint the door."}
        >>> questions = ["What does the cat get?", "Which way does the key turn?"]
        >>> encoder = ModelEncoder(et.load_model("minilm", device="cpu"))
        >>> check_labels(encoder, corpus, questions, [["cat"], ["paint"]]).doubtful
        (1,)
    """
    corpus = dict(sorted(corpus.items()))  # as in an evaluation, so that an encoder that remembers vectors reuses them
    place = {chunk: i for i, chunk in enumerate(corpus)}
    texts = list(corpus.values())
    words = WordIndex.build(texts)
    vectors = torch.from_numpy(encoder.encode_documents(texts))
    asked = torch.from_numpy(encoder.encode_queries(list(questions)))
    name = encoder.model.similarity_fn_name if isinstance(encoder, ModelEncoder) else "cosine"
    similarity = SimilarityFunction.to_similarity_fn(name)
    doubtful = []
    for start in range(0, len(questions), _QUESTIONS_PER_BLOCK):  # all scores of all would fill the memory
        block = slice(start, start + _QUESTIONS_PER_BLOCK)
        by_vectors, by_words = similarity(asked[block], vectors).numpy(), words.scores(questions[block])
        for row, labels in enumerate(chunk_ids[block]):
            places = sorted(place[chunk] for chunk in labels)
            found_by_words = bool(by_words[row, places].any())
            ranks = (
                _best_rank(by_vectors[row], places),
                _best_rank(by_words[row], places) if found_by_words else len(corpus),
            )
            if min(ranks) > len(corpus) / 2:
                doubtful.append(start + row)
    return LabelCheck(tuple(doubtful), len(questions))


def _best_rank(scores: NDArray[np.float32], places: Sequence[int]) -> int:
    """Return the rank, from 1, of the best of some chunks; of equal scores the first is ahead."""
    best = places[int(np.argmax(scores[places]))]
    return 1 + int((scores > scores[best]).sum() + (scores[:best] == scores[best]).sum())
