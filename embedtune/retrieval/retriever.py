"""Retriever: a model and what was learned about words, searched with one score. What is measured is what is served."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.bounds import whole
from embedtune.models.load import load_model
from embedtune.retrieval import changes, retriever_files
from embedtune.retrieval.encoders import ModelEncoder, encode_questions, model_name
from embedtune.retrieval.engine import EngineParts
from embedtune.retrieval.fingerprint import model_fingerprint, reranker_fingerprint
from embedtune.retrieval.fusion import Fusion, check_ranking, similarities
from embedtune.retrieval.hits import Hit, Hits, hits_of, positions_of
from embedtune.retrieval.index import ChunkIndex, build_index, table_of_chunks, table_of_corpus, table_of_texts
from embedtune.retrieval.learned import Saved
from embedtune.retrieval.parts import IndexParts
from embedtune.retrieval.rerank import SecondStage, check_reranker
from embedtune.retrieval.word_weight import MIN_CHUNKS_OF_SPREAD, NUM_SAMPLES, LearnedWords, spread_of
from embedtune.retrieval.words import WordIndex

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.types import Chunk, ContextPart


class Retriever:
    """Finds the chunks that answer a question, by vectors and by words.

    A chunk's score is ``similarity + word_weight * words``: the similarity of its vector to the question's, and the share
    of the question's weight in words that it holds (`BM25`, with the weights that `learn_words` learned). Made by
    `from_chunks`, `from_dataset` or `load`; `tune` makes one with a trained model.

    Threads may search while others add, update or remove chunks: a search sees the corpus as it was before or as it is after.
    A few new chunks are kept beside the others until they are many, so the next question costs as little as the one before;
    what is found is what an index of all chunks, made anew, would find.

    With a reranker, a cross-encoder reads the first chunks of this ranking together with the question, and its score orders them.

    Args:
        model: The model, or its name or folder, as `load_model` takes it.
        index: The chunks, encoded by the same model.
        words: What `learn_words` learned; by default every word has the weight 1, and words count as much as is best on
            average.
        word_weight: How much words count, instead of what ``words`` says: 0 for vectors alone, ``math.inf`` for words alone.
        context: What precedes each chunk's text, as in `build_dataset`.
        approximate: Look for candidates in a graph of the vectors (FAISS, ``pip install 'embedtune[faiss]'``) instead of
            comparing with all of them; for a few hundred thousand chunks and more. The graph is built for the first question.
        batch_size: How many texts go through the model at once.
        reranker: A ``CrossEncoder`` of sentence-transformers with one score for each pair of texts.
        rerank_depth: How many chunks it reads for each question. Those below follow in their order, with their own scores.

    Attributes:
        word_weight: How much the words count in the score.
        encoder: Encodes questions.

    Raises:
        TypeError: If the reranker is not a ``CrossEncoder``.
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
        words: LearnedWords | None = None,
        word_weight: float | None = None,
        context: Sequence[ContextPart] = (),
        approximate: bool = False,
        batch_size: int = 32,
        reranker: CrossEncoder | None = None,
        rerank_depth: int = 50,
    ) -> None:
        _check_index(index)
        check_reranker(reranker)
        self.model: SentenceTransformer = load_model(model) if isinstance(model, (str, Path)) else model
        self.index = index
        self.words: LearnedWords = words or LearnedWords()
        weight = self.words.multiple * spread_of(index) if word_weight is None else word_weight
        self.fusion: Fusion = Fusion(weight, self.words.weights)
        self._is_weight_provisional = word_weight is None and len(index) < MIN_CHUNKS_OF_SPREAD
        self.context: tuple[ContextPart, ...] = tuple(context)
        self.approximate = approximate
        self.batch_size: int = whole("batch_size", batch_size)
        self.reranker = reranker
        self.rerank_depth: int = whole("rerank_depth", rerank_depth)
        self.encoder: ModelEncoder = ModelEncoder(self.model, batch_size)
        self._changing = threading.RLock()
        self._state: list[tuple[int, int]] = []
        self._model_fingerprint = ""
        self._require_same_model()

    @classmethod
    def from_chunks(
        cls,
        model: SentenceTransformer | str | Path,
        chunks: Sequence[Chunk],
        *,
        words: LearnedWords | None = None,
        word_weight: float | None = None,
        context: Sequence[ContextPart] = (),
        approximate: bool = False,
        batch_size: int = 32,
        reranker: CrossEncoder | None = None,
        rerank_depth: int = 50,
        devices: Sequence[str] = (),
        show_progress_bar: bool | None = None,
    ) -> Retriever:
        """Encode chunks and make them searchable.

        Args:
            model: The model, or its name or folder.
            chunks: What is searched.
            words: See `Retriever`.
            word_weight: See `Retriever`.
            context: What to put before a chunk's text, as in `build_dataset`.
            approximate: See `Retriever`.
            batch_size: How many texts go through the model at once.
            reranker: See `Retriever`.
            rerank_depth: See `Retriever`.
            devices: Encode in one process for each, for instance ``["cuda:0", "cuda:1"]`` or ``["cpu"] * 4``.
            show_progress_bar: Show the progress of encoding; by default only in a terminal, after two seconds.
        """
        encoder = _encoder(model, batch_size, show_progress_bar, devices)
        index = build_index(encoder, table_of_chunks(chunks, context))
        return cls(
            encoder.model,
            index,
            words=words,
            word_weight=word_weight,
            context=context,
            approximate=approximate,
            batch_size=batch_size,
            reranker=reranker,
            rerank_depth=rerank_depth,
        )

    @classmethod
    def from_dataset(
        cls,
        model: SentenceTransformer | str | Path,
        data: RetrievalDataset,
        *,
        words: LearnedWords | None = None,
        word_weight: float | None = None,
        approximate: bool = False,
        batch_size: int = 32,
        reranker: CrossEncoder | None = None,
        rerank_depth: int = 50,
        devices: Sequence[str] = (),
        show_progress_bar: bool | None = None,
    ) -> Retriever:
        """Encode every chunk of a dataset, as the model was trained and evaluated on them.

        Args:
            model: The model, or its name or folder.
            data: Its corpus is searched.
            words: See `Retriever`; `learn_words` learns it from the dataset's training questions.
            word_weight: See `Retriever`.
            approximate: See `Retriever`.
            batch_size: How many texts go through the model at once.
            reranker: See `Retriever`.
            rerank_depth: See `Retriever`.
            devices: As in `from_chunks`.
            show_progress_bar: Show the progress of encoding; by default only in a terminal, after two seconds.
        """
        encoder = _encoder(model, batch_size, show_progress_bar, devices)
        index = build_index(encoder, table_of_corpus(data.corpus))
        return cls(
            encoder.model,
            index,
            words=words,
            word_weight=word_weight,
            context=data.context,
            approximate=approximate,
            batch_size=batch_size,
            reranker=reranker,
            rerank_depth=rerank_depth,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: SentenceTransformer | None = None,
        *,
        chunks: Sequence[Chunk] | None = None,
        approximate: bool = False,
        batch_size: int = 32,
        revision: str | None = None,
        token: str | None = None,
    ) -> Retriever:
        """Read what `save` wrote, from a folder or from the Hub; vectors and texts stay on disk and are read as needed.

        A few chunks are encoded again and compared, so that a model that is loaded differently (another library version,
        precision or tokenizer) is noticed now and not by the answers.

        Args:
            path: The folder, or the id of a repository on the Hub.
            model: The model, if it is loaded already.
            chunks: What is searched, where the chunks were not saved, as on the Hub.
            approximate: See `Retriever`.
            batch_size: See `Retriever`.
            revision: Of the repository on the Hub.
            token: For the Hub; by default the one of ``hf auth login``.

        Raises:
            FileNotFoundError: If ``path`` is not a saved retriever, or a part of it is missing.
            ValueError: If a part is damaged, or the parts do not belong together.
        """
        folder = retriever_files.found(path, revision=revision, token=token)
        saved, model, index = retriever_files.read_parts(folder, model, with_index=chunks is None)
        if index is None:
            index = build_index(_encoder(model, batch_size, False, ()), table_of_chunks(chunks or (), saved.context))
        return cls._of_saved(saved, model, index, approximate=approximate, batch_size=batch_size)

    @classmethod
    def _of_saved(
        cls, saved: Saved, model: SentenceTransformer, index: ChunkIndex, *, approximate: bool, batch_size: int
    ) -> Retriever:
        """Put parts together that were read, and see whether the model still makes the vectors of the index."""
        is_provisional = len(index) < MIN_CHUNKS_OF_SPREAD and saved.word_weight == saved.words.multiple * spread_of(
            index
        )
        retriever = cls(
            model,
            index,
            words=saved.words,
            word_weight=None if is_provisional else saved.word_weight,
            context=saved.context,
            approximate=approximate,
            batch_size=batch_size,
            reranker=saved.reranker,
            rerank_depth=saved.rerank_depth,
        )
        retriever_files.probe(retriever.model, index, batch_size)
        return retriever

    @classmethod
    def from_engine(
        cls,
        path: str | Path,
        address: str,
        *,
        name: str = "chunks",
        engine_token: str = "",
        model: SentenceTransformer | None = None,
        batch_size: int = 32,
        revision: str | None = None,
        token: str | None = None,
    ) -> Retriever:
        """Search chunks that `to_engine` wrote, with the model and the words of a retriever that was saved.

        As by `load`, a few chunks are encoded again and compared.

        Args:
            path: A folder that `save` wrote, or a repository on the Hub. Chunks in it are not read.
            address: Of Milvus, as in `to_engine`.
            name: Of the collection.
            engine_token: For Milvus.
            model: The model, if it is loaded already.
            batch_size: See `Retriever`.
            revision: Of the repository on the Hub.
            token: For the Hub; by default the one of ``hf auth login``.

        Raises:
            OptionalDependencyError: If ``pymilvus`` is not installed.
            FileNotFoundError: If there is no such collection, or ``path`` is not a saved retriever.
            ValueError: If another model made the vectors, or a writer was stopped while it changed the chunks.
        """
        folder = retriever_files.found(path, revision=revision, token=token)
        saved, loaded, _ = retriever_files.read_parts(folder, model, with_index=False)
        parts = EngineParts.open(address, name=name, token=engine_token)
        sample = parts.sample(MIN_CHUNKS_OF_SPREAD)
        return cls._of_saved(saved, loaded, sample, approximate=False, batch_size=batch_size)._searching(parts)

    def to_engine(self, address: str, *, name: str = "chunks", engine_token: str = "") -> Retriever:
        """Write the chunks to Milvus, and return a retriever that searches, adds, updates and removes them there.

        Vectors and words each give candidates, and these are ranked by the same scores, computed by the same code, as in
        memory. So the answer differs only where a chunk was no candidate. The folder of `save` is what other processes need to
        search there too: `from_engine`.

        Args:
            address: A file for Milvus Lite, which runs in this process, such as ``"handbook.db"``; or that of a server or a
                cluster, such as ``"http://localhost:19530"``.
            name: Of the collection that is made; another one, ``<name>_words``, says how many chunks contain each word.
            engine_token: For Milvus: ``"user:password"``, or a key.

        Raises:
            OptionalDependencyError: If ``pymilvus`` is not installed.
            ValueError: If Milvus has the collection already, or vectors are compared by neither cosine nor dot product.

        Example:
            >>> import tempfile
            >>> import embedtune as et
            >>> chunks = [
            ...     et.Chunk("pump.md#0", "pump.md", "Press both buttons to restart the pump.", 0, 39),
            ...     et.Chunk("door.md#0", "door.md", "Turn the key to the left.", 0, 25),
            ... ]
            >>> retriever = et.Retriever.from_chunks(et.load_model("minilm", device="cpu"), chunks)
            >>> served = retriever.to_engine(f"{tempfile.mkdtemp()}/handbook.db")
            >>> served.search("How do I unlock the door?", k=1)[0].id
            'door.md#0'
        """
        return self._searching(EngineParts.of(self.index, address, name=name, token=engine_token))

    def _searching(self, parts: EngineParts) -> Retriever:
        """Return a retriever like this one that searches other chunks."""
        other = copy.copy(self)
        other._parts, other.approximate, other._changing = parts, True, threading.RLock()
        return other

    def save(self, path: str | Path) -> None:
        """Write everything to a folder: the model, the reranker, what was learned about words, and the chunks with their vectors.

        The folder is a plain SentenceTransformer at the same time: ``SentenceTransformer(path)`` loads it, without embedtune.
        A model that the folder holds already is not written again.

        Raises:
            FileExistsError: If ``path`` exists and holds something else.
        """
        retriever_files.write(path, self.model, self.index, self.learned)

    @property
    def index(self) -> ChunkIndex:
        """All chunks, sorted by id, with their vectors and words. After a change they are merged when it is first read."""
        return self._parts.merged

    @index.setter
    def index(self, index: ChunkIndex) -> None:
        self._parts: IndexParts | EngineParts = IndexParts.of(index)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        how = {"vectors": "vectors", "words": "words"}.get(self.fusion.kind, f"vectors + {self.word_weight:.2f} words")
        reader = f", reranked by {model_name(self.reranker)}" if self.reranker is not None else ""
        return f"Retriever: {len(self):,} chunks, by {how} of {model_name(self.model)}{reader}"

    @property
    def word_weight(self) -> float:
        """How much the words count in the score: 0 for vectors alone, infinity for words alone."""
        return self.fusion.word_weight

    @property
    def learned(self) -> Saved:
        """What is saved beside the model and the chunks."""
        self._require_same_model()
        fingerprint = self._whole_fingerprint()
        return Saved(self.words, self.word_weight, self.context, fingerprint, self.reranker, self.rerank_depth)

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of all that a ranking depends on beside the corpus: the model, the words and how much they count, the reranker."""
        self._require_same_model()
        words = retriever_files.words_fingerprint(self.fusion.weights)
        content = f"{self._whole_fingerprint()} {self.word_weight!r} {self.approximate} {words}"
        if self.reranker is not None:
            content += f" {reranker_fingerprint(self.reranker)} {self.rerank_depth}"
        return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"

    def with_word_weight(self, word_weight: float) -> Retriever:
        """Return a retriever with the same model and index in which words count otherwise; 0 for the model alone."""
        other = copy.copy(self)
        other.fusion, other._is_weight_provisional = Fusion(word_weight, self.words.weights), False
        other._changing = threading.RLock()
        return other

    def with_reranker(self, reranker: CrossEncoder | None, *, rerank_depth: int = 50) -> Retriever:
        """Return a retriever of the same chunks with another second stage; None for none.

        Raises:
            TypeError: If the reranker is not a ``CrossEncoder``.
            ValueError: If it returns several scores for each pair, or ``rerank_depth`` is less than 1.
        """
        check_reranker(reranker)
        other = copy.copy(self)
        other.reranker, other.rerank_depth = reranker, whole("rerank_depth", rerank_depth)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_changing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _changing=threading.RLock())  # a copy is changed on its own

    def search(self, question: str, *, k: int = 10) -> list[Hit]:
        """Return the ``k`` best chunks for a question, best first; fewer where there are fewer.

        Raises:
            TypeError: If there are several questions: see `search_batch`.
        """
        if not isinstance(question, str):
            raise TypeError(
                f"search() takes one question, got a {type(question).__name__}. For several, call search_batch()."
            )
        return self.search_batch([question], k=k)[0]

    def search_batch(self, questions: Sequence[str], *, k: int = 10) -> list[list[Hit]]:
        """Return the ``k`` best chunks for each question: much faster than one after the other.

        Raises:
            TypeError: If the questions are one string.
            ValueError: If ``k`` is less than 1, a question is empty, or the model was trained on since the index was made.
        """
        if isinstance(questions, str):
            raise TypeError(
                f"search_batch() takes a list of questions, got the string {questions!r}. For one, call search()."
            )
        whole("k", k)
        parts, fusion = self._parts, self.fusion  # one snapshot for all of this search
        if not len(questions) or not (size := len(parts)):
            return [Hits() for _ in questions]
        vectors, depth = self._vectors(questions), self._second.num_read(k, size)
        if isinstance(parts, IndexParts):
            return self._search(parts, fusion, questions, vectors, k, depth)
        found = parts.candidates(fusion, questions, vectors, depth)
        return [
            hits for one, some in found for hits in self._search(some, fusion, questions[one], vectors[one], k, depth)
        ]

    def _search(
        self,
        parts: IndexParts,
        fusion: Fusion,
        questions: Sequence[str],
        vectors: NDArray[np.float32],
        k: int,
        depth: int,
    ) -> list[list[Hit]]:
        nearby = self.approximate and not isinstance(self._parts, EngineParts)
        first = fusion.rank_parts(
            parts, questions, vectors, depth, approximate=nearby, show_progress_bar=self.encoder.show_progress_bar
        )
        ranking, scores = self._second.read(first, questions, parts, k)
        return hits_of(parts, ranking, similarities(parts, vectors, ranking.positions), scores, alone=fusion.kind)

    def rank(
        self, queries: Sequence[str], documents: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rank documents as `search` would rank chunks with these texts: what an evaluation measures.

        Documents that are the texts of the index, in the order of their ids, are not encoded again.

        Returns:
            Positions in ``documents`` and scores, both of shape ``(num_queries, k)``, best first; -1 where fewer are found.

        Raises:
            ValueError: If there are no queries, or ``k`` is not between 1 and the number of documents.
        """
        check_ranking(queries, len(documents), k)
        index = self.index
        if list(documents) != index.texts():
            index = build_index(ModelEncoder(self.model, self.batch_size), table_of_texts(documents))
        elif isinstance(self._parts, EngineParts):
            return positions_of(index, self.search_batch(queries, k=k), k)
        depth, nearby = (
            self._second.num_read(k, len(index)),
            self.approximate and not isinstance(self._parts, EngineParts),
        )
        first = self.fusion.rank(
            index,
            queries,
            self._vectors(queries),
            depth,
            approximate=nearby,
            show_progress_bar=self.encoder.show_progress_bar,
        )
        ranking, scores = self._second.read(first, queries, IndexParts.of(index), k)
        return ranking.positions, scores

    def word_scores(
        self, queries: Sequence[str], documents: Sequence[str], positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return what words contribute to the scores of ranked documents, of the shape of ``positions``; 0 for a position of -1.

        Args:
            queries: As given to `rank`.
            documents: As given to `rank`.
            positions: What `rank` returned, of shape ``(num_queries, k)``.
        """
        words = self.index.words if list(documents) == self.index.texts() else WordIndex.build(documents)
        return self.fusion.word_scores(words, queries, positions)

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Encode new chunks, and these alone.

        Raises:
            ValueError: If the index has a chunk with one of these ids.
        """
        ids = [chunk.id for chunk in chunks]
        with self._changing:
            parts = self._around(ids)
            changes.require_new(parts, ids)
            self._replace(parts, (), table_of_chunks(chunks, self.context))

    def update(self, chunks: Sequence[Chunk]) -> None:
        """Replace documents: the chunks given are all that their documents have from now on.

        Those whose id and text are the same keep their vectors. What else the index has of these documents is removed, such as
        the end of a document that became shorter.

        Raises:
            ValueError: If the index has no chunk of one of these documents.
        """
        documents = list(dict.fromkeys(chunk.document_id for chunk in chunks))
        with self._changing:
            new = table_of_chunks(chunks, self.context)
            parts = self._around([chunk.id for chunk in chunks], documents)
            self._replace(parts, changes.ids_before_update(parts, chunks), new)

    def remove(self, chunk_ids: Iterable[str]) -> None:
        """Remove chunks.

        Raises:
            ValueError: If the index has no chunk with one of these ids.
        """
        wanted = set(chunk_ids)
        with self._changing:
            parts = self._around(sorted(wanted))
            changes.require_known(parts, wanted)
            self._replace(parts, wanted, parts.main.chunks.schema.empty_table())

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Let changes by other threads wait until the block ends; searches go on."""
        with self._changing:
            yield

    def _around(self, ids: Sequence[str], document_ids: Sequence[str] = ()) -> IndexParts:
        """Return the parts of the index that a change of some chunks and documents touches."""
        parts = self._parts
        return parts if isinstance(parts, IndexParts) else parts.around(ids, document_ids)

    def _replace(self, parts: IndexParts, old_ids: Collection[str], new: pyarrow.Table) -> None:
        """Put the rows of a table in the place of some chunks; those whose text is the same keep their vectors."""
        self._require_same_model()
        now = parts.changed(old_ids, new, changes.vectors_of(parts, new, ModelEncoder(self.model, self.batch_size)))
        if self._is_weight_provisional and len(now) >= MIN_CHUNKS_OF_SPREAD:
            self.fusion = Fusion(self.words.multiple * spread_of(now.merged), self.words.weights)
            self._is_weight_provisional = len(now) < NUM_SAMPLES
        self._parts = now

    @property
    def _second(self) -> SecondStage:
        return SecondStage(self.reranker, self.rerank_depth, self.batch_size, self.encoder.show_progress_bar)

    def _vectors(self, questions: Sequence[str]) -> NDArray[np.float32]:
        self._require_same_model()
        return encode_questions(self.encoder, questions)

    def _whole_fingerprint(self) -> str:
        self._model_fingerprint = self._model_fingerprint or model_fingerprint(self.model)
        return self._model_fingerprint

    def _require_same_model(self) -> None:
        """Raise unless the model is the one that made the index. Hashing takes a while, so only after a change."""
        state = [(tensor.data_ptr(), tensor._version) for tensor in self.model.parameters()]
        if state == self._state:
            return
        found, expected = model_fingerprint(self.model, side="document"), self._parts.main.model_fingerprint
        if found != expected:
            raise ValueError(
                f"This model did not make the index (fingerprints {found[7:15]} and {expected[7:15]}): its vectors and those "
                "of the index cannot be compared. Load the model that made it, or move to this one with "
                "reindex(retriever, model)."
            )
        self._state, self._model_fingerprint = state, ""


def _check_index(index: object) -> None:
    if not isinstance(index, ChunkIndex):
        way = "from_dataset(model, data)" if hasattr(index, "qrels") else "from_chunks(model, chunks)"
        raise TypeError(f"Retriever() takes encoded chunks, got a {type(index).__name__}. Call Retriever.{way}.")


def _encoder(
    model: SentenceTransformer | str | Path, batch_size: int, show_progress_bar: bool | None, devices: Sequence[str]
) -> ModelEncoder:
    loaded = load_model(model) if isinstance(model, (str, Path)) else model
    return ModelEncoder(loaded, whole("batch_size", batch_size), show_progress_bar, tuple(devices))
