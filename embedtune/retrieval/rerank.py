"""A second stage: a cross-encoder reads the first chunks of a ranking together with the question, and orders them anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sentence_transformers import CrossEncoder
from torch import nn
from tqdm.auto import tqdm

from embedtune.retrieval.search import Ranking
from embedtune.text import storable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.parts import IndexParts


def reranked(
    reranker: CrossEncoder,
    ranking: Ranking,
    questions: Sequence[str],
    chunks: IndexParts,
    *,
    depth: int,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Order the first chunks of each question by a cross-encoder's score; ties are broken by id, and the others stay where they are.

    Each question is read by itself, so that it gets the same scores alone and among others.

    Args:
        reranker: The cross-encoder.
        ranking: What was found, of shape ``(num_questions, k)``.
        questions: The questions.
        chunks: Where the positions of ``ranking`` are.
        depth: How many chunks are read for each question.
        batch_size: How many chunks are read at once.
        show_progress_bar: By default only in a terminal, after two seconds.

    Returns:
        The columns of ``ranking`` in the new order, and the scores in that order: the reranker's where it has read the chunk.

    Raises:
        ValueError: If a score is not finite.
    """
    order = np.tile(np.arange(ranking.positions.shape[1]), (len(questions), 1))
    scores = np.array(ranking.scores, dtype=np.float32)
    hidden = None if show_progress_bar is None else not show_progress_bar
    for row, question in enumerate(tqdm(questions, desc="Reranking", delay=2, leave=False, disable=hidden)):
        found = ranking.positions[row, :depth]
        found = found[found >= 0]
        if not len(found):
            continue
        raw, shown = scores_of(reranker, question, chunks.rows(found)["text"].to_pylist(), batch_size=batch_size)
        first = np.lexsort((chunks.places[found], -raw, -shown))
        order[row, : len(found)] = first
        scores[row, : len(found)] = shown[first]
    return order, scores


@dataclass(frozen=True)
class SecondStage:
    """A reranker, or none, behind a ranking.

    Attributes:
        reranker: The cross-encoder.
        depth: How many chunks it reads for each question.
        batch_size: How many it reads at once.
        show_progress_bar: By default only in a terminal, after two seconds.
    """

    reranker: CrossEncoder | None
    depth: int
    batch_size: int
    show_progress_bar: bool | None

    def num_read(self, k: int, num_chunks: int) -> int:
        """Return how many chunks must be ranked for the best ``k``."""
        return min(k if self.reranker is None else max(k, self.depth), num_chunks)

    def read(
        self, first: Ranking, questions: Sequence[str], chunks: IndexParts, k: int
    ) -> tuple[Ranking, NDArray[np.float32]]:
        """Return the ``k`` best of a ranking in the order of the reranker, with the scores of the ranking and the final ones."""
        if self.reranker is None:
            return first, first.scores
        order, scores = reranked(
            self.reranker,
            first,
            questions,
            chunks,
            depth=self.depth,
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
        )
        kept = order[:, :k]
        positions, own = np.take_along_axis(first.positions, kept, 1), np.take_along_axis(first.scores, kept, 1)
        return Ranking(positions, own), scores[:, :k]


def scores_of(
    reranker: CrossEncoder, question: str, texts: Sequence[str], *, batch_size: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a cross-encoder's scores of some texts for a question, equal for equal texts, both of shape ``(num_texts,)``.

    Returns:
        The scores before the reranker's activation function, which still differ where a sigmoid is rounded to 1, and the
        scores that ``predict`` returns.

    Raises:
        ValueError: If a score is not finite.
    """
    distinct = list(dict.fromkeys(texts))
    raw = reranker.predict(
        [(storable(question), storable(text)) for text in distinct],
        batch_size=batch_size,
        activation_fn=nn.Identity(),
        convert_to_tensor=True,
        show_progress_bar=False,
    )
    activation = reranker.activation_fn or nn.Identity()
    both = [part.float().cpu().numpy() for part in (raw, activation(raw))]
    if not all(np.isfinite(part).all() for part in both):
        raise ValueError(
            f"The reranker's scores for the question {question!r} are not finite. Look for a training that diverged, or load the "
            "reranker in float32."
        )
    place = {text: i for i, text in enumerate(distinct)}
    rows = [place[text] for text in texts]
    return both[0][rows], both[1][rows]


def check_reranker(reranker: object) -> None:
    """Raise an error unless an object can be the second stage.

    Raises:
        TypeError: If it is not a ``CrossEncoder``.
        ValueError: If it returns several scores for each pair.
    """
    if reranker is None:
        return
    if not isinstance(reranker, CrossEncoder):
        raise TypeError(
            f"reranker is a {type(reranker).__name__}. Pass a model of sentence-transformers: CrossEncoder(name or folder)."
        )
    if reranker.num_labels != 1:
        raise ValueError(
            f"The reranker returns {reranker.num_labels} scores for each question and chunk, and 1 is needed. Choose a model that "
            "was trained to rank, or load it with CrossEncoder(..., num_labels=1) and train it."
        )
