"""jina-embeddings-v3 on transformers' own JinaEmbeddingsV3Model: one base in memory, one LoRA for each side."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

from huggingface_hub import snapshot_download
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from embedtune.models.export import TunableModel
from embedtune.models.families.jina_v3_original import convert_jina_v3
from embedtune.models.lora import adapter_folder, add_lora, load_adapter, require_peft, train_only, transformers_of
from embedtune.models.repository import check_weights, quiet_transformers, read_json, require_transformers

if TYPE_CHECKING:
    from peft import LoraConfig

Mode = Literal["asymmetric", "shared"]
Train = Literal["adapters", "lora", "full"]

LICENCE = "cc-by-nc-4.0"
BASE_MODEL = "jinaai/jina-embeddings-v3"
TASK = "default"  # the name, in peft, of the adapter that comes with the repository
_MAX_SEQ_LENGTH = 8192
_SIDES = {"query": "retrieval.query", "document": "retrieval.passage"}
_PROMPTS = {
    "query": "Represent the query for retrieving evidence documents: ",
    "document": "Represent the document for retrieval: ",
}
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]


def is_jina_v3(name: str, config: dict[str, Any]) -> bool:
    """Say whether a repository has jina-embeddings-v3 with its adapters, in the original or in the native layout.

    A model saved by embedtune has no ``lora_adaptations`` left, and needs nothing special.
    """
    code = (config.get("auto_map") or {}).get("AutoModel", "")
    named = re.fullmatch(r"jinaai/jina-embeddings-v3(-hf)?", name, re.IGNORECASE) is not None
    return named or "lora_adaptations" in config or code.endswith("modeling_lora.XLMRobertaLoRA")


def load_jina_v3(
    name: str,
    *,
    mode: Mode | None,
    train: Train | None,
    lora: bool | LoraConfig | str | Path | None,
    revision: str | None,
    dtype: str,
    device: str | None,
) -> TunableModel:
    """Load jina-embeddings-v3 for retrieval, without running its code.

    Args:
        name: A folder, or the name on the Hub.
        mode: ``"asymmetric"``, the default: a query adapter and a document adapter on one base. ``"shared"``: the document
            adapter for both sides, half the size when saved.
        train: ``"adapters"``, the default: the repository's own adapters; ``"lora"``: a further one on top of them;
            ``"full"``: the base as well.
        lora: The further adapter's configuration with ``train="lora"``; or the folder ``adapters`` of a saved model.
        revision: On the Hub.
        dtype: Of the base.
        device: For instance ``"cuda"``.
    """
    mode, train = _check_options(mode, train, lora)
    require_peft("jina-embeddings-v3")
    require_transformers("5.4", reason="older ones have no JinaEmbeddingsV3Model")
    with _native_folder(name, revision) as folder:
        check_weights(str(folder))
        with quiet_transformers():
            model = _build(folder, mode, dtype, device)
            _load_task_adapters(model, folder, lora if train == "adapters" else None)
    if train == "lora":
        add_lora(model, True if lora is None else lora)
    else:
        train_only(model, ".lora_" if train == "adapters" else "")
    model.model_card_data.base_model = BASE_MODEL
    return model


def _check_options(mode: Any, train: Any, lora: Any) -> tuple[Mode, Train]:
    mode, train = (
        mode or "asymmetric",
        train or ("adapters" if lora is None or isinstance(lora, (str, Path)) else "lora"),
    )
    for option, value, known in (("mode", mode, get_args(Mode)), ("train", train, get_args(Train))):
        if value not in known:
            raise ValueError(f"{option}={value!r} is none of {known}.")
    if lora is not None and (train == "full" or (train == "adapters" and not isinstance(lora, (str, Path)))):
        raise ValueError(
            f"lora={lora!r} adds an adapter, but train={train!r}. Use train='lora', or leave one of them out."
        )
    return mode, train


@contextmanager
def _native_folder(name: str, revision: str | None) -> Iterator[Path]:
    """Give a folder in the layout of jina-embeddings-v3-hf."""
    folder = (
        Path(name) if Path(name).is_dir() else Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    )
    if read_json(str(folder), "config.json").get("model_type") == "jina_embeddings_v3":
        yield folder
    else:
        with TemporaryDirectory(prefix="jina-embeddings-v3-") as temporary:
            yield convert_jina_v3(folder, Path(temporary, "native"))


def _build(folder: Path, mode: Mode, dtype: str, device: str | None) -> TunableModel:
    first = Transformer(str(folder), model_kwargs={"dtype": dtype, "use_safetensors": True})
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
    """Copy the modules, and share every tensor and the tokenizer."""
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
                f"The adapter {source.name!r} is missing from the repository, and without it these are not jina-embeddings-v3's "
                "vectors. Take 'jinaai/jina-embeddings-v3-hf', or download the folder with its subfolders. For a model of "
                "your own without adapters, remove lora_adaptations from its config.json."
            )
        load_adapter(part.model, source, name=TASK)
