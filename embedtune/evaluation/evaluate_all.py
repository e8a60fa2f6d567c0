"""One call, one table: any number of retrievers on the same questions, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import Verdict, compare
from embedtune.retrieval.bm25 import BM25

if TYPE_CHECKING:
    from embedtune.dataset import RetrievalDataset
    from embedtune.retrieval.retrieve import Retrieving


def evaluate_all(
    data: RetrievalDataset,
    retrievers: Mapping[str, Retrieving | str],
    *,
    split: str = "test",
    k: Sequence[int] = (1, 3, 5, 10),
    batch_size: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> Verdict:
    """Evaluate retrievers on the same questions and judge the second: is it better than the first, and than all others?

    Args:
        data: The corpus, the questions and the judgements. Test questions that stand among its training questions are
            warned of.
        retrievers: What to evaluate, by the name to show. The first is what you have now, the base model as a rule; the
            second is what you would use instead, the tuned one; the others stand beside them. Each is a SentenceTransformer,
            an `Encoder` such as `OpenAIEncoder`, a `Ranker` such as `Retriever`, or the word ``"bm25"``.
        split: Whose questions to ask.
        k: The cut-offs.
        batch_size: How many texts a SentenceTransformer encodes at once.
        confidence: The level of the decision, and the level at which the decisions about all others hold together.
        seed: Draws the resamples.
        show_progress_bar: Show the progress of encoding and searching.

    Raises:
        ValueError: If there are fewer than two retrievers, or a word is not ``"bm25"``.
        TypeError: If something is no retriever.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs(
        ...     [("Press both buttons.", ["How do I restart?"]), ("Turn the key left.", ["Which way does the key turn?"])],
        ...     test_size=0.5,
        ...     dev_size=0,
        ... )
        >>> model = et.load_model("minilm", device="cpu")
        >>> verdict = et.evaluate_all(data, {"bm25": "bm25", "both": et.Retriever.from_dataset(model, data)}, k=(1,))
        >>> verdict.decision
        'cannot tell'
    """
    if not isinstance(retrievers, Mapping):
        raise TypeError(
            f"retrievers must be named, {{'base': model, 'bm25': 'bm25'}} for instance, got a {type(retrievers).__name__}."
        )
    if len(retrievers) < 2:
        raise ValueError(f"{list(retrievers)} cannot be compared: give at least two, for instance base and bm25.")
    evaluator = TopKEvaluator(data, split, k=k, batch_size=batch_size, show_progress_bar=show_progress_bar)
    named = {name: _retriever(name, retriever) for name, retriever in retrievers.items()}
    before, after, *others = (evaluator.evaluate(retriever, name=name) for name, retriever in named.items())
    training = data if "train" in data.splits and split != "train" else None
    return compare(before, after, *others, training=training, confidence=confidence, seed=seed)


def _retriever(name: str, retriever: Retrieving | str) -> Retrieving:
    if not isinstance(retriever, str):
        return retriever
    if retriever.lower() != "bm25":
        raise ValueError(f"{name!r} is {retriever!r}. Give the model itself, et.load_model({retriever!r}), or 'bm25'.")
    return BM25()
