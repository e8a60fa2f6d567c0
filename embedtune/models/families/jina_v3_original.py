"""Convert the original jina-embeddings-v3 checkpoint to a native base and a PEFT adapter for each task.

The original keeps the LoRA of all tasks in one tensor for each layer, as a parametrization of the weight: for the task t of
a linear layer, ``weight + lora_B[t] @ lora_A[t] * alpha / rank``; for an embedding, ``weight + lora_A[t] @ lora_B[t] * ...``.
Queries, keys and values are one fused layer there, and three layers with the same ``lora_A`` here.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from transformers import JinaEmbeddingsV3Config

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHT = ".parametrizations.weight.original"
_LORA = re.compile(r"\.parametrizations\.weight\.0\.lora_([AB])$")
_RENAMED = (("encoder.layers.", "layers."), ("mixer.out_proj", "self_attn.o_proj"), ("emb_ln", "embeddings.LayerNorm"))
_TARGETS = ["word_embeddings", "token_type_embeddings", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2", "dense"]
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config_sentence_transformers.json")


def convert_jina_v3(source: str | Path, target: str | Path) -> Path:
    """Convert a folder of ``jinaai/jina-embeddings-v3`` to the layout of ``jinaai/jina-embeddings-v3-hf``.

    Args:
        source: Contains config.json, model.safetensors and the tokenizer files. No code in it is run.
        target: The folder to create.

    Returns:
        ``target``, with the base model and a folder for each adapter.

    Raises:
        FileNotFoundError: If model.safetensors is missing.
        ValueError: If the configuration or a tensor differs from the original.

    Example:
        >>> convert_jina_v3("downloads/jina-embeddings-v3", "jina-v3-native")  # doctest: +SKIP
        PosixPath('jina-v3-native')
    """
    source, target = Path(source), Path(target)
    weights = source / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights} is missing; only safetensors are read. Download the repository's model.safetensors."
        )
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tasks = config.get("lora_adaptations") or []
    if (
        not tasks
        or config.get("position_embedding_type", "rotary") != "rotary"
        or config.get("hidden_act", "gelu") != "gelu"
    ):
        raise ValueError(
            f"{source / 'config.json'} does not describe jina-embeddings-v3: lora_adaptations={tasks}, position_embedding_type="
            f"{config.get('position_embedding_type')!r}, hidden_act={config.get('hidden_act')!r}. Use load_model."
        )
    target.mkdir(parents=True, exist_ok=True)
    base, adapters = _split(weights, tasks)
    save_file(base, target / "model.safetensors", metadata={"format": "pt"})
    _write_json(target / "config.json", _native_config(config))
    for task, tensors in adapters.items():
        _write_adapter(target / task.replace(".", "_"), tensors, config)
    for name in _TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    return target


def _split(weights: Path, tasks: list[str]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Split the tensors into base and adapters, with the names of the native model."""
    base: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # a safe_open object, not a dictionary
            tensor = file.get_tensor(name)
            if match := _LORA.search(name):
                if len(tensor) != len(tasks):
                    raise ValueError(
                        f"{name!r} contains {len(tensor)} adapters, but config.json lists {len(tasks)}: {tasks}. Download both again."
                    )
                layer = _renamed(name[: match.start()])
                for index, task in enumerate(tasks):
                    adapters[task] |= _adapter_tensors(layer, match.group(1), tensor[index])
            else:
                layer, _, kind = name.replace(_WEIGHT, ".weight").rpartition(".")
                base |= _base_tensors(_renamed(layer), kind, tensor)
    return base, adapters


def _renamed(layer: str) -> str:
    layer = layer.removeprefix("roberta.")
    for old, new in _RENAMED:
        layer = layer.replace(old, new)
    return re.sub(r"\.norm([12])$", lambda m: f".post_{'attention' if m[1] == '1' else 'mlp'}_layernorm", layer)


def _base_tensors(layer: str, kind: str, tensor: Tensor) -> dict[str, Tensor]:
    if not layer.endswith("mixer.Wqkv"):
        return {f"{layer}.{kind}": tensor}
    return {f"{name}.{kind}": part for name, part in zip(_unfused(layer), _thirds(tensor), strict=True)}


def _adapter_tensors(layer: str, matrix: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return one of a task's two LoRA matrices under its PEFT name."""
    prefix = "base_model.model."
    if layer.endswith("_embeddings"):
        return {f"{prefix}{layer}.lora_embedding_{matrix}": tensor.T.contiguous()}
    if not layer.endswith("mixer.Wqkv"):
        return {f"{prefix}{layer}.lora_{matrix}.weight": tensor.clone()}
    parts = [tensor.clone() for _ in range(3)] if matrix == "A" else _thirds(tensor)
    return {f"{prefix}{name}.lora_{matrix}.weight": part for name, part in zip(_unfused(layer), parts, strict=True)}


def _unfused(layer: str) -> list[str]:
    return [layer.replace("mixer.Wqkv", f"self_attn.{part}_proj") for part in "qkv"]


def _thirds(tensor: Tensor) -> list[Tensor]:
    return [part.clone() for part in tensor.chunk(3)]


def _native_config(config: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in fields(JinaEmbeddingsV3Config)}
    native = {key: value for key, value in config.items() if key in known}
    theta = config.get("rotary_emb_base", JinaEmbeddingsV3Config.default_theta)
    return native | {
        "architectures": ["JinaEmbeddingsV3Model"],
        "model_type": "jina_embeddings_v3",
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "lora_adaptations": config["lora_adaptations"],
        "task_instructions": config.get("task_instructions") or {},
        "dtype": config.get("torch_dtype", "bfloat16"),
    }


def _write_adapter(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    _write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "r": config["lora_rank"],
            "lora_alpha": config["lora_alpha"],
            "lora_dropout": config.get("lora_dropout_p", 0.0),
            "target_modules": _TARGETS,
            "base_model_name_or_path": "jinaai/jina-embeddings-v3-hf",
        },
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
