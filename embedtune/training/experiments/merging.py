"""Between the base and the tuned model: weights on the line from one to the other keep most of both."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.statistics import standard_error
from embedtune.retrieval.fingerprint import vector_settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation

logger = logging.getLogger(__name__)

ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True, eq=False)
class Merge:
    """What `merge_with_base` made.

    Attributes:
        model: The merged model.
        alpha: How much of it is the tuned model.
        evaluations: For each alpha that was tried the result on the dev split.
    """

    model: SentenceTransformer
    alpha: float
    evaluations: Mapping[float, Evaluation]


def merge_with_base(
    tuned: SentenceTransformer,
    base: SentenceTransformer,
    *,
    alpha: float | Literal["auto"] = "auto",
    data: RetrievalDataset | None = None,
    split: str = "dev",
    batch_size: int = 32,
) -> Merge:
    """Average the weights of a tuned model and its base: ``alpha * tuned + (1 - alpha) * base``.

    A model so merged forgets less, and on documents that training has not seen it often finds as much or more (Wortsman et
    al., "Robust fine-tuning of zero-shot models", 2022; "LM-Cocktail", Xiao et al., 2023). With ``"auto"`` the model of
    each tenth is evaluated on the dev split, and the smallest alpha is taken whose nDCG is within one standard error of the
    best (the one-standard-error rule: Breiman et al., "Classification and Regression Trees", 1984).

    Args:
        tuned: The model after training, which stays as it is. A LoRA must have been merged: save the model, and load it.
        base: The model before training.
        alpha: How much of the tuned model to take, from 0 to 1, or ``"auto"``.
        data: The dataset whose split chooses alpha; needed for ``"auto"`` alone. Never choose on the test split.
        split: The questions that choose alpha.
        batch_size: How many texts to encode at once.

    Raises:
        ValueError: If the two are not one architecture, a LoRA is not merged, or alpha or data are missing or wrong.

    Example:
        >>> import embedtune as et
        >>> base, tuned = et.load_model("minilm", device="cpu"), et.load_model("minilm", device="cpu")
        >>> et.merge_with_base(tuned, base, alpha=0.5).alpha
        0.5
    """
    _check_alike(tuned, base)
    merged = copy.deepcopy(tuned)
    if alpha != "auto":
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is out of range. Give a number from 0 (base) to 1 (tuned), or 'auto'.")
        _interpolate(merged, tuned, base, alpha)
        return Merge(merged, alpha, {})
    if data is None:
        raise ValueError("alpha='auto' is chosen on questions: give data, whose dev split is taken, or a number.")
    largest = len(data.corpus_texts)
    evaluator = TopKEvaluator(data, split, k=[k for k in (1, 3, 5, 10) if k <= largest], batch_size=batch_size)
    evaluations = {}
    for candidate in ALPHAS:
        _interpolate(merged, tuned, base, candidate)
        evaluations[candidate] = evaluator.evaluate(merged, name=f"alpha={candidate}")
    chosen = smallest_within_one_error(evaluations)
    if chosen == 0:
        logger.warning("The base model is as good on %r as the tuned one: what was merged is the base model.", split)
    _interpolate(merged, tuned, base, chosen)
    return Merge(merged, chosen, evaluations)


def smallest_within_one_error(evaluations: Mapping[float, Evaluation]) -> float:
    """Return the smallest key whose result is within one paired standard error of the best, by the primary metric."""
    values = {alpha: result.per_query_metrics[result.primary_metric] for alpha, result in evaluations.items()}
    best = max(values, key=lambda alpha: (values[alpha].mean(), -alpha))
    clusters = evaluations[best].clusters
    for alpha in sorted(values):
        lost = values[best] - values[alpha]
        if lost.mean() <= standard_error(lost[:, None], clusters)[0]:
            return alpha
    return best


def _check_alike(tuned: SentenceTransformer, base: SentenceTransformer) -> None:
    """Raise unless each weight of one model has its counterpart in the other."""
    for name, model in (("tuned", tuned), ("base", base)):
        if isinstance(model, str):
            raise TypeError(f"{name} is the name {model!r}. Give the model itself, et.load_model({model!r}).")
    ours, theirs = tuned.state_dict(), base.state_dict()
    for name, weights in (("tuned", ours), ("base", theirs)):
        if any("lora_" in key for key in weights):
            raise ValueError(
                f"The {name} model carries a LoRA beside its weights. Save it, which merges the LoRA, and load it again."
            )
    if different := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(
            f"The models are not one architecture: {different[0]!r} is in one of them alone ({len(different)} are)."
        )
    for name, weight in ours.items():
        if weight.shape != theirs[name].shape:
            raise ValueError(
                f"The models are not one architecture: {name!r} has the shapes {tuple(weight.shape)} and "
                f"{tuple(theirs[name].shape)}."
            )
        if not weight.is_floating_point() and not torch.equal(weight.cpu(), theirs[name].cpu()):
            raise ValueError(f"{name!r} holds whole numbers that differ, which cannot be averaged.")
    _check_settings(vector_settings(tuned), vector_settings(base))


def _check_settings(ours: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    for name in ("modules", "config", "tokenizer"):
        if ours[name] != theirs[name]:
            raise ValueError(f"The models differ in their {name}, so their weights mean different things.")


@torch.no_grad()
def _interpolate(
    merged: SentenceTransformer, tuned: SentenceTransformer, base: SentenceTransformer, alpha: float
) -> None:
    """Fill ``merged``, one tensor at a time; tied weights are written twice, with the same numbers."""
    ours, theirs = tuned.state_dict(), base.state_dict()
    for name, weight in merged.state_dict().items():
        if weight.is_floating_point():
            start, end = (weights[name].to(weight.device, torch.float32) for weights in (theirs, ours))
            weight.copy_(torch.lerp(start, end, alpha))
