"""Search in shards: each process of a launcher searches its own, and every process learns what all have found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet as parquet
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from embedtune.bounds import whole
from embedtune.retrieval.encoders import encode_questions
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.index import SCHEMA
from embedtune.retrieval.parts import SomeChunks
from embedtune.retrieval.shards import (
    MANIFEST,
    read_manifest,
    read_shard,
    require_same,
    said_by,
    shard_paths,
    this_process,
)
from embedtune.retrieval.tokens import hashed_tokens
from embedtune.retrieval.words import WordStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedtune.retrieval.fusion import Fusion
    from embedtune.retrieval.index import ChunkIndex
    from embedtune.retrieval.retriever import Retriever

# How long a process waits for the slowest one, which may have the largest shards.
_PATIENCE = timedelta(days=7)

Scored: TypeAlias = tuple[float, str, float]
"""The negative score of a chunk, its id, and what words contribute: the best come first, and ties are broken by id."""

Gather: TypeAlias = Callable[[Any], list[Any]]
"""Returns what each process gave to it, in the order of the processes."""


class Found(NamedTuple):
    """What was found in shards for each question, best first.

    Attributes:
        ids: The chunks' ids.
        scores: Their scores.
        word_scores: What words contribute to each score; the vectors contribute the rest.
        num_chunks: How many chunks all shards have.
        fingerprint: A SHA-256 of the ids and texts of all shards.
    """

    ids: list[list[str]]
    scores: list[list[float]]
    word_scores: list[list[float]]
    num_chunks: int
    fingerprint: str


def search_shards(
    retriever: Retriever,
    folder: str | Path,
    questions: Sequence[str],
    *,
    k: int = 10,
    show_progress_bar: bool | None = None,
) -> Found:
    """Search what `encode_shards` wrote, with all processes of ``accelerate launch`` or ``torchrun``, or in this one alone.

    All processes call it with the same arguments, and each gets the same result: what a `Retriever` of all chunks with this
    ``word_weight`` would find, with the scores that it would give. Each reads its share of the shards, one at a time, twice
    where words count: how rare a word is depends on all shards.

    Args:
        retriever: Its model and its words are used. Its own chunks are not searched.
        folder: The ``output_dir`` of `encode_shards`.
        questions: The questions.
        k: How many chunks to find for each; fewer are found where there are fewer.
        show_progress_bar: Show the progress in shards of the first process; by default only in a terminal, after two seconds.

    Raises:
        FileNotFoundError: If a shard is missing.
        ValueError: If another model made the shards, one is damaged, an id occurs in two of them, a question is empty, or the
            retriever has a reranker.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> from embedtune.retrieval.shards import encode_shards, write_corpus
        >>> folder = Path(tempfile.mkdtemp())
        >>> chunks = [et.Chunk("door.md#0", "door.md", "Turn the key to the left.", 0, 25)]
        >>> retriever = et.Retriever.from_chunks("minilm", chunks)
        >>> write_corpus(chunks, folder / "corpus")
        >>> _ = encode_shards(retriever.model, folder / "corpus", output_dir=folder / "vectors")
        >>> search_shards(retriever, folder / "vectors", ["How do I unlock the door?"], k=1).ids
        [['door.md#0']]
    """
    whole("k", k)
    if retriever.reranker is not None:
        raise ValueError("search_shards() ranks by vectors and words. Give retriever.with_reranker(None).")
    fusion, vectors = retriever.fusion, encode_questions(retriever.encoder, questions)
    known = {"model_fingerprint": model_fingerprint(retriever.model, side="document")}
    with gathering() as gather:
        require_same(Path(folder) / MANIFEST, read_manifest(folder), known)
        own = own_shards(folder)
        counted = _indexes(own, "Counting words", show_progress_bar) if fusion.word_weight else ()
        words = corpus_words(counted, questions, gather)
        best: list[list[Scored]] = [[] for _ in questions]
        for index in _indexes(own, "Searching", show_progress_bar):
            best = merged([best, _best_of(index, words, fusion, questions, vectors, k)], k)
        together = merged(gather(best), k)
        sizes = gather([(said_by(path)["corpus_fingerprint"], parquet.read_metadata(path).num_rows) for path in own])
    _require_unique(together, folder)
    fingerprints, num_rows = zip(*sorted(one for some in sizes for one in some), strict=True)
    return Found(
        ids=[[chunk for _, chunk, _ in row] for row in together],
        scores=[[-score for score, _, _ in row] for row in together],
        word_scores=[[word for _, _, word in row] for row in together],
        num_chunks=sum(num_rows),
        fingerprint=hashlib.sha256("\n".join(fingerprints).encode()).hexdigest(),
    )


def rows_of_shards(folder: str | Path, column: str, values: Iterable[str]) -> pyarrow.Table:
    """Return the rows of all shards that have one of some values in a column, sorted by id and without vectors.

    All processes call it with the same arguments, and each gets the same rows.
    """
    wanted = pyarrow.array(sorted(set(values)), pyarrow.string())
    found = [SCHEMA.empty_table()]
    with gathering() as gather:
        for path in own_shards(folder):
            table = parquet.read_table(path, columns=SCHEMA.names)
            found.append(table.filter(pyarrow.compute.is_in(table[column], wanted)).cast(SCHEMA))
        return pyarrow.concat_tables(gather(pyarrow.concat_tables(found))).sort_by("_id")


def own_shards(folder: str | Path) -> list[Path]:
    """Return the shards of this process."""
    rank, num_processes = this_process()
    return shard_paths(folder, read_manifest(folder))[rank::num_processes]


@contextmanager
def gathering() -> Iterator[Gather]:
    """Wait until all processes of a launcher are here, and yield a function that all of them call in the same order."""
    num_processes = this_process()[1]
    if num_processes == 1:
        yield lambda one: [one]
        return
    if not torch.distributed.is_initialized():
        PartialState(timeout=_PATIENCE)  # as a trainer of transformers connects them
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def gather(one: Any) -> list[Any]:
        found = [None] * num_processes
        torch.distributed.all_gather_object(found, one, group=group)
        return found

    try:
        gather(None)
        yield gather
    finally:
        torch.distributed.destroy_process_group(group)


def corpus_words(indexes: Iterable[ChunkIndex], questions: Sequence[str], gather: Gather) -> WordStatistics:
    """Return what all chunks of all processes together say about the words of questions.

    Args:
        indexes: The chunks of this process.
        questions: The questions.
        gather: What `gathering` yields.
    """
    tokens = np.unique(np.concatenate([np.empty(0, np.uint64), *map(hashed_tokens, questions)]))
    counts, num_chunks, num_tokens = np.zeros(len(tokens), dtype=np.int64), 0, 0.0
    for index in indexes:
        counts += index.words.num_chunks_of(tokens)
        num_chunks += len(index)
        num_tokens += float(index.words.lengths.sum())
    parts = gather((counts, num_chunks, num_tokens))
    totals = [sum(column) for column in zip(*parts, strict=True)]
    return WordStatistics.of_counts(tokens, totals[0], num_chunks=totals[1], num_tokens=totals[2])


def merged(parts: Sequence[Sequence[Sequence[Scored]]], k: int) -> list[list[Scored]]:
    """Return the best ``k`` of several lists for each question, from parts that each have a list for each question.

    Example:
        >>> merged([[[(-0.9, "b", 0.0), (-0.5, "c", 0.0)]], [[(-0.9, "a", 0.0)]]], k=2)
        [[(-0.9, 'a', 0.0), (-0.9, 'b', 0.0)]]
    """
    return [sorted(one for some in lists for one in some)[:k] for lists in zip(*parts, strict=True)]


def _indexes(paths: Sequence[Path], what: str, show_progress_bar: bool | None) -> Iterator[ChunkIndex]:
    """Yield the chunks of shards, one after the other."""
    hidden = (None if show_progress_bar is None else not show_progress_bar) if this_process()[0] == 0 else True
    for path in tqdm(paths, desc=what, unit="shard", delay=2 * (hidden is None), leave=False, disable=hidden):
        yield read_shard(path, read_manifest(path.parent))


def _best_of(
    index: ChunkIndex,
    words: WordStatistics,
    fusion: Fusion,
    questions: Sequence[str],
    vectors: NDArray[np.float32],
    k: int,
) -> list[list[Scored]]:
    """Return the best ``k`` chunks of an index for each question, scored as chunks of the whole corpus."""
    if not len(index):
        return [[] for _ in questions]
    parts = SomeChunks.of_corpus(index, words)
    ranking = fusion.rank_parts(parts, questions, vectors, min(k, len(index)))
    by_words = fusion.word_scores(index.words, questions, ranking.positions, corpus=words)
    columns = (array.tolist() for array in (ranking.scores, ranking.positions, by_words))
    return [
        [(-score, index.ids[p], word) for score, p, word in zip(*row, strict=True) if p >= 0]
        for row in zip(*columns, strict=True)
    ]


def _require_unique(rows: Sequence[Sequence[Scored]], folder: str | Path) -> None:
    for row in rows:
        ids = [chunk for _, chunk, _ in row]
        if len(set(ids)) < len(ids):
            twice = next(chunk for chunk in ids if ids.count(chunk) > 1)
            raise ValueError(f"The chunk id {twice!r} occurs in two shards in {folder}. Ids must be unique.")
