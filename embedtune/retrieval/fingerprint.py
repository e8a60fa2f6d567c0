"""What was evaluated, as a short text that changes when the vectors may."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

_NO_SETTINGS = ("architectures", "dtype", "torch_dtype", "transformers_version")


def model_fingerprint(model: SentenceTransformer) -> str:
    """Return the SHA-256 of a model's weights and of the settings that its vectors depend on.

    Weights are read where they lie, one tensor at a time. The fingerprint does not depend on the device, nor on the folder
    that the model was loaded from.

    Example:
        >>> import embedtune as et
        >>> model = et.load_model("minilm", device="cpu")
        >>> first = model_fingerprint(model)
        >>> model.max_seq_length = 128
        >>> len(first), model_fingerprint(model) == first
        (71, False)
    """
    digest = hashlib.sha256(json.dumps(vector_settings(model), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def vector_settings(model: SentenceTransformer) -> dict[str, Any]:
    """Return everything beside the weights that a model's vectors depend on."""
    return {
        "modules": [(type(module).__name__, getattr(module, "get_config_dict", dict)()) for module in model],
        "config": _config(getattr(model.transformers_model, "config", None)),
        "tokenizer": _tokenizer(model.tokenizer),
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
        "similarity": model.similarity_fn_name,
        "truncate_dim": model.truncate_dim,
        "max_seq_length": model.max_seq_length,
    }


def _config(config: Any) -> dict[str, Any]:
    """Return the backbone's configuration, without what saving and loading it changes."""
    settings: dict[str, Any] = config.to_dict() if config is not None else {}
    return {name: value for name, value in settings.items() if name not in _NO_SETTINGS and not name.startswith("_")}


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Return a fast tokenizer's vocabulary and rules; truncation and padding are set anew with each call."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return {}
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: value for name, value in rules.items() if name not in ("truncation", "padding")}


def fingerprint_of(retriever: object) -> str:
    """Return a model's fingerprint, or what another retriever says in its attribute ``fingerprint``, or its class."""
    if isinstance(retriever, SentenceTransformer):
        return model_fingerprint(retriever)
    return str(getattr(retriever, "fingerprint", type(retriever).__name__))
