"""freeze_index: train the query side alone, so that existing document embeddings stay valid."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from sentence_transformers.base.modules import Dense, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import nn

from embedtune.models.export import TunableModel
from embedtune.models.lora import add_lora, train_only

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

QuerySide = Literal["lora", "linear", "route"]


def freeze_index(model: SentenceTransformer, *, query: QuerySide = "lora") -> SentenceTransformer:
    """Return a model whose ``encode_query`` can be trained while ``encode_document`` never changes.

    The model is a ``Router`` with a query route and a document route. Both compute the given model's embeddings until
    `FrozenIndexTrainer` trains the query route; document embeddings stay valid. ``encode`` uses the document route. It is
    saved as a plain SentenceTransformer.

    Args:
        model: The model that built the index. Its modules become the document route and are frozen.
        query: What to train. ``"lora"``: a LoRA of rank 16 on the query route; the routes share their weights in memory but
            not on disk. ``"linear"``: a linear layer after the query embedding; the routes share the rest, also on
            disk. ``"route"``: the whole query route, either that of a Router without the weights it shares with
            the document route, or a copy of any other model.

    Raises:
        OptionalDependencyError: If ``query="lora"`` and peft is not installed.
        ValueError: If ``query`` is unknown, the model's similarity is not the cosine, the query route has no weights of
            its own to train, or a LoRA is asked for and there is no transformer.

    Example:
        >>> import embedtune as et
        >>> model = et.freeze_index(et.load_model("minilm", device="cpu"), query="linear")
        >>> bool((model.encode_query("both") == model.encode_document("both")).all())
        True
        >>> sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 384 * 384
        True
    """
    if query not in get_args(QuerySide):
        raise ValueError(f"query={query!r} must be one of {get_args(QuerySide)}.")
    if model.similarity_fn_name != "cosine":
        raise ValueError(
            f"The model's similarity is {model.similarity_fn_name!r}, but query sides are trained with 'cosine'. If its embeddings "
            "are normalized, set model.similarity_fn_name = 'cosine': the ranking is the same."
        )
    documents = _side(model, "document")
    for module in documents:
        module.requires_grad_(False)
    queries = {"lora": _with_lora, "linear": _with_linear_layer, "route": _with_weights_of_its_own}[query](model)
    if not any(parameter.requires_grad for module in queries for parameter in module.parameters()):
        raise ValueError(
            "The query route shares all its weights with the document route. Use query='lora' or 'linear'."
        )
    frozen = TunableModel(
        modules=[Router.for_query_document(queries, documents)],
        prompts=dict(model.prompts),
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        device=str(model.device),
    )
    frozen.model_card_data.base_model = model.model_card_data.base_model
    return frozen


def is_index_frozen(model: SentenceTransformer) -> bool:
    """Return whether all weights that ``encode_document`` uses are frozen."""
    return not any(parameter.requires_grad for module in _side(model, "document") for parameter in module.parameters())


def _side(model: SentenceTransformer, route: str) -> list[Any]:
    """Return the modules of one side, in order."""
    modules: list[Any] = []
    for module in model.children():
        if isinstance(module, Router) and route not in module.sub_modules:
            raise ValueError(
                f"The model's Router has the routes {list(module.sub_modules)}, but needs {route!r}. Name its routes 'query' and 'document'."
            )
        modules += module.sub_modules[route] if isinstance(module, Router) else [module]
    return modules


def _with_lora(model: SentenceTransformer) -> list[nn.Module]:
    """Add a LoRA to a copy of the modules that shares their tensors."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    shared: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    side = _side(model, "query")
    if not any(isinstance(module, Transformer) for module in side):
        raise ValueError(
            f"query='lora' needs a transformer, and the model has none ({type(side[0]).__name__}). Use query='linear' or 'route'."
        )
    modules = [_copied(m, shared) if isinstance(m, Transformer) else m for m in side]
    queries = TunableModel(modules=modules, device=str(model.device))
    add_lora(queries, True)
    return list(queries.children())


def _with_linear_layer(model: SentenceTransformer) -> list[nn.Module]:
    """Put a linear layer, at first the identity, behind the vector, and freeze everything else.

    A layer from an earlier round of training is trained further instead.
    """
    modules = _side(model, "query")
    for module in modules:
        module.requires_grad_(False)
    end = len(modules) - isinstance(modules[-1], Normalize)
    if _is_query_layer(modules[end - 1], _side(model, "document")):
        modules[end - 1].requires_grad_(True)
        return modules
    if any(parameter.dtype != torch.float32 for module in modules for parameter in module.parameters()):
        raise ValueError(
            "query='linear' needs float32 weights. Load the model with dtype='float32', or use query='lora'."
        )
    dim = Router({"query": modules}).get_embedding_dimension()
    # No bias, so that it does not matter whether the embedding is already normalized.
    layer = Dense(dim, dim, bias=False, activation_function=None, init_weight=torch.eye(dim))
    return [*modules[:end], layer, *modules[end:]]


def _is_query_layer(module: nn.Module, documents: list[Any]) -> bool:
    """Return whether a module is a linear layer of `freeze_index`, which only the query side has."""
    return (
        isinstance(module, Dense)
        and module.linear.bias is None
        and module.linear.in_features == module.linear.out_features
        and isinstance(module.activation_function, nn.Identity)
        and not any(module is other for other in documents)
    )


def _with_weights_of_its_own(model: SentenceTransformer) -> list[nn.Module]:
    """Return the query route of a Router, or a copy of all modules."""
    modules = _side(model, "query")
    if any(isinstance(module, Router) for module in model.children()):
        return modules
    queries = TunableModel(modules=[_copied(module, {}) for module in modules], device=str(model.device))
    train_only(queries, "")
    return list(queries.children())


def _copied(module: Any, shared: dict[int, Any]) -> Any:
    """Copy a module except for the shared tensors and the tokenizer."""
    processor = getattr(module, "processor", None)
    return copy.deepcopy(module, shared | ({} if processor is None else {id(processor): processor}))
