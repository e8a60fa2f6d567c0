"""Do the right chunks that a log names look right? A wrong one is usually about something else altogether."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.retriever import Retriever

# A chunk drawn at random is in the lower half of two unrelated rankings every fourth time.
_SHARE_OF_RANDOM_LABELS = 0.25
_SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class LabelCheck:
    """How many labels look as if they were drawn at random.

    Attributes:
        doubtful: The positions of questions whose right chunk is in the lower half of the corpus, by meaning and by words.
        num_labels: How many questions were looked at.
    """

    doubtful: tuple[int, ...]
    num_labels: int

    @property
    def share_wrong(self) -> float:
        """How many of the labels would be wrong if all doubtful ones were random: an upper estimate, for misses are hard."""
        return min(1.0, len(self.doubtful) / self.num_labels / _SHARE_OF_RANDOM_LABELS)

    def exceeds(self, share: float) -> bool:
        """Say whether more than that share is wrong, beyond what is chance (one-sided binomial test)."""
        expected = share * _SHARE_OF_RANDOM_LABELS
        test = stats.binomtest(len(self.doubtful), self.num_labels, expected, alternative="greater")
        return bool(test.pvalue < _SIGNIFICANCE)


def check_labels(retriever: Retriever, questions: Sequence[str], chunk_ids: Sequence[Sequence[str]]) -> LabelCheck:
    """Look where the named chunks of some questions are in a ranking by vectors and in one by words.

    Args:
        retriever: Over all chunks.
        questions: The questions.
        chunk_ids: The chunks that are said to answer each, of which the best-placed counts.

    Example:
        >>> import embedtune as et
        >>> texts = ["Turn the key.", "Oil the hinge.", "Feed the cat.", "Paint the door."]
        >>> chunks = [et.Chunk(f"{i}#0", str(i), text, 0, len(text)) for i, text in enumerate(texts)]
        >>> retriever = et.Retriever.from_chunks(et.load_model("minilm", device="cpu"), chunks)
        >>> check_labels(retriever, ["What does the cat get?", "Which way does the key turn?"], [["2#0"], ["3#0"]]).doubtful
        (1,)
    """
    index = retriever.index
    size = len(index)
    rows = [[index.position_of[chunk] for chunk in chunks] for chunks in chunk_ids]
    rankings = [retriever.with_word_weight(weight).rank(questions, index.texts(), size)[0] for weight in (0, math.inf)]
    best = np.min([_best_ranks(ranking, rows, size) for ranking in rankings], axis=0)
    return LabelCheck(tuple(np.flatnonzero(best > size / 2).tolist()), len(questions))


def _best_ranks(positions: NDArray[np.int64], rows: Sequence[Sequence[int]], size: int) -> NDArray[np.int64]:
    """Return the rank of the best-placed chunk of each question, from 1; chunks that are not ranked come last."""
    ranks = np.full((len(rows), size), size)
    questions, places = np.nonzero(positions >= 0)
    ranks[questions, positions[questions, places]] = places + 1
    return np.array([ranks[i, chunks].min() for i, chunks in enumerate(rows)])
