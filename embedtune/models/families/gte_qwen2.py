"""gte-Qwen2-1.5B-instruct and -7B-instruct on transformers' own Qwen2Model, whose attention config.json decides."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from sentence_transformers.sentence_transformer.modules import Pooling

from embedtune.models.export import TunableModel
from embedtune.models.repository import check_weights, quiet_transformers, require_transformers

Attention = Literal["bidirectional", "causal"]

LICENCE = "apache-2.0"  # says its card; a copy of the folder may come without
_BY_HIDDEN_SIZE = {1536: "Alibaba-NLP/gte-Qwen2-1.5B-instruct", 3584: "Alibaba-NLP/gte-Qwen2-7B-instruct"}


def is_gte_qwen2(name: str, config: dict[str, Any]) -> bool:
    """Say whether a repository is one of gte-Qwen2, by its configuration and, for a copy without code, its name.

    A model that was saved on the native ``Qwen2Model`` is not: its files say all that is needed.
    """
    if config.get("model_type") != "qwen2" or config.get("architectures") == ["Qwen2Model"]:
        return False
    code = (config.get("auto_map") or {}).get("AutoModel", "")
    return code.endswith("modeling_qwen.Qwen2Model") or re.search(r"gte[-_]qwen2", name, re.IGNORECASE) is not None


def load_gte_qwen2(name: str, *, attention: Attention | None, revision: str | None, **options: Any) -> TunableModel:
    """Load gte-Qwen2 as its own code would, without running it.

    Args:
        name: A folder, or the name on the Hub.
        attention: ``"bidirectional"``, the default and what its card says, or ``"causal"``.
        revision: On the Hub.
        **options: For ``SentenceTransformer``.
    """
    if attention is not None and attention not in get_args(Attention):
        raise ValueError(f"attention={attention!r} is none of {get_args(Attention)}.")
    require_transformers("5.2", reason="older ones ignore is_causal and give the vectors of another model")
    check_weights(name, revision=revision)
    with quiet_transformers():
        # Its tokenizer appends the end-of-text token in Python code; this option bakes it into tokenizer.json.
        model = TunableModel(name, revision=revision, processor_kwargs={"add_eos_token": True}, **options)
    _check_pooling(model, name)
    model.config.is_causal = attention == "causal"
    _forget_remote_code(model)
    if original := _BY_HIDDEN_SIZE.get(model.config.hidden_size):  # a folder's name says nothing, in a model card
        model.model_card_data.base_model = original
        model.model_card_data.license = LICENCE
    return model


def _check_pooling(model: TunableModel, name: str) -> None:
    modes = [module.pooling_mode for module in model.children() if isinstance(module, Pooling)]
    if modes != ["lasttoken"]:
        raise ValueError(
            f"{name!r} pools by {modes}, but gte-Qwen2 is read from the last token. Are modules.json and 1_Pooling/config.json "
            "those of Alibaba-NLP/gte-Qwen2? If it is another model on their code, it cannot be loaded without that code."
        )


def _forget_remote_code(model: TunableModel) -> None:
    """Drop the pointers to code, which would not be there in a saved model, and would append a second end token."""
    for holder in (model.config, model.tokenizer):
        holder.__dict__.pop("auto_map", None)
    model.tokenizer.init_kwargs.pop("auto_map", None)
