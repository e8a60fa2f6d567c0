"""Whether a model made the vectors of an index: the hash of everything that a document's vector depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.base.modules import Router, Transformer

from embedtune.models.lora import has_adapters, merged_copy
from embedtune.models.prompts import prompt_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn


def document_fingerprint(model: SentenceTransformer) -> str:
    """Return the SHA-256 of the model's document side: weights, modules, prompt, length limit and dimension.

    Two models with the same fingerprint give a document the same vector, up to rounding, so they can share an index. A
    model whose query side alone was trained keeps its fingerprint; a LoRA counts as if it were merged, as it is when the
    model is saved.

    Example:
        >>> import embedtune as et
        >>> model = et.load_model("minilm", device="cpu")
        >>> before = document_fingerprint(model)
        >>> model.prompts["document"] = "passage: "
        >>> document_fingerprint(model) == before
        False
    """
    merged = merged_copy(model) if has_adapters(model) else model
    digest = hashlib.sha256()
    settings = {
        "prompt": prompt_of(model, "document"),
        "truncate_dim": model.truncate_dim,
        "similarity": model.similarity_fn_name,
    }
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for module in _document_side(merged.children()):
        digest.update(json.dumps([type(module).__name__, _settings(module)], sort_keys=True, default=str).encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def corpus_fingerprint(rows: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of pairs of a chunk's id and its text, in the order given."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _document_side(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules that a document goes through, those of a Router's document route in its place."""
    for module in modules:
        if isinstance(module, Router):
            routes: Any = module.sub_modules
            name = "document" if "document" in routes else module.default_route
            yield from _document_side(routes[name].children())
        else:
            yield module


def _settings(module: nn.Module) -> Any:
    if isinstance(module, Transformer):  # its other settings are about loading, or are seen in the weights
        return [module.max_seq_length, getattr(module.model.config, "is_causal", None)]
    describe = getattr(module, "get_config_dict", None)
    return describe() if callable(describe) else None


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    content: memoryview = flat.view(torch.uint8).numpy().data
    return content
