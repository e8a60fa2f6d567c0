"""TunableModel: a SentenceTransformer that merges its LoRA when saved, in files that other programs can read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.modules import Pooling

from embedtune.models.lora import adopt_adapters, has_adapters, merged_copy, save_adapters, transformers_of

# The versions that load a saved model correctly. sentence-transformers >= 6.1 checks them before loading.
_REQUIREMENTS = {
    "jina_embeddings_v3": {"transformers": {"specifier": ">=5.4", "reason": "5.4 brought JinaEmbeddingsV3Model."}},
    "bidirectional": {
        "transformers": {"specifier": ">=5.2", "reason": "Older versions ignore is_causal and run causally."}
    },
}
_CARD = """
## Requirements

Load the model with `SentenceTransformer(...)`, without `trust_remote_code`. It needs {needs}.
"""


class TunableModel(SentenceTransformer):
    """A SentenceTransformer that merges its LoRA when saved or pushed, so that plain sentence-transformers loads it.

    The adapters are also saved, in the folder ``adapters``.

    Attributes:
        declared: What `load_model` set up, for `check_model` to compare.
    """

    declared: dict[str, Any] = {}  # noqa: RUF012  # replaced, never changed

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save a plain SentenceTransformer, and its adapters in the folder ``adapters``."""
        adapted = has_adapters(self)
        SentenceTransformer.save(merged_copy(self) if adapted else self, path, *args, **kwargs)
        if adapted:
            save_adapters(self, Path(path, "adapters"))
        if not own_classes(self):
            _forget_code(Path(path))
        add_compatibility_keys(Path(path), max_seq_length=self.max_seq_length)


# Model cards and commit messages name the class that loads the model. (pickle uses __qualname__.)
TunableModel.__name__ = SentenceTransformer.__name__


def as_tunable(model: SentenceTransformer) -> TunableModel:
    """Return a new model with the same modules and settings that merges its LoRA when saved."""
    tunable: Any = copy.copy(model)
    tunable.__class__ = TunableModel
    return cast("TunableModel", tunable)


def merge_when_saved(model: SentenceTransformer) -> None:
    """Let a model whose adapters come from ``model.add_adapter`` or ``get_peft_model`` be saved like one from `load_model`.

    Changes the model in place.

    Raises:
        TypeError: If an adapter is not a LoRA.
        ValueError: If a LoRA cannot be merged.
    """
    adopt_adapters(model)
    if has_adapters(model) and type(model) is SentenceTransformer:
        model.__class__ = TunableModel


def check_savable(model: SentenceTransformer) -> None:
    """Raise a ``ValueError`` if plain sentence-transformers will not load the model once it is saved."""
    if own := own_classes(model):
        raise ValueError(
            f"The model has classes of its own ({', '.join(own)}), so plain sentence-transformers will not load what is saved. Build "
            "it from sentence-transformers' modules, or pass TuningArguments(check_saved=False) and load it with your code."
        )


def own_classes(model: SentenceTransformer) -> list[str]:
    """Return the classes in a model that plain sentence-transformers does not load, because they are not its own."""
    parts = [
        module
        for module in model.modules()
        if isinstance(module, Module) and not isinstance(module, SentenceTransformer)
    ]
    classes = [type(part) for part in parts] + [type(part.model) for _, part in transformers_of(model)]
    libraries = ("sentence_transformers.", "transformers.", "embedtune.")
    return sorted(
        {f"{kind.__module__}.{kind.__qualname__}" for kind in classes if not kind.__module__.startswith(libraries)}
    )


def _forget_code(folder: Path) -> None:
    """Drop the pointers to a repository's code, which the saved model does not have."""
    for name in ("config.json", "tokenizer_config.json"):
        _edit(folder, name, lambda config: config.pop("auto_map", None))


def add_compatibility_keys(folder: Path, *, max_seq_length: int | None) -> None:
    """Add the keys that sentence-transformers 5, text-embeddings-inference and vLLM read."""
    for name in ("modules.json", "router_config.json"):
        _edit(folder, name, _old_module_names)
    _edit(folder, "*Pooling/config.json", _pooling_flags)
    _edit(folder, "sentence_bert_config.json", lambda config: config.setdefault("max_seq_length", max_seq_length))
    _edit(folder, "config.json", _rope_theta)
    needs = _requirements(folder)
    if needs:
        _edit(folder, "config_sentence_transformers.json", lambda config: config.update(requirements=needs))
        _edit(folder, "tokenizer_config.json", _stop_transformers_4)
        _add_to_card(folder, needs)


def _edit(folder: Path, pattern: str, change: Callable[[Any], Any]) -> None:
    """Edit the matching JSON files in the folder and in the folders of a Router's routes."""
    for path in sorted({*folder.glob(pattern), *folder.glob(f"*_*/{pattern}")}):
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _old_module_names(content: Any) -> None:
    """Use the module names of sentence-transformers 5, which 6 also reads."""
    if isinstance(content, list):
        for module in content:
            module["type"] = _old_name(module["type"])
    else:
        content["types"] = {key: _old_name(name) for key, name in content["types"].items()}


_OLD_MODULES = ("Transformer", "StaticEmbedding", "Router", "Pooling", "Normalize")


def _old_name(name: str) -> str:
    package, _, module = name.rpartition(".")
    known = package.startswith("sentence_transformers.") and module in _OLD_MODULES
    return f"sentence_transformers.models.{module}" if known else name


def _pooling_flags(config: dict[str, Any]) -> None:
    modes = config.get("pooling_mode")
    if modes is not None:
        chosen = [modes] if isinstance(modes, str) else modes
        for mode in Pooling.POOLING_MODES:
            flag = f"pooling_mode_{mode}" + ("_token" if mode == "cls" else "_tokens" if mode in _PLURAL else "")
            config.setdefault(flag, mode in chosen)


_PLURAL = ("max", "mean", "weightedmean")


def _rope_theta(config: dict[str, Any]) -> None:
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        config.setdefault("rope_theta", theta)


def _stop_transformers_4(config: dict[str, Any]) -> None:
    """Write the extra tokens as a list, which transformers 4 cannot read: it would ignore is_causal."""
    config.setdefault("extra_special_tokens", [])


def _requirements(folder: Path) -> dict[str, Any]:
    for path in (*folder.glob("config.json"), *folder.glob("*_*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = "bidirectional" if config.get("is_causal") is False else config.get("model_type")
        if kind in _REQUIREMENTS:
            return _REQUIREMENTS[kind]
    return {}


def _add_to_card(folder: Path, needs: dict[str, Any]) -> None:
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    addition = _CARD.format(
        needs="; ".join(f"{name} {need['specifier']} ({need['reason'].rstrip('.')})" for name, need in needs.items())
    )
    if text and addition not in text:
        card.write_text(text.rstrip("\n") + "\n" + addition, encoding="utf-8")
