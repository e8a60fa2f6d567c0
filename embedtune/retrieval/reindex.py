"""reindex: encode every chunk with another model, in blocks that survive a crash, while the old index serves."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from embedtune.bounds import whole
from embedtune.models.load import load_model
from embedtune.retrieval import retriever_files
from embedtune.retrieval.encoders import ModelEncoder, encode_chunks
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.index import ChunkIndex
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.word_weight import spread_of
from embedtune.storage import naming, replace_file, replaced_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedtune.retrieval.learned import Saved

logger: logging.Logger = logging.getLogger(__name__)

_PLAN = "model.json"


def reindex(
    retriever: Retriever,
    model: SentenceTransformer | str | Path,
    *,
    path: str | Path,
    block_size: int = 4096,
    devices: Sequence[str] = (),
    show_progress_bar: bool | None = None,
) -> Retriever:
    """Move a retriever to another model: encode every chunk, and save the new retriever when it is whole.

    The old retriever may be used meanwhile, from another thread or another process; chunks that are added, updated or removed
    in this process while it runs are moved, too. The last of them are moved, and the new retriever is saved, while further changes
    wait; searches do not. Encoded blocks are kept in a folder beside ``path``, so that the same call after a crash
    continues where it stopped. Where the new model gives chunks the vectors that they have, because its query side alone was
    trained, nothing is encoded.

    What was learned about words moves along, and how much they count is scaled to the similarities of the new model; from the
    folder of a saved retriever, or of a round of `improve`, both are taken as they are there.

    Args:
        retriever: The one that serves.
        model: The new model, or its name or folder.
        path: Where to save the new retriever. An old one at the same path stays until the new one is whole.
        block_size: How many chunks are encoded between two writes.
        devices: Encode in one process for each, as in `Retriever.from_chunks`.
        show_progress_bar: Whether to show progress; by default in a terminal.

    Returns:
        A retriever with the new model.

    Raises:
        ValueError: If ``block_size`` is less than 1, or a saved retriever is damaged.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> old, new = et.load_model("minilm", device="cpu"), et.load_model("minilm", device="cpu", truncate_dim=64)
        >>> retriever = et.Retriever.from_chunks(old, [et.Chunk("a#0", "a", "Press both buttons.", 0, 19)])
        >>> moved = et.reindex(retriever, new, path=f"{tempfile.mkdtemp()}/new", show_progress_bar=False)
        >>> retriever.index.vectors.shape, moved.index.vectors.shape
        ((1, 384), (1, 64))
    """
    whole("block_size", block_size)
    loaded = load_model(model) if isinstance(model, (str, Path)) else model
    saved = _saved_with(model, loaded)
    encoder = ModelEncoder(loaded, retriever.batch_size, devices=tuple(devices))
    folder = Path(path).absolute().parent / f".{Path(path).name}-reindex"
    fingerprint = model_fingerprint(loaded, side="document")
    known = _stored(folder, fingerprint)
    index = retriever.index  # one snapshot at a time: chunks may change meanwhile
    if fingerprint == index.model_fingerprint:
        known |= zip(map(_key, index.texts()), index.vectors, strict=True)
    hidden = None if show_progress_bar is None else not show_progress_bar
    with (
        ExitStack() as last,  # left last, so that what is added before this function returns is in the new retriever
        tqdm(total=len(retriever), initial=len(known), desc="Reindexing", disable=hidden) as bar,
    ):

        def encode_what_is_left() -> ChunkIndex:
            while left := _left(index := retriever.index, known):
                block = dict(list(left.items())[:block_size])
                vectors = encode_chunks(encoder, list(block.values()), ids=list(block))
                _write(folder, list(block), vectors)
                known.update(zip(block, vectors, strict=True))
                bar.update(len(block))
            return index

        encode_what_is_left()
        last.enter_context(retriever.unchanged())
        moved = _moved(retriever, encode_what_is_left(), loaded, known, fingerprint, saved)  # few can have come since
        moved.save(path)
        shutil.rmtree(folder, ignore_errors=True)
    return moved


def _saved_with(model: SentenceTransformer | str | Path, loaded: SentenceTransformer) -> Saved | None:
    """Return what a retriever learned beside the model in a folder, or None if there is only the model."""
    if not isinstance(model, (str, Path)) or not Path(model, retriever_files.SETTINGS).exists():
        return None
    saved = retriever_files.read(Path(model))
    retriever_files.check_model(saved, loaded, Path(model))
    return saved


def _moved(
    retriever: Retriever,
    old: ChunkIndex,
    model: SentenceTransformer,
    known: dict[str, NDArray[np.float32]],
    fingerprint: str,
    saved: Saved | None,
) -> Retriever:
    vectors = [known[_key(text)] for text in old.texts()]
    empty = np.empty((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    index = ChunkIndex(old.chunks, np.stack(vectors) if vectors else empty, fingerprint, model.similarity_fn_name)
    if "words" in old.__dict__:
        index.__dict__["words"] = old.words
    return Retriever(
        model,
        index,
        words=retriever.words if saved is None else saved.words,
        word_weight=scaled_word_weight(retriever, index) if saved is None else saved.word_weight,
        context=retriever.context,
        approximate=retriever.approximate,
        batch_size=retriever.batch_size,
        reranker=(saved or retriever).reranker,
        rerank_depth=(saved or retriever).rerank_depth,
    )


def scaled_word_weight(retriever: Retriever, index: ChunkIndex) -> float:
    """Return a retriever's word weight in the scale of the similarities of another index."""
    return retriever.word_weight * spread_of(index) / spread_of(retriever.index)


def _left(index: ChunkIndex, known: dict[str, NDArray[np.float32]]) -> dict[str, str]:
    """Return the texts that have no new vector yet, by their keys."""
    return {key: text for text in index.texts() if (key := _key(text)) not in known}


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _stored(folder: Path, fingerprint: str) -> dict[str, NDArray[np.float32]]:
    """Return the vectors of blocks that an earlier call finished, by the keys of their texts."""
    plan = folder / _PLAN
    if not plan.exists() or json.loads(plan.read_text(encoding="utf-8")) != fingerprint:
        with replaced_folder(folder) as new:  # blocks of another model are of no use
            (new / _PLAN).write_text(json.dumps(fingerprint), encoding="utf-8")
    known: dict[str, NDArray[np.float32]] = {}
    for keys in sorted(folder.glob("block-*.json")):
        try:
            vectors = load_file(keys.with_suffix(".safetensors"))["vectors"]
            known |= dict(zip(json.loads(keys.read_text(encoding="utf-8")), vectors, strict=True))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as err:
            logger.warning("The block %s is damaged and is encoded again (%s).", keys.name, err)
    if known:
        logger.info("Continuing where the last call stopped: %d texts are encoded already.", len(known))
    return known


def _write(folder: Path, keys: list[str], vectors: NDArray[np.float32]) -> None:
    """Write a block; its keys come last, and a block without them does not count."""
    path = folder / f"block-{keys[0]}"
    with naming(path):
        save_file({"vectors": np.ascontiguousarray(vectors)}, path.with_suffix(".safetensors"))
    replace_file(path.with_suffix(".json"), json.dumps(keys))
