"""A retriever on disk: a plain SentenceTransformer, with what was learned about words and the chunks beside it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from embedtune.retrieval.encoders import ModelEncoder, encode_chunks
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.index import ChunkIndex
from embedtune.retrieval.word_weight import LearnedWords
from embedtune.retrieval.words import WordWeights
from embedtune.storage import merged_folder, replace_file, replaced_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.types import ContextPart

SETTINGS, WORDS, INDEX = "retriever.json", "retriever_words.safetensors", "index"

_NUM_PROBES = 4
_MIN_PROBE_COSINE = 0.99


@dataclass(frozen=True, eq=False)
class Saved:
    """What makes a retriever out of a model and an index."""

    words: LearnedWords
    word_weight: float
    context: tuple[ContextPart, ...]
    model_fingerprint: str = ""


def write(
    path: str | Path, model: SentenceTransformer, index: ChunkIndex, saved: Saved, *, model_fingerprint: str
) -> None:
    """Write a retriever to a folder; an older one stays until the new one is whole."""
    target = Path(path)
    known = _settings_in(target)
    if target.exists() and known is None and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not a saved retriever, so it is not replaced. Choose another path."
        )
    saved = replace(saved, model_fingerprint=model_fingerprint)
    if known is not None and known["model_fingerprint"] == model_fingerprint:
        _write_parts(target, index, saved)
        return
    with replaced_folder(target) as folder:
        model.save_pretrained(str(folder))
        _write_parts(folder, index, saved)


def _write_parts(folder: Path, index: ChunkIndex, saved: Saved) -> None:
    """Write everything but the model; the settings come last: with them the parts belong together."""
    weights = saved.words.weights
    with merged_folder(folder) as new:
        if weights is not None:
            save_file({"hashes": weights.hashes, "counts": weights.counts}, new / WORDS)
    index.save(folder / INDEX)
    settings = {
        "model_fingerprint": saved.model_fingerprint,
        "words_fingerprint": _words_fingerprint(weights),
        "num_questions": weights.num_questions if weights is not None else 0,
        "word_weight": _number(saved.word_weight),
        "multiple": _number(saved.words.multiple),
        "context": list(saved.context),
    }
    replace_file(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def found(path: str | Path, *, revision: str | None, token: str | None) -> Path:
    """Return the folder of a retriever, downloaded from the Hub where ``path`` is not one.

    Raises:
        FileNotFoundError: If it is neither a saved retriever nor a repository.
    """
    folder = Path(path)
    if not folder.exists() and not folder.is_absolute() and str(path).count("/") == 1:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(path), revision=revision, token=token))
    if not (folder / SETTINGS).exists():
        raise FileNotFoundError(f"{folder} is not a saved retriever: it has no {SETTINGS}.")
    return folder


def read(folder: Path) -> Saved:
    """Read what `write` wrote beside the model and the chunks.

    Raises:
        ValueError: If the words are not those that were saved with the rest.
    """
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    weights = None
    if (folder / WORDS).exists():
        arrays = load_file(folder / WORDS)
        weights = WordWeights(arrays["hashes"], arrays["counts"], settings["num_questions"])
    if _words_fingerprint(weights) != settings["words_fingerprint"]:
        raise ValueError(
            f"{folder / WORDS} is missing, or of another retriever than {SETTINGS}. Copy the whole folder again, or make the "
            "retriever again."
        )
    words = LearnedWords(weights, float(settings["multiple"]))
    return Saved(words, float(settings["word_weight"]), tuple(settings["context"]), settings["model_fingerprint"])


def read_index(folder: Path) -> ChunkIndex:
    """Read the chunks of a retriever."""
    if not (folder / INDEX).exists():
        raise FileNotFoundError(
            f"{folder} was published without its chunks. Give them: Retriever.load({str(folder)!r}, chunks=chunks)."
        )
    return ChunkIndex.load(folder / INDEX)


def check_model(saved: Saved, model: SentenceTransformer, folder: Path) -> None:
    """Raise a ``ValueError`` if the model is not the one that the words were learned for."""
    fingerprint = model_fingerprint(model)
    if fingerprint != saved.model_fingerprint:
        raise ValueError(
            f"The model is not the one that the retriever in {folder} was saved with (fingerprints {fingerprint[7:15]} and "
            f"{saved.model_fingerprint[7:15]}). Load it from there, or make a retriever for this one: "
            "Retriever.from_dataset(model, data, words=words)."
        )


def probe(model: SentenceTransformer, index: ChunkIndex, batch_size: int) -> None:
    """Raise a ``ValueError`` if the model gives a few chunks vectors that are not those of the index."""
    rows = np.unique(np.linspace(0, max(len(index) - 1, 0), num=min(_NUM_PROBES, len(index)), dtype=np.int64))
    if not len(rows):
        return
    stored, ids = np.asarray(index.vectors[rows]), [index.ids[row] for row in rows]
    again = encode_chunks(ModelEncoder(model, batch_size), index.texts(rows.tolist()), ids=ids)
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(again, axis=1)
    cosines = (stored * again).sum(axis=1) / norms
    if not cosines.min() >= _MIN_PROBE_COSINE:
        raise ValueError(
            f"The model has the weights that made the index, but gives chunk {ids[cosines.argmin()]!r} another vector (cosine "
            f"{cosines.min():.4f}). Its tokenizer, attention or precision must have changed: load it as it was, or make the "
            "index again."
        )


def _number(value: float) -> float | str:
    """Return what JSON can hold; ``float`` reads it again."""
    return "inf" if math.isinf(value) else value


def _settings_in(folder: Path) -> dict[str, Any] | None:
    path = folder / SETTINGS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _words_fingerprint(weights: WordWeights | None) -> str:
    if weights is None:
        return ""
    return hashlib.sha256(weights.hashes.tobytes() + weights.counts.tobytes()).hexdigest()
