"""EmbeddingGemma 2: the text tower alone, without the towers for images and sounds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file

from embedtune.models.gate import check_files
from embedtune.storage import temporary_folder

BASE_MODEL = "google/embeddinggemma-2"

_TOWERS = re.compile(r"^(vision_tower|audio_tower|embed_vision|embed_audio)\.")
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OF_TOWERS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_MODALITIES = ("modality_config", "module_output_name", "processing_kwargs")


def is_embedding_gemma2(config: dict[str, Any]) -> bool:
    """Return whether a configuration is of EmbeddingGemma 2 with its towers, or of an extraction that kept them in it."""
    return config.get("model_type") == "embedding_gemma2"


@contextmanager
def text_tower(name: str, config: dict[str, Any], *, revision: str | None) -> Iterator[Path]:
    """Yield a folder with the text tower of a folder or repository: transformers' ``EmbeddingGemma2TextModel``.

    Raises:
        ValueError: If the weights are not whole files of safetensors.
    """
    files = check_files(name, "", revision)
    source = (
        Path(name) if Path(name).is_dir() else Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    )
    with temporary_folder("embeddinggemma-2") as temporary:
        folder = temporary / source.name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*", *_OF_TOWERS, ".*", "*.py"))
        inner = {"model_type": "embedding_gemma2_text"} | config["text_config"]
        inner["architectures"] = ["EmbeddingGemma2TextModel"]
        (folder / "config.json").write_text(json.dumps(inner), encoding="utf-8")
        _keep_text(folder / "sentence_bert_config.json")
        save_file(_tensors(files), folder / "model.safetensors", metadata={"format": "pt"})
        yield folder


def _keep_text(path: Path) -> None:
    """Let sentence-transformers find out again what the model reads."""
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({k: v for k, v in settings.items() if k not in _MODALITIES}), encoding="utf-8")


def _tensors(files: list[Path]) -> dict[str, Any]:
    """Read the tensors that do not belong to a tower, under the names that the text tower alone gives them."""
    tensors: dict[str, Any] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not _TOWERS.match(name)]  # noqa: SIM118  # not a dictionary
            tensors |= {name.removeprefix("language_model."): file.get_tensor(name) for name in names}
    return tensors
