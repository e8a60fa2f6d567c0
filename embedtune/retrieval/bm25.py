"""BM25: a retriever that knows nothing but words, and what it can learn from questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedtune.bounds import finite, share
from embedtune.retrieval.fingerprint import corpus_fingerprint
from embedtune.retrieval.fusion import check_ranking, rank_by_words
from embedtune.retrieval.words import K1, B, WordIndex, WordWeights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedtune.retrieval.search import Ranking


class BM25:
    """Rank documents by the words that they share with the query, rare words counting more.

    Lucene's variant (Kamphuis et al., "Which BM25 Do You Mean?", 2020) over words, parts of words and pairs of neighbouring
    words (see `hashed_tokens`), which stands in for stemming and phrases in any language. A score is the share of the query's
    weight that a document holds, from 0 to 1.

    Without questions it is a baseline. With questions `fit` learns how much each word of a question says (see `WordWeights`):
    "how do I" says nothing, and no stop words are needed.

    Args:
        k1: How much a repeated word adds.
        b: How much long documents are held back, from 0 to 1.
        weights: What was learned from questions.

    Attributes:
        weights: What was learned from questions, or None.

    Raises:
        ValueError: If ``k1`` is negative or not finite, or ``b`` not between 0 and 1.

    Example:
        >>> documents = ["Press both buttons.", "Turn the key left.", "How do I call? Ask Ada."]
        >>> [round(float(score), 2) for score in BM25().fit(documents).scores(["How do I press the button?"])[0]]
        [0.15, 0.02, 0.11]
        >>> learned = BM25().fit(documents, questions=["How do I lock the door?", "How do I call the doctor?"])
        >>> [round(float(score), 2) for score in learned.scores(["How do I press the button?"])[0]]
        [0.2, 0.0, 0.01]
    """

    def __init__(self, *, k1: float = K1, b: float = B, weights: WordWeights | None = None) -> None:
        self.k1: float = finite("k1", k1, at_least=0)
        self.b: float = share("b", b)
        self.weights: WordWeights | None = weights
        self._index: WordIndex | None = None
        self._indexed = ""

    def fit(self, documents: Sequence[str], questions: Sequence[str] | None = None) -> BM25:
        """Index documents and, if there are questions, learn how much their words say.

        Args:
            documents: The texts to rank.
            questions: Training questions. Without them, what was learned before is kept.

        Returns:
            This object.
        """
        self._index = WordIndex.build(documents, k1=self.k1, b=self.b)
        self._indexed = _fingerprint(documents)
        if questions:
            self.weights = WordWeights.learn(questions)
        return self

    @property
    def fingerprint(self) -> str:
        """The settings, as a result remembers them."""
        learned = f", {self.weights.num_questions} questions" if self.weights is not None else ""
        return f"BM25(k1={self.k1}, b={self.b}{learned})"

    @property
    def name(self) -> str:
        """What tables call it."""
        return "BM25" if self.weights is None else "tuned words"

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Return the score of each indexed document, of shape ``(num_queries, num_documents)``, from 0 to 1.

        Raises:
            ValueError: If no documents are indexed.
        """
        if self._index is None:
            raise ValueError("There are no documents to score. Call fit(documents) first.")
        return self._index.scores(queries, self.weights)

    def rank(self, queries: Sequence[str], documents: Sequence[str], k: int) -> Ranking:
        """Return positions in ``documents`` and their scores, both of shape ``(num_queries, k)``, best first.

        Ties are broken by position. A document that shares no token with the query is not found: its position is -1. Documents
        other than those of `fit` are indexed for this call.

        Raises:
            ValueError: If there are no queries, or ``k`` is not between 1 and the number of documents.
        """
        check_ranking(queries, len(documents), k)
        index = self._index
        if index is None or self._indexed != _fingerprint(documents):
            index = WordIndex.build(documents, k1=self.k1, b=self.b)
        return rank_by_words(index, queries, self.weights, k)


def _fingerprint(documents: Sequence[str]) -> str:
    return corpus_fingerprint(("", text) for text in documents)
