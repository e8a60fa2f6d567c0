"""reindex: give every chunk the vector of another model, in blocks that survive a crash, while the old index serves."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from embedtune.retrieval.chunk_encoding import encode_chunks
from embedtune.retrieval.document_fingerprint import document_fingerprint
from embedtune.retrieval.retriever import Retriever, loaded, path_of
from embedtune.storage import replace_file, replaced_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

_NUM_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class ReindexEstimate:
    """What moving an index to another model will take.

    Attributes:
        num_chunks: How many chunks will be encoded.
        seconds: How long that takes here, from the time that a sample took.
        num_bytes: The size of the new vectors; the old ones stay beside them until the switch.
    """

    num_chunks: int
    seconds: float
    num_bytes: int

    def __str__(self) -> str:
        minutes, size = self.seconds / 60, self.num_bytes / 2**20
        return f"{self.num_chunks:,} chunks, about {minutes:,.1f} minutes here, {size:,.1f} MB of vectors"


def estimate_reindex(
    retriever: Retriever, model: SentenceTransformer | str | Path, *, batch_size: int = 32
) -> ReindexEstimate:
    """Say what `reindex` will take, by encoding a sample of the chunks.

    Args:
        retriever: The one that serves.
        model: The new model.
        batch_size: How many texts go through the model at once.

    Example:
        >>> import embedtune as et
        >>> model = et.load_model("minilm", device="cpu")
        >>> retriever = et.Retriever.from_chunks(model, [et.Chunk("a#0", "a", "Press both buttons.", 0, 19)])
        >>> estimate = et.estimate_reindex(retriever, model)
        >>> estimate.num_chunks, estimate.num_bytes
        (1, 1536)
    """
    encoder, index = loaded(model), retriever.index
    dim = encoder.get_embedding_dimension() or index.vectors.shape[1]
    if not len(index):
        return ReindexEstimate(0, 0.0, 0)
    rows = np.unique(np.linspace(0, len(index) - 1, num=min(_NUM_SAMPLES, len(index)), dtype=np.int64))
    sample = index.chunks.take(pyarrow.array(rows))
    start = time.perf_counter()
    encode_chunks(encoder, sample, batch_size=batch_size)
    seconds = time.perf_counter() - start
    share = sum(map(len, index.texts())) / sum(map(len, sample["text"].to_pylist()))
    return ReindexEstimate(len(index), seconds * share, 4 * dim * len(index))


class Reindexing:
    """A move of an index to another model, under way. `reindex` runs one from start to end.

    Both indexes can be searched meanwhile: the old one, which is whole, and the new one as far as it has come. Finished
    blocks lie in a folder beside ``path`` by the hash of their texts, so that the same move goes on after a crash where it
    stopped, and chunks that come or change while it runs are found and encoded at the end.

    Args:
        retriever: The one that serves.
        model: The new model, or its name or folder.
        path: Where the new index will lie. The old one, if it lies there, stays until the new one is whole.
        block_size: How many chunks are encoded between two writes.
        devices: Encode in one process for each, as `Retriever.from_chunks` does.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> model = et.load_model("minilm", device="cpu")
        >>> chunks = [et.Chunk("a#0", "a", "Press both buttons.", 0, 19), et.Chunk("b#0", "b", "Turn the key.", 0, 13)]
        >>> move = Reindexing(et.Retriever.from_chunks(model, chunks), model, path=f"{tempfile.mkdtemp()}/new", block_size=1)
        >>> move.step()
        >>> move.num_left, len(move.old), len(move.new)
        (1, 2, 1)
    """

    def __init__(
        self,
        retriever: Retriever,
        model: SentenceTransformer | str | Path,
        *,
        path: str | Path,
        block_size: int = 4096,
        devices: Sequence[str] | None = None,
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size={block_size} must be at least 1.")
        self.old = retriever
        self.model: SentenceTransformer = loaded(model)
        self.path: Path = Path(path)
        self.block_size = block_size
        self.devices = devices
        self._model_path = path_of(model)
        self._fingerprint = document_fingerprint(self.model)
        self._folder = self.path.absolute().parent / f".{self.path.name}-reindex"
        self._vectors = self._stored()

    @property
    def num_left(self) -> int:
        """How many chunks of the old index have no new vector yet."""
        return sum(key not in self._vectors for key in self._keys())

    @property
    def new(self) -> Retriever:
        """The chunks that have a new vector, with the new model."""
        index, keys = self.old.index, self._keys()
        rows = [row for row, key in enumerate(keys) if key in self._vectors]
        dim = self.model.get_embedding_dimension() or 0
        vectors = np.stack([self._vectors[keys[row]] for row in rows]) if rows else np.empty((0, dim), dtype=np.float32)
        moved = replace(
            index,
            chunks=index.chunks.take(pyarrow.array(rows, pyarrow.int64())),
            vectors=vectors,
            model_fingerprint=self._fingerprint,
            similarity=self.model.similarity_fn_name,
            model_path=self._model_path,
        )
        options = {"hybrid": self.old.hybrid, "approximate": self.old.approximate}
        return Retriever(self.model, moved, batch_size=self.old.batch_size, **options)

    def step(self) -> None:
        """Encode the next block, and write it down."""
        table = self.old.index.chunks
        left = {key: row for row, key in enumerate(self._keys()) if key not in self._vectors}
        rows = list(left.values())[: self.block_size]
        block = table.take(pyarrow.array(rows, pyarrow.int64()))
        vectors = encode_chunks(self.model, block, batch_size=self.old.batch_size, devices=self.devices)
        keys = list(left)[: self.block_size]
        self._write(keys, vectors)
        self._vectors.update(zip(keys, vectors, strict=True))

    def run(self, *, show_progress_bar: bool | None = None) -> Retriever:
        """Encode what is left, put the new index in its place, and return a retriever for it.

        Args:
            show_progress_bar: Whether to show progress; by default in a terminal.
        """
        hidden = None if show_progress_bar is None else not show_progress_bar
        with tqdm(total=len(self.old), initial=len(self.old) - self.num_left, desc="Reindexing", disable=hidden) as bar:
            while left := self.num_left:
                self.step()
                bar.update(left - self.num_left)
        finished = self.new
        finished.save(self.path)
        shutil.rmtree(self._folder, ignore_errors=True)
        return finished

    def _keys(self) -> list[str]:
        return [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in self.old.index.texts()]

    def _stored(self) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of blocks that were finished earlier, by the hash of their texts."""
        plan = self._folder / "model.json"
        if not plan.exists() or json.loads(plan.read_text(encoding="utf-8")) != self._fingerprint:
            with replaced_folder(self._folder) as folder:  # blocks of another model are of no use
                (folder / plan.name).write_text(json.dumps(self._fingerprint), encoding="utf-8")
        stored: dict[str, NDArray[np.float32]] = {}
        for keys in sorted(self._folder.glob("*.json")):
            if keys != plan:
                vectors = load_file(keys.with_suffix(".safetensors"))["vectors"].numpy()
                stored |= zip(json.loads(keys.read_text(encoding="utf-8")), vectors, strict=True)
        if stored:
            logger.info("Going on where the last run stopped: %d chunks are encoded already.", len(stored))
        return stored

    def _write(self, keys: list[str], vectors: NDArray[np.float32]) -> None:
        """Write a block; its keys come last, and a block without them does not exist."""
        path = self._folder / f"block-{keys[0]}"
        save_file({"vectors": torch.from_numpy(np.ascontiguousarray(vectors))}, path.with_suffix(".safetensors"))
        replace_file(path.with_suffix(".json"), json.dumps(keys))


def reindex(
    retriever: Retriever,
    model: SentenceTransformer | str | Path,
    *,
    path: str | Path,
    block_size: int = 4096,
    devices: Sequence[str] | None = None,
    show_progress_bar: bool | None = None,
) -> Retriever:
    """Encode every chunk with another model, and put the new index in the place of the old one when it is whole.

    What it will take is logged first (see `estimate_reindex`). Run it again after a crash, and it goes on where it stopped.
    The old retriever may be used meanwhile, from another thread or another process; to search the new index too while it
    grows, see `Reindexing`.

    Args:
        retriever: The one that serves.
        model: The new model, or its name or folder; given as a name or folder, ``Retriever.load(path)`` finds it.
        path: Where the new index will lie.
        block_size: How many chunks are encoded between two writes.
        devices: Encode in one process for each, as `Retriever.from_chunks` does.
        show_progress_bar: Whether to show progress; by default in a terminal.

    Returns:
        A retriever with the new model and the new index.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> old, new = et.load_model("minilm", device="cpu"), et.load_model("minilm", device="cpu", truncate_dim=64)
        >>> retriever = et.Retriever.from_chunks(old, [et.Chunk("a#0", "a", "Press both buttons.", 0, 19)])
        >>> moved = et.reindex(retriever, new, path=f"{tempfile.mkdtemp()}/index", show_progress_bar=False)
        >>> retriever.index.vectors.shape, moved.index.vectors.shape
        ((1, 384), (1, 64))
    """
    move = Reindexing(retriever, model, path=path, block_size=block_size, devices=devices)
    logger.info("Reindexing: %s.", estimate_reindex(retriever, move.model, batch_size=retriever.batch_size))
    return move.run(show_progress_bar=show_progress_bar)
