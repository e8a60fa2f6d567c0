"""Weighted averages of a base and a tuned model, which keep most of what both can do."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from embedtune.bounds import share
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.statistics import standard_error
from embedtune.retrieval.fingerprint import vector_settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation

logger: logging.Logger = logging.getLogger(__name__)

ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True, eq=False)
class Merge:
    """The result of `merge_with_base`.

    Attributes:
        model: The merged model.
        alpha: The weight of the tuned model.
        evaluations: The result on the dev split, by alpha; empty if alpha was given.
    """

    model: SentenceTransformer
    alpha: float
    evaluations: Mapping[float, Evaluation]

    def __repr__(self) -> str:
        lines = [f"Merge: alpha {self.alpha:g}, 0 is the base model and 1 the tuned one"]
        for alpha, found in self.evaluations.items():
            lines.append(
                f"  {alpha:<5g} {found.primary_metric} {found.metrics[found.primary_metric]:.3f} on {found.split}"
            )
        return "\n".join(lines)


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

    A merged model forgets less, and retrieves unseen documents often as well or better (Wortsman et al., "Robust
    fine-tuning of zero-shot models", 2022; "LM-Cocktail", Xiao et al., 2023). ``"auto"`` evaluates 0, 0.1, ..., 1 on the dev
    split, and takes the smallest alpha whose nDCG is within one standard error of the best (the one-standard-error rule:
    Breiman et al., "Classification and Regression Trees", 1984).

    Args:
        tuned: The model after training. It does not change. A LoRA must be merged: save the model and load it again.
        base: The model before training.
        alpha: Weight of the tuned model, from 0 to 1, or ``"auto"``.
        data: The dataset whose split chooses alpha; only needed for ``"auto"``.
        split: The split that chooses alpha. Never use the test split.
        batch_size: Texts per batch of encoding.

    Returns:
        The merged model, its alpha, and the results that chose it.

    Raises:
        ValueError: If the architectures differ, a LoRA is not merged, or alpha or data are missing or wrong.

    Example:
        >>> import embedtune as et
        >>> base, tuned = et.load_model("minilm", device="cpu"), et.load_model("minilm", device="cpu")
        >>> et.merge_with_base(tuned, base, alpha=0.5).alpha
        0.5
    """
    _check_alike(tuned, base)
    merged = copy.deepcopy(tuned)
    if alpha != "auto":
        _interpolate(merged, tuned, base, share("alpha", alpha))
        return Merge(merged, alpha, {})
    if data is None:
        raise ValueError("alpha='auto' needs data, whose dev split chooses alpha. Pass data, or a number as alpha.")
    largest = len(data.corpus_texts)
    evaluator = TopKEvaluator(data, split, k=[k for k in (1, 3, 5, 10) if k <= largest], batch_size=batch_size)
    evaluations = {}
    for candidate in ALPHAS:
        _interpolate(merged, tuned, base, candidate)
        evaluations[candidate] = evaluator.evaluate(merged, name=f"alpha={candidate}")
    chosen = smallest_within_one_error(evaluations)
    if chosen == 0:
        logger.warning(
            "The base model is as good on the split %r as the tuned one, so the merged model equals the base model (alpha=0).",
            split,
        )
    _interpolate(merged, tuned, base, chosen)
    return Merge(merged, chosen, evaluations)


def smallest_within_one_error(evaluations: Mapping[float, Evaluation]) -> float:
    """Return the smallest alpha whose primary metric is within one paired standard error of the best."""
    values = {alpha: result.per_query_metrics[result.primary_metric] for alpha, result in evaluations.items()}
    best = max(values, key=lambda alpha: (values[alpha].mean(), -alpha))
    clusters = evaluations[best].clusters
    for alpha in sorted(values):
        lost = values[best] - values[alpha]
        if lost.mean() <= standard_error(lost[:, None], clusters)[0]:
            return alpha
    return best


def _check_alike(tuned: SentenceTransformer, base: SentenceTransformer) -> None:
    """Raise if the models differ in anything but the values of their weights."""
    for name, model in (("tuned", tuned), ("base", base)):
        if isinstance(model, str):
            raise TypeError(f"{name} is the name {model!r}, not a model. Pass et.load_model({model!r}).")
    ours, theirs = tuned.state_dict(), base.state_dict()
    for name, weights in (("tuned", ours), ("base", theirs)):
        if any("lora_" in key for key in weights):
            raise ValueError(
                f"The {name} model has a LoRA that is not merged. Save the model, which merges it, and load it again."
            )
    if different := sorted(ours.keys() ^ theirs.keys()):
        raise ValueError(
            f"The architectures differ: {len(different)} weights are in only one of the models, such as {different[0]!r}."
        )
    for name, weight in ours.items():
        if weight.shape != theirs[name].shape:
            raise ValueError(
                f"The architectures differ: {name!r} has the shapes {tuple(weight.shape)} and {tuple(theirs[name].shape)}."
            )
        if not weight.is_floating_point() and not torch.equal(weight.cpu(), theirs[name].cpu()):
            raise ValueError(f"The models cannot be averaged: {name!r} holds integers that differ.")
    if vector_settings(tuned)["modules"] != vector_settings(base)["modules"]:
        raise ValueError(
            "The models cannot be averaged, because their modules, configurations or tokenizers differ. Pass the base model that "
            "the tuned one was trained from."
        )


@torch.no_grad()
def _interpolate(
    merged: SentenceTransformer, tuned: SentenceTransformer, base: SentenceTransformer, alpha: float
) -> None:
    """Fill ``merged`` one tensor at a time. Tied weights are written twice, with the same values."""
    ours, theirs = tuned.state_dict(), base.state_dict()
    for name, weight in merged.state_dict().items():
        if weight.is_floating_point():
            start, end = (weights[name].to(weight.device, torch.float32) for weights in (theirs, ours))
            weight.copy_(torch.lerp(start, end, alpha))
