"""check_model: compare what a model does with what it declares, and a saved model with the one in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from embedtune.errors import refuse_name
from embedtune.models.lora import transformers_of
from embedtune.models.repository import quiet_transformers
from embedtune.storage import temporary_folder
from embedtune.tables import html_table

logger: logging.Logger = logging.getLogger(__name__)

_TEXTS = ["The pump restarts after both buttons are held for five seconds.", "pump", "How long must it rest?"]

# Relative differences: rounding stays below these, a wrong mask or position is above a tenth.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_RELOAD_TOLERANCE = _TOLERANCE | {torch.float32: 1e-5}

_ENDLESS = 1_000_000  # tokens; tokenizers without a limit report a huge number

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Check:
    """One property: whether it holds, what was found, and how to fix it."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


@dataclass(frozen=True, repr=False)
class ModelReport:
    """The result of `check_model`; prints as a table.

    Attributes:
        checks: All checks, in order.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every property holds."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The properties that do not hold."""
        return tuple(check for check in self.checks if not check.ok)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"{'ok  ' if c.ok else 'FAIL'}  {c.name:<{width}}  {c.found}" for c in self.checks]
        remedies = [f"{c.name}: {c.remedy}" for c in self.failures]
        return "\n".join([*lines, *([""] if remedies else []), *remedies])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [("ok" if c.ok else "FAIL", c.name, c.found, "" if c.ok else c.remedy) for c in self.checks]
        return html_table(["", "check", "found", "remedy"], rows, texts=True)

    def raise_if_failed(self) -> None:
        """Raise a ``ValueError`` with the report if a check failed."""
        if not self.ok:
            raise ValueError(f"The model fails its check:\n{self}")


def check_model(model: SentenceTransformer, *, folder: str | Path | None = None, reload: bool = True) -> ModelReport:
    """Check a model for faults that raise no error.

    It checks attention as declared (causal or bidirectional), the same embedding alone, in a batch and with padding on either
    side, one end token, pooling and prompts as declared, truncation, and that plain ``SentenceTransformer`` computes the same
    embeddings from the saved folder. `load_model` runs it without ``reload``, `EmbeddingTrainer.save_model` and `push_to_hub`
    with the folder they wrote.

    Args:
        model: From `load_model`, trained, or any SentenceTransformer.
        folder: Where the model was saved. By default it is saved to a temporary folder, which needs its size in disk space.
        reload: Compare the saved model with the one in memory, which takes memory for a second copy.

    Example:
        >>> from embedtune import load_model
        >>> check_model(load_model("minilm", device="cpu")).ok
        True
    """
    refuse_name(model)
    declared = getattr(model, "declared", None) or declare(model)
    with _evaluating(model):
        checks = [
            *_attention(model, declared),
            _batching(model),
            *_padding(model),
            *_end_token(model, declared),
            _pooling(model, declared),
            *_truncation(model),
            *_prompts(model, declared),
            *([_reloading(model, folder)] if reload else []),
        ]
    return ModelReport(tuple(checks))


def declare(model: SentenceTransformer) -> dict[str, Any]:
    """Return what a model declares about itself, for `check_model` to compare later."""
    causal = getattr(model.config, "is_causal", None)
    return {
        "attention": None if causal is None else "causal" if causal else "bidirectional",
        "pooling": _pooling_modes(model),
        "end_token": {"lasttoken"} == set(_pooling_modes(model)) and _ends(model, "pump") == 1,
        "prompts": {name: text for name, text in model.prompts.items() if text},
    }


def _attention(model: SentenceTransformer, declared: dict[str, Any]) -> Iterator[Check]:
    for route, part in transformers_of(model):
        found = "bidirectional" if _last_token_reaches_first(part.model) else "causal"
        wanted = declared["attention"]
        yield Check(
            f"attention {route}".rstrip(),
            wanted in (None, found),
            found if wanted in (None, found) else f"{found}, but declared {wanted}",
            f"Set model.config.is_causal = {wanted == 'causal'}, or load the model again with load_model; transformers >= 5.2.",
        )


def _last_token_reaches_first(backbone: Any) -> bool:
    """Return whether the first hidden state changes with the last token."""
    first = torch.tensor([[5, 6, 7, 8, 9]], device=backbone.device)
    second = first.clone()
    second[0, -1] = 10
    with torch.no_grad():
        states = [backbone(input_ids=ids, attention_mask=torch.ones_like(ids))[0][:, 0] for ids in (first, second)]
    return bool((states[0] - states[1]).abs().max() > 0)


def _batching(model: SentenceTransformer) -> Check:
    difference = _distance(_vectors(model, _TEXTS), np.concatenate([_vectors(model, [text]) for text in _TEXTS]))
    limit = _limit(model, _TOLERANCE)
    return Check(
        "batch = single",
        difference <= limit,
        f"differ by {difference:.1e}",
        f"More than {limit:.0e}: padding changes the embeddings. Try another attn_implementation ('sdpa' or 'eager').",
    )


def _padding(model: SentenceTransformer) -> Iterator[Check]:
    tokenizers = {id(part.tokenizer): part.tokenizer for _, part in transformers_of(model)}.values()
    if not tokenizers or not hasattr(model.config, "rope_parameters"):
        return  # absolute positions count from the left, so these models do not support left padding
    vectors = {}
    sides = [tokenizer.padding_side for tokenizer in tokenizers]
    try:
        for side in ("left", "right"):
            for tokenizer in tokenizers:
                tokenizer.padding_side = side
            vectors[side] = _vectors(model, _TEXTS)
    finally:
        for tokenizer, side in zip(tokenizers, sides, strict=True):
            tokenizer.padding_side = side
    difference, limit = _distance(vectors["left"], vectors["right"]), _limit(model, _TOLERANCE)
    yield Check(
        "left = right padding",
        difference <= limit,
        f"differ by {difference:.1e}",
        f"More than {limit:.0e}: pooling or positions depend on the side of the padding. Use Pooling('lasttoken') or 'mean'.",
    )


def _end_token(model: SentenceTransformer, declared: dict[str, Any]) -> Iterator[Check]:
    if "lasttoken" not in _pooling_modes(model) and not declared["end_token"]:
        return
    count = _ends(model, "pump")
    last = int(model.preprocess(["pump"])["input_ids"][0, -1])
    special = _is_special(model.tokenizer, last)
    yield Check(
        "end token",
        special and (count == 1 or (not declared["end_token"] and count == 0)),
        f"{count} at the end of a text",
        "Pooling takes the last token, which must be the one end-of-text token. Load the model again with load_model, and do "
        "not append the token yourself. If its repository lost the token, set add_eos_token in tokenizer_config.json to true.",
    )


def _pooling(model: SentenceTransformer, declared: dict[str, Any]) -> Check:
    found, wanted = _pooling_modes(model), declared["pooling"]
    return Check(
        "pooling",
        found == wanted,
        f"{found}" if found == wanted else f"{found}, but declared {wanted}",
        f"Build the model with Pooling(pooling_mode={(wanted or ['mean'])[0]!r}), or load it again with load_model.",
    )


def _truncation(model: SentenceTransformer) -> Iterator[Check]:
    limit = model.max_seq_length
    if limit is None or limit > _ENDLESS or not any(True for _ in transformers_of(model)):
        return
    longest = model.preprocess(["pump " * (limit + 10)])["input_ids"]
    last = model.preprocess(["pump"])["input_ids"][0, -1]
    # Without an end token the last token belongs to the text and differs.
    keeps_end = bool(longest[0, -1] == last) or int(last) not in model.tokenizer.all_special_ids
    yield Check(
        "truncation",
        longest.shape[1] <= limit and keeps_end,
        f"{longest.shape[1]} tokens of at most {limit}" + ("" if keeps_end else ", and the end token is cut off"),
        "Set model.max_seq_length, and let a post-processor in tokenizer.json append the special tokens.",
    )


def _prompts(model: SentenceTransformer, declared: dict[str, Any]) -> Iterator[Check]:
    lost = [name for name in declared["prompts"] if not model.prompts.get(name)]
    yield Check(
        "prompts",
        not lost,
        f"lost: {lost}"
        if lost
        else ", ".join(f"{name}={text!r}" for name, text in model.prompts.items() if text) or "none",
        f"Set model.prompts to {declared['prompts']!r}: without them embeddings differ from those in training.",
    )


def _reloading(model: SentenceTransformer, folder: str | Path | None) -> Check:
    name = "saved = in memory"
    with temporary_folder("check") as temporary:
        if folder is None:
            model.save_pretrained(str(temporary), create_model_card=False)
        place = Path(folder or temporary)
        adapters = [path for path in place.glob("**/adapter_config.json") if "adapters" not in path.parts[:-1]]
        if adapters:
            return Check(name, False, f"{adapters[0].name} instead of merged weights", _SAVE_AGAIN)
        try:
            with quiet_transformers():
                saved = SentenceTransformer(str(place), device=str(model.device), trust_remote_code=False)
        except Exception as error:  # any error is a failed check
            return Check(name, False, f"cannot be loaded: {type(error).__name__}: {error}", _SAVE_AGAIN)
        return same_vectors(name, model, saved)


_SAVE_AGAIN = (
    "Save with EmbeddingTrainer.save_model, or save_pretrained of a model from load_model: they merge adapters and write plain "
    "modules."
)


def same_vectors(name: str, model: SentenceTransformer, saved: SentenceTransformer) -> Check:
    """Compare the prompts of two models, and their embeddings of three texts by each encode method."""
    if {k: v for k, v in saved.prompts.items() if v} != {k: v for k, v in model.prompts.items() if v}:
        return Check(name, False, f"prompts {saved.prompts!r} instead of {model.prompts!r}", _SAVE_AGAIN)
    ways = ("encode", "encode_query", "encode_document")
    shapes = {getattr(saved, way)(_TEXTS[0]).shape == getattr(model, way)(_TEXTS[0]).shape for way in ways}
    if shapes != {True}:
        return Check(name, False, "embeddings with other dimensions", _SAVE_AGAIN)
    difference = max(_distance(getattr(model, way)(_TEXTS), getattr(saved, way)(_TEXTS)) for way in ways)
    return Check(name, difference <= _limit(model, _RELOAD_TOLERANCE), f"differ by {difference:.1e}", _SAVE_AGAIN)


def _vectors(model: SentenceTransformer, texts: list[str]) -> Vectors:
    return np.asarray(model.encode(texts, convert_to_tensor=True).float().cpu())


def _distance(first: Any, second: Any) -> float:
    """Return the largest absolute difference, relative to the mean norm."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return float(np.abs(first - second).max() / max(float(np.linalg.norm(first, axis=-1).mean()), 1e-12))


def _limit(model: SentenceTransformer, tolerance: dict[torch.dtype, float]) -> float:
    return tolerance.get(model.dtype or torch.float32, 5e-2)


def _pooling_modes(model: SentenceTransformer) -> list[str]:
    modes = [module.pooling_mode for module in model.modules() if isinstance(module, Pooling)]
    return [mode if isinstance(mode, str) else "+".join(mode) for mode in modes]


def _ends(model: SentenceTransformer, text: str) -> int:
    """Return the number of end tokens at the end of a text."""
    end = getattr(model.tokenizer, "eos_token_id", None)
    ids = model.tokenizer(text)["input_ids"]
    return next((n for n, token in enumerate(reversed(ids)) if token != end), len(ids))


def _is_special(tokenizer: Any, token: int) -> bool:
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(token)
    return token in tokenizer.all_special_ids or bool(added is not None and added.special)


@contextmanager
def _evaluating(model: SentenceTransformer) -> Iterator[None]:
    """Switch off dropout, and the autocast that accelerate leaves around a trained model's ``forward``."""
    training, autocast = model.training, model.__dict__.pop("forward", None)
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        if autocast is not None:
            model.forward = autocast
