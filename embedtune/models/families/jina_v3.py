"""jina-embeddings-v3 on transformers' JinaEmbeddingsV3Model: one base in memory with a LoRA for each side."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from huggingface_hub import snapshot_download
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from embedtune.models.export import TunableModel
from embedtune.models.families.jina_v3_original import convert_jina_v3
from embedtune.models.finish import complete, finish
from embedtune.models.gate import check_family, check_weights
from embedtune.models.lora import adapter_folder, add_lora, load_adapter, require_peft, train_only, transformers_of
from embedtune.models.quantized import NF4
from embedtune.models.repository import quiet_transformers, read_json, require_transformers, resolve_name
from embedtune.storage import temporary_folder

if TYPE_CHECKING:
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer

Mode = Literal["asymmetric", "shared"]
Train = Literal["adapters", "lora", "full"]

BASE_MODEL = "jinaai/jina-embeddings-v3"
TASK = "default"  # peft's name for the repository's own adapter
_MAX_SEQ_LENGTH = 8192
_SIDES = {"query": "retrieval.query", "document": "retrieval.passage"}
_PROMPTS = {
    "query": "Represent the query for retrieving evidence documents: ",
    "document": "Represent the document for retrieval: ",
}
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]


def is_jina_v3(name: str, config: dict[str, Any]) -> bool:
    """Return whether a repository is jina-embeddings-v3 with its adapters, in the original or the native layout.

    A model saved by embedtune has its adapters merged and is not: plain sentence-transformers loads it as it is.
    """
    code = (config.get("auto_map") or {}).get("AutoModel", "")
    named = re.fullmatch(r"jinaai/jina-embeddings-v3(-hf)?", name, re.IGNORECASE) is not None
    return named or "lora_adaptations" in config or code.endswith("modeling_lora.XLMRobertaLoRA")


def load_jina_v3(
    model: str | Path,
    *,
    mode: Mode = "asymmetric",
    train: Train | None = None,
    revision: str | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    truncate_dim: int | None = None,
    lora: bool | LoraConfig | str | Path = False,
    check: bool = True,
) -> SentenceTransformer:
    """Load jina-embeddings-v3 for retrieval, without running its code.

    The licence is CC BY-NC 4.0, for this model and everything derived from it. Load what you saved afterwards for use with
    `load_model`; to continue training, load the repository again with ``lora="<saved model>/adapters"``.

    Args:
        model: ``"jinaai/jina-embeddings-v3"``, ``"jinaai/jina-embeddings-v3-hf"``, or a folder with a copy.
        mode: ``"asymmetric"``: a query adapter and a document adapter on one base. ``"shared"``: the document adapter for
            both, half the size when saved.
        train: ``"adapters"``: the repository's own adapters. ``"lora"``: a larger one on top of them. ``"full"``: all
            weights. By default ``"lora"`` if ``lora`` is True or a ``LoraConfig``, else ``"adapters"``.
        revision: As for `load_model`, like all further arguments.
        max_seq_length: At most 8192 tokens, the default.
        device: See `load_model`.
        dtype: See `load_model`.
        truncate_dim: See `load_model`.
        lora: With ``train="lora"``, True or a ``peft.LoraConfig``. With either, the folder ``adapters`` of a saved model.
        check: See `load_model`.

    Raises:
        OptionalDependencyError: If peft is not installed.
        ImportError: If transformers is older than 5.4.
        ValueError: If the repository is not jina-embeddings-v3, an adapter is missing, or the model fails the check.

    Example:
        >>> model = load_jina_v3("jinaai/jina-embeddings-v3", mode="shared", train="full")  # doctest: +SKIP
    """
    train = train or ("lora" if lora is not False and not isinstance(lora, (str, Path)) else "adapters")
    _check_options(mode, train, lora)
    if dtype == NF4:
        raise ValueError(
            f"dtype={NF4!r} does not apply to jina-embeddings-v3, which has adapters already. Use 'bfloat16'."
        )
    require_peft("jina-embeddings-v3")
    require_transformers("5.4", reason="older versions have no JinaEmbeddingsV3Model")
    name = resolve_name(model)
    config = read_json(name, "config.json", revision=revision)
    check_family(name, config, "jina-embeddings-v3", recognised=is_jina_v3(name, config))
    with _native_folder(name, revision) as folder:
        check_weights(str(folder))
        with quiet_transformers():
            loaded = _build(folder, mode, dtype, device)
            _load_task_adapters(loaded, folder, lora if train == "adapters" and lora is not False else None)
    if train == "lora":
        add_lora(loaded, True if lora is False else lora)
    else:
        train_only(loaded, ".lora_" if train == "adapters" else "")
    loaded.model_card_data.base_model = BASE_MODEL
    complete(loaded, name, revision=revision)
    return finish(loaded, max_seq_length=max_seq_length, truncate_dim=truncate_dim, check=check)


def _check_options(mode: str, train: str, lora: Any) -> None:
    for option, value, known in (("mode", mode, get_args(Mode)), ("train", train, get_args(Train))):
        if value not in known:
            raise ValueError(f"{option}={value!r} must be one of {known}.")
    if lora is not False and (train == "full" or (train == "adapters" and not isinstance(lora, (str, Path)))):
        raise ValueError(
            f"lora={lora!r} adds an adapter, which train={train!r} does not use. Pass only one of the two."
        )


@contextmanager
def _native_folder(name: str, revision: str | None) -> Iterator[Path]:
    """Yield a folder in the layout of jina-embeddings-v3-hf."""
    folder = (
        Path(name) if Path(name).is_dir() else Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    )
    if read_json(str(folder), "config.json").get("model_type") == "jina_embeddings_v3":
        yield folder
    else:
        with temporary_folder("jina-v3") as temporary:
            yield convert_jina_v3(folder, temporary / "native")


def _build(folder: Path, mode: Mode, dtype: str, device: str | None) -> TunableModel:
    no_code = {"trust_remote_code": False}
    first = Transformer(
        str(folder),
        model_kwargs={"dtype": dtype, "use_safetensors": True} | no_code,
        processor_kwargs=dict(no_code),
        config_kwargs=dict(no_code),
    )
    first.max_seq_length = min(_MAX_SEQ_LENGTH, first.config.max_position_embeddings)
    for key in ("lora_adaptations", "task_instructions", "auto_map"):
        first.config.__dict__.pop(key, None)
    start = Router({"query": [first], "document": [_tied(first)]}, default_route="document")
    return TunableModel(
        modules=[
            start if mode == "asymmetric" else first,
            Pooling(first.get_embedding_dimension(), pooling_mode="mean"),
            Normalize(),
        ],
        prompts=_prompts(str(folder)),
        default_prompt_name="document",
        similarity_fn_name="cosine",
        device=device,
    )


def _tied(module: Transformer) -> Transformer:
    """Copy the modules but share every tensor and the tokenizer."""
    shared: dict[int, Any] = {id(t): t for t in itertools.chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared | {id(module.processor): module.processor})


def _prompts(folder: str) -> dict[str, str]:
    own = read_json(folder, "config_sentence_transformers.json").get("prompts") or {}
    own = (read_json(folder, "config.json").get("task_instructions") or {}) | own
    return {side: own.get(task) or _PROMPTS[side] for side, task in _SIDES.items()}


def _load_task_adapters(model: TunableModel, folder: Path, saved: Any) -> None:
    """Load each side's adapter, from the repository or from the folder ``adapters`` of a saved model."""
    for route, part in transformers_of(model):
        source = folder / _SIDES[route or "document"].replace(".", "_")
        if saved is not None:
            source = adapter_folder(saved, route, TASK)
        elif not (source / "adapter_config.json").is_file():
            raise ValueError(
                f"The adapter {source.name!r} is missing from the repository, so the embeddings would not be jina-embeddings-v3's. "
                "Load 'jinaai/jina-embeddings-v3-hf', or download the folder with its subfolders. If the model is yours and has no "
                "adapters, remove lora_adaptations from its config.json and use load_model."
            )
        load_adapter(part.model, source, name=TASK)
