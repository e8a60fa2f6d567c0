"""Forgetting: does a model that was tuned to a narrow domain still find general knowledge?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedtune.bounds import finite
from embedtune.dataset import RetrievalDataset, build_dataset
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.record import Forgetting
from embedtune.evaluation.verdict import compare
from embedtune.sample.general import load_general

if TYPE_CHECKING:
    from embedtune.retrieval.retrieve import Retrieving


def check_forgetting(
    base: Retrieving,
    tuned: Retrieving,
    *,
    data: RetrievalDataset | None = None,
    split: str = "test",
    margin: float = 0.05,
    batch_size: int = 32,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Forgetting:
    """Compare a tuned model with its base on questions from outside its domain.

    Args:
        base: The model before training.
        tuned: The model after training.
        data: General questions and passages: by default 185 sentences of everyday knowledge that come with embedtune.
        split: The split whose questions are asked.
        margin: The largest acceptable loss of nDCG.
        batch_size: How many texts to encode at once.
        confidence_level: The level of the interval.
        seed: Seed of the resamples.

    Raises:
        ValueError: If ``margin`` is not positive, or the split is unknown.

    Example:
        >>> import embedtune as et
        >>> model = et.load_model("minilm", device="cpu")
        >>> et.check_forgetting(model, model).decision
        'remembers'
    """
    if not 0 < finite("margin", margin) <= 1:
        raise ValueError(
            f"margin={margin} must be positive, and at most 1: no number of questions can exclude every loss."
        )
    data = data if data is not None else general_data()
    largest = len(data.corpus_texts)
    evaluator = TopKEvaluator(data, split, k=[k for k in (1, 3, 5, 10) if k <= largest], batch_size=batch_size)
    before, after = evaluator.evaluate(base, name="base"), evaluator.evaluate(tuned, name="tuned")
    return Forgetting(compare(before, after, confidence_level=confidence_level, seed=seed), margin)


def general_data() -> RetrievalDataset:
    """Return the general questions that come with embedtune, all in the split ``"test"``."""
    return build_dataset(*load_general(), split_by="given")
