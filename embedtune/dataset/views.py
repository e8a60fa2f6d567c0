"""The tables that losses take, with no column besides: sentence-transformers would train on it as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from embedtune.bounds import whole
from embedtune.text import same_question

if TYPE_CHECKING:
    from embedtune.dataset.tables import RetrievalTables

# Arrow's plain string column holds 2 GB; tables are put together from pieces that stay below.
_ROWS_PER_PIECE = 100_000


def pairs(data: RetrievalTables, split: str, *, with_ids: bool) -> Dataset:
    """Build rows of a question and a chunk that answers it."""
    query_texts, corpus_texts = data.query_texts, data.corpus_texts
    judgements = [(q, c) for q, cs in data.relevant(split).items() for c in cs]
    columns: dict[str, list[Any]] = {
        "anchor": [query_texts[q] for q, _ in judgements],
        "positive": [corpus_texts[c] for _, c in judgements],
    }
    if with_ids:
        contents = Contents(data)
        answers = contents.answers(split)
        rows = [[contents.id_of[c], *sorted(answers[q] - {contents.id_of[c]})] for q, c in judgements]
        width = max((len(row) for row in rows), default=1)
        columns["label"] = [row + row[:1] * (width - len(row)) for row in rows]
    return table(columns)


def triplets(data: RetrievalTables, split: str, *, num_negatives: int, seed: int) -> Dataset:
    """Build rows of a chunk, a question that it answers, and a question of the same split that it does not answer."""
    rows = list(_with_negatives(data, split, num_negatives=num_negatives, seed=seed))
    query_texts, corpus_texts = data.query_texts, data.corpus_texts
    columns = {
        "chunk": [corpus_texts[c] for c, _, _ in rows],
        "question": [query_texts[q] for _, q, _ in rows],
        "other_question": [query_texts[n] for _, _, n in rows],
    }
    return table(columns)


def labelled_pairs(data: RetrievalTables, split: str, *, num_negatives: int, seed: int) -> Dataset:
    """Build rows of a chunk, a question, and 1.0 if the chunk answers the question, else -1.0."""
    rows: dict[tuple[str, str, float], None] = {}  # a dict keeps the order and drops duplicates
    for chunk, question, negative in _with_negatives(data, split, num_negatives=num_negatives, seed=seed):
        rows[(chunk, question, 1.0)] = None
        rows[(chunk, negative, -1.0)] = None
    query_texts, corpus_texts = data.query_texts, data.corpus_texts
    columns: dict[str, list[Any]] = {
        "chunk": [corpus_texts[c] for c, _, _ in rows],
        "question": [query_texts[q] for _, q, _ in rows],
        "label": [label for _, _, label in rows],
    }
    return table(columns)


class Contents:
    """The content of each chunk, as an id that near-duplicates share, and the contents that answer each question.

    A relevant chunk, its near-duplicates and its overlapping neighbours are never negatives of the question: pushing them
    away would teach the model that correct answers are wrong.

    Args:
        data: The dataset whose chunks get ids.
    """

    def __init__(self, data: RetrievalTables) -> None:
        corpus = data.corpus
        chunk_ids = corpus["_id"][:]
        names = corpus["duplicate_group"][:] if "duplicate_group" in corpus.column_names else chunk_ids
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.id_of: dict[str, int] = {chunk: number[name] for chunk, name in zip(chunk_ids, names, strict=True)}
        self._neighbours = _overlapping_neighbours(corpus)
        self._data = data

    def answers(self, split: str) -> dict[str, set[int]]:
        """Map each question of a split to the contents that answer it; questions of equal text share theirs."""
        relevant = self._data.relevant(split)
        by_text: dict[str, set[int]] = defaultdict(set)
        texts = self._data.query_texts
        for question, chunks in relevant.items():
            for chunk in chunks:
                related = [chunk, *self._neighbours.get(chunk, ())]
                by_text[same_question(texts[question])].update(self.id_of[c] for c in related)
        return {question: by_text[same_question(texts[question])] for question in relevant}


def chunks_for_training(data: RetrievalTables, split: str) -> list[str]:
    """Return the ids of the chunks that may be trained on with a split, in the order of the corpus.

    Documents and near-duplicates that only other splits ask about are left out: once training has used a chunk as a
    negative, its document is not unseen any more.
    """
    ids = data.corpus["_id"][:]
    kept = set(ids)
    for column in ("document_group", "duplicate_group"):
        names = data.corpus[column][:] if column in data.corpus.column_names else ids
        name_of = dict(zip(ids, names, strict=True))
        of_split = {
            name: {name_of[c] for cs in data.relevant(name).values() for c in cs} for name in {*data.qrels, split}
        }
        held_out = set().union(*(of for name, of in of_split.items() if name != split)) - of_split[split]
        kept -= {chunk for chunk, name in name_of.items() if name in held_out}
    return [chunk for chunk in ids if chunk in kept]


def _overlapping_neighbours(corpus: Dataset) -> dict[str, list[str]]:
    """Map each chunk to the chunks of its document that share characters with it."""
    if not {"document_id", "start", "end"} <= set(corpus.column_names):
        return {}
    spans: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for chunk, document, start, end in zip(
        corpus["_id"][:], corpus["document_id"][:], corpus["start"][:], corpus["end"][:], strict=True
    ):
        spans[document].append((start, end, chunk))
    neighbours: dict[str, list[str]] = defaultdict(list)
    for chunks in spans.values():
        chunks.sort()
        for i, (_, end, chunk) in enumerate(chunks):
            for start, _, other in chunks[i + 1 :]:
                if start >= end:
                    break
                neighbours[chunk].append(other)
                neighbours[other].append(chunk)
    return neighbours


def _with_negatives(
    data: RetrievalTables, split: str, *, num_negatives: int, seed: int
) -> Iterable[tuple[str, str, str]]:
    """Yield (chunk, question it answers, question it does not answer), ``num_negatives`` for each judgement."""
    whole("num_negatives", num_negatives)
    whole("seed", seed, at_least=0)
    relevant = data.relevant(split)
    contents = Contents(data)
    answers = contents.answers(split)
    pool = list(relevant)
    answered_by: dict[int, set[int]] = defaultdict(set)
    for position, question in enumerate(pool):
        for content in answers[question]:
            answered_by[content].add(position)
    rng = np.random.default_rng(seed)
    for question, chunks in relevant.items():
        for chunk in chunks:
            excluded = answered_by[contents.id_of[chunk]]
            for position in _draw(rng, len(pool), excluded, num_negatives, chunk=chunk, split=split):
                yield chunk, question, pool[position]


def _draw(rng: np.random.Generator, size: int, excluded: set[int], count: int, *, chunk: str, split: str) -> list[int]:
    """Draw up to ``count`` different positions below ``size`` that are not excluded."""
    if len(excluded) >= size:
        raise ValueError(
            f"Chunk {chunk!r} answers every question of split {split!r}, so there is no other question. Add questions "
            "about other chunks, or train on data.pairs(...)."
        )
    if count + len(excluded) > size // 2:  # drawing until one fits would take long
        allowed = [i for i in range(size) if i not in excluded]
        return [allowed[i] for i in rng.permutation(len(allowed))[:count]]
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        position = int(rng.integers(size))
        if position not in excluded:
            drawn[position] = None
    return list(drawn)


def table(columns: Mapping[str, list[Any]]) -> Dataset:
    """Make a Dataset of any size."""
    num_rows = len(next(iter(columns.values())))
    pieces = [
        Dataset.from_dict({name: values[start : start + _ROWS_PER_PIECE] for name, values in columns.items()})
        for start in range(0, max(num_rows, 1), _ROWS_PER_PIECE)
    ]
    return concatenate_datasets(pieces) if len(pieces) > 1 else pieces[0]
