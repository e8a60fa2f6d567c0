"""Evaluate any number of retrievers on the same questions in one call, with the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import Verdict, compare

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
    confidence_level: float = 0.95,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Verdict:
    """Evaluate retrievers on the same questions, and compare the second with the first and with all others.

    Args:
        data: The corpus, the questions and the judgements. A warning names test questions that are also training questions.
        retrievers: What to evaluate, by name. The first is what you have now, usually the base model; the second is what
            you would use instead, the tuned model; the others are for comparison. Each is a SentenceTransformer, an
            `Encoder` such as `OpenAIEncoder`, a `Ranker` such as `Retriever`, or the string ``"bm25"``.
        split: The split whose questions are asked.
        k: The cut-offs.
        batch_size: How many texts a SentenceTransformer encodes at once.
        confidence_level: The level of the decision; the decisions about the others hold together at this level.
        seed: Seed of the resamples.
        show_progress_bar: Show the progress of encoding and searching; by default only in a terminal, after two seconds.

    Raises:
        ValueError: If there are fewer than two retrievers, or a string other than ``"bm25"``.
        TypeError: If an object is not a retriever.

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
            f"retrievers must be a dictionary such as {{'base': model, 'bm25': 'bm25'}}, got a {type(retrievers).__name__}."
        )
    if len(retrievers) < 2:
        raise ValueError(f"At least two retrievers are needed, for instance base and bm25, got {list(retrievers)}.")
    evaluator = TopKEvaluator(data, split, k=k, batch_size=batch_size, show_progress_bar=show_progress_bar)
    named = {name: _known(name, retriever) for name, retriever in retrievers.items()}
    before, after, *others = (evaluator.evaluate(retriever, name=name) for name, retriever in named.items())
    training = data if "train" in data.splits and split != "train" else None
    return compare(before, after, *others, training=training, confidence_level=confidence_level, seed=seed)


def _known(name: str, retriever: Retrieving | str) -> Retrieving | str:
    if isinstance(retriever, str) and retriever.lower() != "bm25":
        raise ValueError(
            f"{name!r} is the string {retriever!r}. Pass the model, et.load_model({retriever!r}), or 'bm25'."
        )
    return retriever
