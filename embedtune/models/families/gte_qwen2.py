"""gte-Qwen2-1.5B-instruct and -7B-instruct on transformers' Qwen2Model, with the attention written into config.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sentence_transformers.sentence_transformer.modules import Pooling

from embedtune.models.export import TunableModel
from embedtune.models.finish import complete, finish
from embedtune.models.gate import check_family, check_weights
from embedtune.models.prompts import fill_prompts
from embedtune.models.quantized import weights_options
from embedtune.models.repository import quiet_transformers, read_json, require_transformers, resolve_name

if TYPE_CHECKING:
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

Attention = Literal["bidirectional", "causal"]

LICENCE = "apache-2.0"  # from the model card, which a copied folder may lack
_BY_HIDDEN_SIZE = {1536: "Alibaba-NLP/gte-Qwen2-1.5B-instruct", 3584: "Alibaba-NLP/gte-Qwen2-7B-instruct"}
_INSTRUCTION = re.compile(r"Instruct: .*(?=\nQuery:)", flags=re.DOTALL)


def is_gte_qwen2(name: str, config: dict[str, Any]) -> bool:
    """Return whether a repository is gte-Qwen2, by its configuration or, for a copy without code, by its name.

    A model saved on the native ``Qwen2Model`` is not: plain sentence-transformers loads it as it is.
    """
    if not _has_original_layout(config):
        return False
    code = (config.get("auto_map") or {}).get("AutoModel", "")
    return code.endswith("modeling_qwen.Qwen2Model") or re.search(r"gte[-_]qwen2", name, re.IGNORECASE) is not None


def _has_original_layout(config: dict[str, Any]) -> bool:
    return config.get("model_type") == "qwen2" and config.get("architectures") != ["Qwen2Model"]


def load_gte_qwen2(
    model: str | Path,
    *,
    attention: Attention = "bidirectional",
    task: str | None = None,
    revision: str | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    truncate_dim: int | None = None,
    lora: bool | LoraConfig | str | Path = False,
    check: bool = True,
) -> SentenceTransformer:
    r"""Load gte-Qwen2 with the embeddings of its own code, without running that code.

    Load what you saved afterwards with `load_model`: attention, prompts and the end token are in the files.

    Args:
        model: ``"Alibaba-NLP/gte-Qwen2-1.5B-instruct"``, ``"-7B-instruct"``, or a folder with a copy.
        attention: ``"bidirectional"``, as the model card says, or ``"causal"``.
        task: What the queries are for. Replaces the instruction in the query prompt, ``Instruct: {task}\nQuery: ``.
        revision: As for `load_model`, like all further arguments.
        max_seq_length: The tokenizer's own limit is 32768 tokens.
        device: See `load_model`.
        dtype: See `load_model`.
        truncate_dim: See `load_model`.
        lora: See `load_model`.
        check: See `load_model`.

    Raises:
        ImportError: If transformers is older than 5.2.
        ValueError: If the repository is not gte-Qwen2, weights are missing, or the model fails the check.

    Example:
        >>> model = load_gte_qwen2(
        ...     "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        ...     task="Given a question, find the page of the manual that answers it",
        ...     lora=True,
        ... )  # doctest: +SKIP
    """
    if attention not in get_args(Attention):
        raise ValueError(f"attention={attention!r} must be one of {get_args(Attention)}.")
    require_transformers("5.2", reason="older versions ignore is_causal and compute other embeddings")
    weights = weights_options(dtype, lora=lora, device=device)
    name = resolve_name(model)
    config = read_json(name, "config.json", revision=revision)
    check_family(name, config, "gte-Qwen2", recognised=_has_original_layout(config))
    check_weights(name, revision=revision)
    with quiet_transformers():
        # The repository's tokenizer appends the end-of-text token in Python; this option puts it into tokenizer.json.
        loaded = TunableModel(
            name,
            revision=revision,
            device=device,
            model_kwargs=weights,
            processor_kwargs={"add_eos_token": True},
            trust_remote_code=False,
        )
    _check_pooling(loaded, name)
    loaded.config.is_causal = attention == "causal"
    _forget_remote_code(loaded)
    if original := _BY_HIDDEN_SIZE.get(loaded.config.hidden_size):  # a folder's name means nothing in a model card
        loaded.model_card_data.base_model = original
        loaded.model_card_data.license = LICENCE
    complete(loaded, name, revision=revision)
    fill_prompts(loaded, "gte-Qwen2")
    if task is not None:
        _set_task(loaded, task)
    return finish(loaded, max_seq_length=max_seq_length, truncate_dim=truncate_dim, lora=lora, check=check)


def _set_task(model: TunableModel, task: str) -> None:
    prompt = model.prompts.get("query") or ""
    if not _INSTRUCTION.search(prompt):
        raise ValueError(
            f"task={task!r} does not fit the query prompt {prompt!r}, which has no 'Instruct: ...' line. Set "
            "model.prompts['query'] instead."
        )
    model.prompts["query"] = _INSTRUCTION.sub(lambda _: f"Instruct: {task}", prompt)


def _check_pooling(model: TunableModel, name: str) -> None:
    modes = [module.pooling_mode for module in model.children() if isinstance(module, Pooling)]
    if modes != ["lasttoken"]:
        raise ValueError(
            f"{name!r} uses pooling {modes}, but gte-Qwen2 uses ['lasttoken']. Copy modules.json and 1_Pooling/config.json from "
            "Alibaba-NLP/gte-Qwen2. Another model that needs gte-Qwen2's code cannot be loaded without it."
        )


def _forget_remote_code(model: TunableModel) -> None:
    """Drop the pointers to code, which a saved model does not have and which would append a second end token."""
    for holder in (model.config, model.tokenizer):
        holder.__dict__.pop("auto_map", None)
    model.tokenizer.init_kwargs.pop("auto_map", None)
