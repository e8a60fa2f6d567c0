"""A SentenceTransformer as an `Encoder`: prompts and routes applied, every distinct text encoded once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import CrossEncoder, SentenceTransformer

from embedtune.models.packing.pack import can_pack, encode_packed
from embedtune.models.prompts import prompt_of
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.text import storable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.types import Role

_MANY_TEXTS = 1_000


@dataclass(frozen=True)
class ModelEncoder:
    """Encode with a SentenceTransformer, as it is used in production.

    Queries go through ``encode_query`` and documents through ``encode_document``, so the model's own prompts, routes,
    device and ``truncate_dim`` apply. Texts are packed instead of padded to the longest, if the model allows it.

    Attributes:
        model: The model.
        batch_size: How many texts go through the model at once, those of similar length together.
        show_progress_bar: Show the progress of encoding; by default only in a terminal, after two seconds.
        devices: For a large corpus: such as ``("cuda:0", "cuda:1")`` or ``("cpu",) * 4``, with a process for each while it
            lasts. They are sentence-transformers' own, which pads.

    Example:
        >>> import embedtune as et
        >>> encoder = ModelEncoder(et.load_model("minilm", device="cpu"))
        >>> encoder.encode_queries(["How do I restart?", "How do I restart?"]).shape
        (2, 384)
    """

    model: SentenceTransformer
    batch_size: int = 32
    show_progress_bar: bool | None = None
    devices: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """The model's."""
        return model_fingerprint(self.model)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a query, of shape ``(num_texts, dim)``."""
        return self._encode_distinct(texts, "query")

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a document, of shape ``(num_texts, dim)``."""
        return self._encode_distinct(texts, "document")

    def _encode_distinct(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        # Equal texts get equal vectors, bit for bit, whatever else stands in their batch.
        position = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        distinct = list(position)
        options: dict[str, Any] = {"batch_size": self.batch_size, "show_progress_bar": self.show_progress_bar}
        if self.devices and role == "document":
            options["device"] = list(self.devices)
        if distinct and "device" not in options and _encodes_as_usual(self.model) and can_pack(self.model, role):
            vectors = encode_packed(self.model, distinct, prompt=prompt_of(self.model, role), task=role, **options)
        else:
            encode: Callable[..., Any] = self.model.encode_query if role == "query" else self.model.encode_document
            if (
                self.show_progress_bar is None
            ):  # sentence-transformers' bar knows no delay, so it goes by the number of texts
                options["show_progress_bar"] = len(distinct) > _MANY_TEXTS and sys.stderr.isatty()
            vectors = np.asarray(encode(distinct, **options), dtype=np.float32)
        return vectors if len(position) == len(texts) else vectors[[position[text] for text in texts]]


@dataclass(frozen=True)
class RememberingEncoder(ModelEncoder):
    """A `ModelEncoder` that encodes each text once. Its model must not change."""

    _known: dict[tuple[Role, str], NDArray[np.float32]] = field(default_factory=dict, repr=False)

    def _encode_distinct(self, texts: Sequence[str], role: Role) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if (role, text) not in self._known]
        if new or not texts:
            vectors = super()._encode_distinct(new, role)
            self._known.update({(role, text): vector for text, vector in zip(new, vectors, strict=True)})
        return np.stack([self._known[role, text] for text in texts]) if texts else vectors


def encode_chunks(encoder: ModelEncoder, texts: Sequence[str], *, ids: Sequence[str]) -> NDArray[np.float32]:
    """Return a vector for each chunk, of shape ``(num_texts, dim)``, of unit length where the model compares by cosine.

    Raises:
        ValueError: If a vector is zero or not finite.
    """
    if not texts:
        return np.empty((0, encoder.model.get_embedding_dimension() or 0), dtype=np.float32)
    return _comparable(encoder.encode_documents(texts), encoder.model, names=ids)


def encode_questions(encoder: ModelEncoder, questions: Sequence[str]) -> NDArray[np.float32]:
    """Return a vector for each question, likewise.

    Raises:
        ValueError: If a question is empty, or a vector is zero or not finite.
    """
    if blank := [row for row, question in enumerate(questions) if not question.strip()]:
        raise ValueError(f"Question {blank[0]} is empty, so nothing can be found for it.")
    vectors = encoder.encode_queries(
        [storable(question) for question in questions]
    )  # tokenizers refuse half characters
    return _comparable(vectors, encoder.model, names=questions)


def _comparable(
    vectors: NDArray[np.float32], model: SentenceTransformer, *, names: Sequence[str]
) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero((norms == 0) | ~np.isfinite(norms))
    if len(bad):
        raise ValueError(
            f"The vector of {names[bad[0]]!r} ({len(bad)} in all) is zero or not finite, so it cannot be compared with "
            "anything. Look for a model that overflows in float16: load it in float32 or bfloat16."
        )
    unit: NDArray[np.float32] = vectors / norms if model.similarity_fn_name == "cosine" else vectors
    return unit


def _encodes_as_usual(model: SentenceTransformer) -> bool:
    """Say whether encoding is sentence-transformers' own, in this process alone."""
    usual = all(
        getattr(getattr(model, name), "__func__", None) is getattr(SentenceTransformer, name)
        for name in ("encode", "encode_query", "encode_document")
    )
    return usual and getattr(model, "_distributed_inference", None) is None


def model_name(model: SentenceTransformer | CrossEncoder) -> str:
    """Return what to call a model in a table: its name, the Hub's id, or the last part of the folder it came from."""
    card = model.model_card_data
    name = card.model_name or card.model_id or card.base_model or _path_of(model)
    return Path(name).name if Path(name).is_absolute() else str(name)


def _path_of(model: SentenceTransformer | CrossEncoder) -> str:
    config = getattr(model.transformers_model, "config", None)
    return getattr(config, "_name_or_path", "") or type(model).__name__
