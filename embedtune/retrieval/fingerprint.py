"""Fingerprints: short texts that change whenever the vectors of a model, or the texts of a corpus, may."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer

from embedtune.models.lora import has_adapters, merged_copy
from embedtune.models.prompts import prompt_of

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder
    from torch import nn

    from embedtune.types import Role

Side = Literal["both", "document"]

# What saving and loading a model changes in its configuration, and the vectors do not depend on.
_NOT_IN_VECTORS = (
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "sentence_transformers",
)


def model_fingerprint(model: SentenceTransformer, *, side: Side = "both") -> str:
    """Return the SHA-256 of a model's weights and of all settings that its vectors depend on.

    The settings are modules, pooling, prompts, length limit, dimension, similarity and tokenizer. The fingerprint does not
    depend on the device, nor on the folder that the model was loaded from. A LoRA counts as if it were merged, as it is when
    the model is saved. Weights are read one tensor at a time.

    Args:
        model: The model.
        side: ``"document"`` for what the vectors of documents depend on: a model whose query side alone was trained keeps this
            fingerprint, and can go on using the same index.

    Example:
        >>> import embedtune as et
        >>> model = et.load_model("minilm", device="cpu")
        >>> first = model_fingerprint(model), model_fingerprint(model, side="document")
        >>> model.prompts["query"] = "question: "
        >>> first[0] == model_fingerprint(model), first[1] == model_fingerprint(model, side="document")
        (False, True)
    """
    merged = merged_copy(model) if has_adapters(model) else model
    return _digest(vector_settings(merged, side=side), _modules(merged, side))


def reranker_fingerprint(reranker: CrossEncoder) -> str:
    """Return the SHA-256 of a cross-encoder's weights and of all settings that its scores depend on."""
    settings = {
        "prompts": [reranker.prompts, reranker.default_prompt_name],
        "activation": type(reranker.activation_fn).__qualname__,
        "modules": [_module_settings(module) for module in reranker.children()],
    }
    return _digest(settings, list(reranker.children()))


def _digest(settings: dict[str, Any], modules: list[nn.Module]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def fingerprint_of(retriever: object) -> str:
    """Return a model's fingerprint, or the attribute ``fingerprint`` of another retriever, or the name of its class."""
    if isinstance(retriever, SentenceTransformer):
        return model_fingerprint(retriever)
    return str(getattr(retriever, "fingerprint", type(retriever).__name__))


def corpus_fingerprint(rows: Iterable[tuple[Any, ...]]) -> str:
    """Return the SHA-256 of rows, in the order given: pairs of a chunk's id and its text, or all that is known of each."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def vector_settings(model: SentenceTransformer, *, side: Side = "both") -> dict[str, Any]:
    """Return everything beside the weights that a model's vectors depend on."""
    roles: tuple[Role, ...] = ("document",) if side == "document" else ("query", "document")
    return {
        "prompts": [prompt_of(model, role) for role in roles],
        "similarity": model.similarity_fn_name,
        "truncate_dim": model.truncate_dim,
        "modules": [_module_settings(module) for module in _modules(model, side)],
    }


def _modules(model: SentenceTransformer, side: Side) -> list[nn.Module]:
    return list(_document_side(model.children()) if side == "document" else model.children())


def _module_settings(module: nn.Module) -> Any:
    name = type(module).__name__
    if isinstance(module, Transformer):
        config: dict[str, Any] = module.model.config.to_dict()
        kept = {key: config[key] for key in config if key not in _NOT_IN_VECTORS and not key.startswith("_")}
        return [name, module.max_seq_length, kept, _tokenizer(module.tokenizer)]
    if isinstance(module, Router):
        return [
            name,
            {route: [_module_settings(part) for part in parts] for route, parts in module.sub_modules.items()},
        ]
    return [name, getattr(module, "get_config_dict", dict)()]


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return a fast tokenizer's vocabulary and rules; truncation and padding are set anew with each call."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return {}
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in rules.items() if name not in ("truncation", "padding")}


def _document_side(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules that a document goes through, those of a Router's document route in its place."""
    for module in modules:
        if isinstance(module, Router):
            routes: Any = module.sub_modules
            name = "document" if "document" in routes else module.default_route
            yield from _document_side(routes[name].children())
        else:
            yield module
