"""A check for random labels: the relevant chunk of a question rarely ranks in the lower half of the corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.retrieve import retrieve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.types import Encoder

# A random chunk is in the lower half of two independent rankings with probability 1/4.
_SHARE_OF_RANDOM_LABELS = 0.25
_SIGNIFICANCE = 0.05


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
        return min(1.0, len(self.doubtful) / self.num_labels / _SHARE_OF_RANDOM_LABELS)

    def exceeds(self, share: float) -> bool:
        """Return whether significantly more than that share is wrong (one-sided binomial test)."""
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
    queries = {str(i): question for i, question in enumerate(questions)}
    place = {chunk: i for i, chunk in enumerate(corpus)}
    rows = [[place[chunk] for chunk in chunks] for chunks in chunk_ids]
    by_vectors, by_words = (retrieve(one, queries, corpus, len(corpus)).positions for one in (encoder, BM25()))
    best = np.minimum(_best_ranks(by_vectors, rows), _best_ranks(by_words, rows))
    return LabelCheck(tuple(np.flatnonzero(best > len(corpus) / 2).tolist()), len(questions))


def _best_ranks(positions: NDArray[np.int64], rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return the rank of the best-ranked label of each question, from 1; chunks that are not ranked come last."""
    size = positions.shape[1]
    ranks = np.full((len(rows), size), size)
    questions, places = np.nonzero(positions >= 0)
    ranks[questions, positions[questions, places]] = places + 1
    return np.array([ranks[i, labels].min() for i, labels in enumerate(rows)])
