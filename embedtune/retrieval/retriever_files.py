"""A retriever on disk: a plain SentenceTransformer, with what was learned about words and the chunks beside it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder

from embedtune.bounds import whole
from embedtune.models.load import load_model
from embedtune.models.repository import quiet_transformers
from embedtune.retrieval.encoders import ModelEncoder, encode_chunks
from embedtune.retrieval.fingerprint import model_fingerprint, reranker_fingerprint
from embedtune.retrieval.index import ChunkIndex
from embedtune.retrieval.learned import Saved
from embedtune.retrieval.retriever_card import retriever_section, with_section
from embedtune.retrieval.word_weight import LearnedWords
from embedtune.retrieval.words import WordWeights
from embedtune.storage import merged_folder, read_folder, reading, replace_file, replaced_folder
from embedtune.types import CONTEXT_PARTS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


SETTINGS, WORDS, INDEX, CARD = "retriever.json", "retriever_words.safetensors", "index", "README.md"
RERANKER = "reranker"

_REMEDY = "Copy the whole folder again, or make the retriever again."

_NUM_PROBES = 4
_MIN_PROBE_COSINE = 0.99


def write(path: str | Path, model: SentenceTransformer, index: ChunkIndex, saved: Saved) -> None:
    """Write a retriever to a folder; an older one stays until the new one is whole.

    A folder that holds the model already gets the rest of the retriever anew, and its model's files stay as they are.
    """
    target = Path(path)
    known = _known_model(target)
    if target.exists() and known is None and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not a saved retriever, so it is not replaced. Choose another path."
        )
    is_there = known == saved.model_fingerprint
    card = (target / CARD).read_text(encoding="utf-8") if is_there and (target / CARD).exists() else ""
    replacing = merged_folder(target, without=(INDEX, WORDS, RERANKER)) if is_there else replaced_folder(target)
    with quiet_transformers(), replacing as folder:
        if not is_there:
            model.save_pretrained(str(folder))
        (folder / INDEX).mkdir()
        index.write(folder / INDEX)
        write_learned(folder, saved)
        if card:
            (folder / CARD).write_text(card, encoding="utf-8")
        _explain(folder, saved, name=target.name)


def write_learned(folder: Path, saved: Saved) -> None:
    """Write what makes a retriever of a saved model; the settings come last: with them the parts belong together."""
    weights = saved.words.weights
    if weights is not None:
        save_file({"hashes": weights.hashes, "counts": weights.counts}, folder / WORDS)
    if saved.reranker is not None:  # without its card, which may quote training data
        saved.reranker.save_pretrained(str(folder / RERANKER), create_model_card=False)
    settings = {
        "model_fingerprint": saved.model_fingerprint,
        "words_fingerprint": words_fingerprint(weights),
        "num_questions": weights.num_questions if weights is not None else 0,
        "word_weight": _number(saved.word_weight),
        "multiple": _number(saved.words.multiple),
        "context": list(saved.context),
        "reranker_fingerprint": reranker_fingerprint(saved.reranker) if saved.reranker is not None else "",
        "rerank_depth": saved.rerank_depth,
    }
    replace_file(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    if weights is None:
        (folder / WORDS).unlink(missing_ok=True)


def _explain(folder: Path, saved: Saved, *, name: str) -> None:
    """Say in the folder's card how to use it."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.exists() else "# A retriever\n\n"
    replace_file(card, with_section(text, retriever_section(name, saved, has_chunks=True)))


def found(path: str | Path, *, revision: str | None, token: str | None) -> Path:
    """Return the folder of a retriever, downloaded from the Hub where ``path`` is not one.

    Raises:
        FileNotFoundError: If it is neither a saved retriever nor a repository.
    """
    folder = Path(path)
    if not folder.exists() and not folder.is_absolute() and str(path).count("/") == 1:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(str(path), revision=revision, token=token))
    read_folder(folder, _require_settings)
    return folder


def _require_settings(folder: Path) -> None:
    if not (folder / SETTINGS).exists():
        raise FileNotFoundError(f"{folder} is not a saved retriever: it has no {SETTINGS}.")


def read_parts(
    folder: Path, model: SentenceTransformer | None, *, with_index: bool
) -> tuple[Saved, SentenceTransformer, ChunkIndex | None]:
    """Read a retriever's settings, its model unless it is given, and its chunks if wanted: all of the same version."""

    def read_all(place: Path) -> tuple[Saved, SentenceTransformer, ChunkIndex | None]:
        saved = read(place)
        loaded = read_model(place) if model is None else model
        check_model(saved, loaded, place)
        if saved.reranker is not None:
            saved.reranker.to(loaded.device)
        return saved, loaded, read_index(place) if with_index else None

    return read_folder(folder, read_all)


def read(folder: Path) -> Saved:
    """Read what `write_learned` wrote.

    Raises:
        ValueError: If a file is damaged, or the words are not those that were saved with the rest.
    """
    with reading(folder / SETTINGS, remedy=_REMEDY):
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        fingerprints = str(settings["model_fingerprint"]), str(settings["words_fingerprint"])
        num_questions, context = int(settings["num_questions"]), tuple(settings["context"])
        reranker, depth = str(settings["reranker_fingerprint"]), whole("rerank_depth", settings["rerank_depth"])
        multiple, word_weight = float(settings["multiple"]), float(settings["word_weight"])
        if not (multiple >= 0 and word_weight >= 0 and set(context) <= set(CONTEXT_PARTS)):
            raise ValueError(f"multiple={multiple}, word_weight={word_weight}, context={context}")
    weights = None
    if fingerprints[1]:  # of words that count 1 each there is no file
        with reading(folder / WORDS, remedy=_REMEDY):
            arrays = load_file(folder / WORDS)
            weights = WordWeights(arrays["hashes"], arrays["counts"], num_questions)
    if words_fingerprint(weights) != fingerprints[1]:
        raise ValueError(f"{folder / WORDS} is of another retriever than {SETTINGS}. {_REMEDY}")
    words = LearnedWords(weights, multiple)
    return Saved(words, word_weight, context, fingerprints[0], _read_reranker(folder, reranker), depth)


def _read_reranker(folder: Path, fingerprint: str) -> CrossEncoder | None:
    if not fingerprint:
        return None
    if not (folder / RERANKER).is_dir():
        raise FileNotFoundError(f"{folder} was saved with a reranker, and {RERANKER} is missing. {_REMEDY}")
    try:
        reranker = CrossEncoder(str(folder / RERANKER), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, SafetensorError) as err:
        raise ValueError(f"The reranker in {folder / RERANKER} is damaged or incomplete ({err}). {_REMEDY}") from err
    if reranker_fingerprint(reranker) != fingerprint:
        raise ValueError(f"{folder / RERANKER} is of another retriever than {SETTINGS}. {_REMEDY}")
    return reranker


def read_index(folder: Path) -> ChunkIndex:
    """Read the chunks of a retriever."""
    if not (folder / INDEX).exists():
        raise FileNotFoundError(
            f"{folder} was published without its chunks. Give them: Retriever.load({str(folder)!r}, chunks=chunks)."
        )
    return ChunkIndex.load(folder / INDEX)


def read_model(folder: Path) -> SentenceTransformer:
    """Load the model of a retriever."""
    try:
        return load_model(folder)
    except FileNotFoundError:
        raise
    except (OSError, json.JSONDecodeError) as err:
        raise ValueError(f"The model in {folder} is damaged or incomplete ({err}). {_REMEDY}") from err


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


def _known_model(folder: Path) -> str | None:
    """Return the fingerprint of the model in a saved retriever, empty where its settings are damaged; None if it is none."""
    path = folder / SETTINGS
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_fingerprint"])
    except (ValueError, KeyError, TypeError):  # it is written again as a whole
        return ""


def words_fingerprint(weights: WordWeights | None) -> str:
    """Return the SHA-256 of what was learned about words, or an empty string."""
    if weights is None:
        return ""
    content = [weights.hashes.tobytes(), weights.counts.tobytes(), str(weights.num_questions).encode()]
    return hashlib.sha256(b"".join(content)).hexdigest()
