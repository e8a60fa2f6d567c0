"""Retriever: the chunks that answer a question, from an index that belongs to its model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow

from embedtune.models.load import load_model
from embedtune.retrieval.chunk_encoding import build_index, encode_chunks, encode_questions
from embedtune.retrieval.document_fingerprint import document_fingerprint
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.fusion import Ranking, by_both, by_vectors
from embedtune.retrieval.index import ChunkIndex, order_of_ids, table_of_chunks, table_of_corpus

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.types import Chunk, ContextPart

_NUM_PROBES = 4
_MIN_PROBE_COSINE = 0.99


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes:
        id: The chunk's id.
        score: Its similarity to the question; in hybrid search the sum of reciprocal ranks.
        text: The text that was embedded.
        document_id: The document it is from.
        title: The document's title, where there is one.
        headings: The headings that it stands under.
    """

    id: str
    score: float
    text: str
    document_id: str = ""
    title: str = ""
    headings: tuple[str, ...] = ()


class Retriever:
    """Finds chunks for questions, by the vectors that one model made.

    Made by `from_chunks`, `from_dataset` or `load`. Other threads may go on searching while chunks are added, updated or
    removed: a search sees the corpus as it was before, or as it is after.

    Args:
        model: The model, or its name or folder, as `load_model` takes it.
        index: The chunks and vectors, made by the same model.
        hybrid: Search by words (BM25), too, and join the two rankings by reciprocal rank fusion. It is the better choice
            where questions use the words of the text.
        approximate: Search a graph of the vectors (FAISS, ``pip install 'embedtune[faiss]'``) instead of looking at all of
            them. For some hundred thousand chunks and more; the graph is built at the first question.
        batch_size: How many texts go through the model at once.

    Raises:
        ValueError: If another model made the index.

    Example:
        >>> import embedtune as et
        >>> chunks = [
        ...     et.Chunk("pump.md#0", "pump.md", "Press both buttons to restart the pump.", 0, 39),
        ...     et.Chunk("door.md#0", "door.md", "Turn the key to the left.", 0, 25),
        ... ]
        >>> retriever = et.Retriever.from_chunks(et.load_model("minilm", device="cpu"), chunks)
        >>> retriever.search("How do I unlock the door?", k=1)[0].id
        'door.md#0'
    """

    def __init__(
        self,
        model: SentenceTransformer | str | Path,
        index: ChunkIndex,
        *,
        hybrid: bool = False,
        approximate: bool = False,
        batch_size: int = 32,
    ) -> None:
        self.model: SentenceTransformer = loaded(model)
        self.index: ChunkIndex = index
        self.hybrid = hybrid
        self.approximate = approximate
        self.batch_size = batch_size
        self._state: list[tuple[int, int]] = []
        self._fingerprint = ""
        self._require_same_model()

    @classmethod
    def from_chunks(
        cls,
        model: SentenceTransformer | str | Path,
        chunks: Sequence[Chunk],
        *,
        context: Sequence[ContextPart] = (),
        hybrid: bool = False,
        approximate: bool = False,
        batch_size: int = 32,
        devices: Sequence[str] | None = None,
        show_progress_bar: bool = False,
    ) -> Retriever:
        """Encode chunks.

        Args:
            model: The model, or its name or folder; given as a name or folder, `load` finds it again by itself.
            chunks: What is searched.
            context: What to put before a chunk's text, as in `build_dataset`.
            hybrid: See `Retriever`.
            approximate: See `Retriever`.
            batch_size: How many texts go through the model at once.
            devices: Encode in one process for each, for instance ``["cuda:0", "cuda:1"]`` or ``["cpu"] * 4``.
            show_progress_bar: Show the progress of encoding.
        """
        encoder = loaded(model)
        index = build_index(
            encoder,
            table_of_chunks(chunks, context),
            context=tuple(context),
            model_path=path_of(model),
            batch_size=batch_size,
            devices=devices,
            show_progress_bar=show_progress_bar,
        )
        return cls(encoder, index, hybrid=hybrid, approximate=approximate, batch_size=batch_size)

    @classmethod
    def from_dataset(
        cls,
        model: SentenceTransformer | str | Path,
        data: RetrievalDataset,
        *,
        hybrid: bool = False,
        approximate: bool = False,
        batch_size: int = 32,
        devices: Sequence[str] | None = None,
        show_progress_bar: bool = False,
    ) -> Retriever:
        """Encode every chunk of a dataset, as the model was trained and evaluated on them.

        Args:
            model: As in `from_chunks`.
            data: Its corpus is searched.
            hybrid: See `Retriever`.
            approximate: See `Retriever`.
            batch_size: How many texts go through the model at once.
            devices: As in `from_chunks`.
            show_progress_bar: Show the progress of encoding.
        """
        encoder = loaded(model)
        index = build_index(
            encoder,
            table_of_corpus(data.corpus),
            context=data.context,
            model_path=path_of(model),
            batch_size=batch_size,
            devices=devices,
            show_progress_bar=show_progress_bar,
        )
        return cls(encoder, index, hybrid=hybrid, approximate=approximate, batch_size=batch_size)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: SentenceTransformer | str | Path | None = None,
        *,
        hybrid: bool = False,
        approximate: bool = False,
        batch_size: int = 32,
    ) -> Retriever:
        """Read what `save` wrote; vectors and texts stay on disk and are read as they are needed.

        A few chunks are encoded again and compared, so that a model that is loaded differently (another library version,
        precision or tokenizer) is noticed now and not by the answers.

        Args:
            path: The folder.
            model: The model that made the index; where it is not given, it is loaded from where it was.
            hybrid: See `Retriever`.
            approximate: See `Retriever`.
            batch_size: See `Retriever`.

        Raises:
            FileNotFoundError: If there is no index at ``path``.
            ValueError: If another model made the index.
        """
        index = ChunkIndex.load(path)
        if model is None and not index.model_path:
            raise ValueError(f"{path} does not say where its model is. Pass it: Retriever.load(path, model).")
        retriever = cls(
            model if model is not None else index.model_path,
            index,
            hybrid=hybrid,
            approximate=approximate,
            batch_size=batch_size,
        )
        retriever._probe()
        return retriever

    def save(self, path: str | Path) -> None:
        """Write the index to a folder (safetensors and Arrow); an older one stays until the new one is whole.

        The model is not in it: save that where it can be loaded from.
        """
        self.index.save(path)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the whole model, query side and all, as evaluations remember it too."""
        self._require_same_model()
        self._fingerprint = self._fingerprint or model_fingerprint(self.model)
        return self._fingerprint

    def search(self, question: str, *, k: int = 10) -> list[Hit]:
        """Return the ``k`` best chunks for a question, best first; fewer where there are fewer."""
        return self.search_batch([question], k=k)[0]

    def search_batch(self, questions: Sequence[str], *, k: int = 10) -> list[list[Hit]]:
        """Return the ``k`` best chunks for each question: much faster than one after the other."""
        return self.search_vectors(self.embed(questions), questions, k=k) if questions else []

    def embed(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Return a vector for each question, of shape ``(num_questions, dim)``: the first step of `search`.

        Raises:
            ValueError: If a question is empty, or the model was trained on since the index was made.
        """
        self._require_same_model()
        return encode_questions(self.model, questions, batch_size=self.batch_size)

    def search_vectors(
        self, vectors: NDArray[np.float32], questions: Sequence[str] = (), *, k: int = 10
    ) -> list[list[Hit]]:
        """Return the ``k`` best chunks for each vector of `embed`: the second step of `search`.

        Args:
            vectors: Of shape ``(num_questions, dim)``.
            questions: The texts, which hybrid search needs.
            k: How many.

        Raises:
            ValueError: If ``k`` is less than 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: ask for at least 1 chunk.")
        index = self.index  # one snapshot for all of this search
        if not len(index):
            return [[] for _ in vectors]
        if self.hybrid:
            ranking = by_both(index, vectors, questions, k, approximate=self.approximate)
        else:
            ranking = by_vectors(index, vectors, k, approximate=self.approximate)
        return hits_of(index, ranking)

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Encode new chunks, and these alone.

        Raises:
            ValueError: If the index has a chunk with one of these ids.
        """
        known = [chunk.id for chunk in chunks if chunk.id in self.index.position_of]
        if known:
            raise ValueError(f"The index has chunk {known[0]!r} already ({len(known)} in all). Use update() for these.")
        self._replace((), table_of_chunks(chunks, self.index.context))

    def update(self, chunks: Sequence[Chunk]) -> None:
        """Replace chunks by others with the same ids; those whose text is the same keep their vectors.

        Raises:
            ValueError: If the index has no chunk with one of these ids.
        """
        self._require_known(chunk.id for chunk in chunks)
        self._replace([chunk.id for chunk in chunks], table_of_chunks(chunks, self.index.context))

    def remove(self, chunk_ids: Collection[str]) -> None:
        """Forget chunks.

        Raises:
            ValueError: If the index has no chunk with one of these ids.
        """
        self._require_known(chunk_ids)
        self._replace(chunk_ids, self.index.chunks.schema.empty_table())

    def _require_known(self, chunk_ids: Iterable[str]) -> None:
        if unknown := [chunk for chunk in chunk_ids if chunk not in self.index.position_of]:
            raise ValueError(
                f"The index has no chunk {unknown[0]!r} ({len(unknown)} such ids). Use add() for new ones."
            )

    def _replace(self, old_ids: Collection[str], new: pyarrow.Table) -> None:
        """Put the rows of a table in the place of some chunks."""
        self._require_same_model()
        index, gone = self.index, set(old_ids)
        kept = [row for row, chunk in enumerate(index.ids) if chunk not in gone]
        vectors = self._vectors_of(new)
        table = pyarrow.concat_tables([index.chunks.take(pyarrow.array(kept, pyarrow.int64())), new])
        order = order_of_ids(table)
        self.index = replace(
            index,
            chunks=table.take(pyarrow.array(order, pyarrow.int64())),
            vectors=np.concatenate([index.vectors[kept], vectors])[order],
        )

    def _vectors_of(self, new: pyarrow.Table) -> NDArray[np.float32]:
        """Encode rows, except those whose text the index has a vector for under the same id."""
        index = self.index
        ids, texts = new["_id"].to_pylist(), new["text"].to_pylist()
        old = [index.position_of.get(chunk, -1) for chunk in ids]
        known = dict(zip([p for p in old if p >= 0], index.texts([p for p in old if p >= 0]), strict=True))
        changed = [row for row, (p, text) in enumerate(zip(old, texts, strict=True)) if known.get(p) != text]
        vectors = np.empty((len(ids), index.vectors.shape[1]), dtype=np.float32)
        same = sorted(set(range(len(ids))) - set(changed))
        vectors[same] = index.vectors[[old[row] for row in same]]
        vectors[changed] = encode_chunks(
            self.model, new.take(pyarrow.array(changed, pyarrow.int64())), batch_size=self.batch_size
        )
        return vectors

    def _require_same_model(self) -> None:
        """Raise unless the model is the one that made the index. Hashing takes a while, so only after a change."""
        state = [(tensor.data_ptr(), tensor._version) for tensor in self.model.parameters()]
        if state == self._state:
            return
        found, expected = document_fingerprint(self.model), self.index.model_fingerprint
        if found != expected:
            raise ValueError(
                f"This model did not make the index (fingerprints {found[:8]} and {expected[:8]}): its vectors and those of "
                "the index mean different things. Load the model that made it, or move to this one with "
                "reindex(retriever, model)."
            )
        self._state, self._fingerprint = state, ""

    def _probe(self) -> None:
        """Raise if the model gives a few chunks vectors that are not those of the index."""
        rows = np.unique(np.linspace(0, max(len(self) - 1, 0), num=min(_NUM_PROBES, len(self)), dtype=np.int64))
        if not len(rows):
            return
        stored = self.index.vectors[rows]
        table = self.index.chunks.take(pyarrow.array(rows))
        again = encode_chunks(self.model, table, batch_size=self.batch_size)
        norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(again, axis=1)
        cosines = (stored * again).sum(axis=1) / norms
        if cosines.min() < _MIN_PROBE_COSINE:
            raise ValueError(
                f"The model has the weights that made the index, but gives chunk {self.index.ids[rows[cosines.argmin()]]!r} "
                f"another vector (cosine {cosines.min():.4f}). Its tokenizer, attention or precision must have changed: "
                "load it as it was, or make the index again."
            )


def loaded(model: SentenceTransformer | str | Path) -> SentenceTransformer:
    """Return a model, loading it where a name or folder is given."""
    return load_model(model) if isinstance(model, (str, Path)) else model


def path_of(model: SentenceTransformer | str | Path) -> str:
    """Return what a model can be loaded by again, or an empty string; a folder by its absolute path."""
    if not isinstance(model, (str, Path)):
        return ""
    return str(Path(model).absolute()) if Path(model).is_dir() else str(model)


def hits_of(index: ChunkIndex, ranking: Ranking) -> list[list[Hit]]:
    """Return the chunks of a ranking; positions of -1 are left out."""
    wanted = ranking.positions[ranking.positions >= 0]
    rows = dict(zip(wanted.tolist(), index.chunks.take(pyarrow.array(wanted)).to_pylist(), strict=True))
    return [
        [
            Hit(
                id=row["_id"],
                score=float(score),
                text=row["text"],
                document_id=row["document_id"],
                title=row["document_title"],
                headings=tuple(row["headings"]),
            )
            for row, score in ((rows[p], s) for p, s in zip(positions, scores, strict=True) if p >= 0)
        ]
        for positions, scores in zip(ranking.positions.tolist(), ranking.scores.tolist(), strict=True)
    ]
