"""The last steps of every loader: prompts, licence, lengths, LoRA and the check."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from torch import nn

from embedtune.bounds import whole
from embedtune.models.export import TunableModel
from embedtune.models.lora import add_lora
from embedtune.models.prompts import fill_prompts
from embedtune.models.repository import read_licence
from embedtune.models.selfcheck import check_model, declare

if TYPE_CHECKING:
    from pathlib import Path

    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

logger: logging.Logger = logging.getLogger(__name__)

_ENDLESS = 10**9  # tokenizers that have no limit say 10**30
_JINA_LICENCE = "cc-by-nc-4.0"


def complete(model: TunableModel, name: str, *, revision: str | None) -> None:
    """Add what the repository's other files say: known prompts and the licence."""
    fill_prompts(model, name)
    model.model_card_data.license = read_licence(name, revision=revision) or model.model_card_data.license
    if getattr(model.config, "model_type", None) == "jina_embeddings_v3":
        model.model_card_data.license = _JINA_LICENCE
        logger.warning(
            "jina-embeddings-v3 and every model derived from it are licensed under CC BY-NC 4.0, for non-commercial use only. "
            "Jina AI sells commercial licences. The model card will say so."
        )


def finish(
    model: SentenceTransformer,
    *,
    max_seq_length: int | None,
    truncate_dim: int | None,
    lora: bool | LoraConfig | str | Path = False,
    check: bool,
) -> SentenceTransformer:
    """Apply the settings, add the LoRA, and check the model against what it declares.

    Raises:
        ValueError: If a setting does not fit the model, or the model fails the check.
    """
    if max_seq_length is not None:
        _set_max_seq_length(model, max_seq_length)
    _require_positions(model)
    if truncate_dim is not None:
        _set_truncate_dim(model, truncate_dim)
    if lora is not False:
        add_lora(model, lora)
    if isinstance(model, TunableModel):
        model.declared = declare(model)
    if check and model.device.type != "meta":  # the meta device has no weights to check
        report = check_model(model, reload=False)
        if not report.ok:
            raise ValueError(f"The model fails its check:\n{report}\n\nTo load it anyway, pass check=False.")
    return model


def _set_max_seq_length(model: SentenceTransformer, max_seq_length: int) -> None:
    whole("max_seq_length", max_seq_length, at_least=None)
    if model.max_seq_length == math.inf:
        raise ValueError(
            f"max_seq_length={max_seq_length} does not apply to a static model, which reads texts of any length. Leave it out."
        )
    positions = num_positions(model)
    if positions is None:
        whole("max_seq_length", max_seq_length)
    elif not 0 < max_seq_length <= positions:
        raise ValueError(f"max_seq_length={max_seq_length} must be between 1 and {positions}, the model's positions.")
    model.max_seq_length = max_seq_length


def num_positions(model: SentenceTransformer) -> int | None:
    """Return how many tokens a model has positions for, or None if its configuration does not say."""
    known = [getattr(getattr(model, "config", None), "max_position_embeddings", None), *_learned_positions(model)]
    return min((one for one in known if isinstance(one, int)), default=None)


def _learned_positions(model: SentenceTransformer) -> list[int]:
    """Return the sizes of the tables of positions; a longer text ends in an index error.

    RoBERTa, MPNet and their kind count positions from the id of the padding token on, so that a table of 514 is for 512 tokens.
    """
    return [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]


def _require_positions(model: SentenceTransformer) -> None:
    """Raise a ``ValueError`` if a model would read more tokens than it has learned positions for."""
    positions, limit = min(_learned_positions(model), default=_ENDLESS), model.max_seq_length
    if limit is not None and positions < limit < _ENDLESS:
        raise ValueError(
            f"The model says max_seq_length={limit}, and has positions for {positions} tokens. Longer texts would fail: pass "
            f"max_seq_length={positions}."
        )


def _set_truncate_dim(model: SentenceTransformer, truncate_dim: int) -> None:
    whole("truncate_dim", truncate_dim, at_least=None)
    model.truncate_dim = None
    dimension = model.get_embedding_dimension()
    if not 0 < truncate_dim <= (dimension or truncate_dim):
        raise ValueError(f"truncate_dim={truncate_dim} must be between 1 and {dimension}, the model's dimensions.")
    model.truncate_dim = truncate_dim
