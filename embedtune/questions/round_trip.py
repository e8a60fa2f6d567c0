"""The round trip: does a question lead back to its own chunk, and to no other?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedtune.bounds import whole
from embedtune.questions.records import Dropped, Questions
from embedtune.text import text_hash, words
from embedtune.types import Chunk, ContextPart, Encoder, Question, Ranker

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOT_FOUND = "own chunk not found"
AMBIGUOUS = "ambiguous"

_CLEARLY_BEHIND = 5  # ranks between another chunk at the top and the question's own
_MIN_ANSWER_WORDS = 2
_BLOCK = 1024  # queries scored at once


def filter_by_round_trip(
    questions: Questions,
    chunks: Sequence[Chunk],
    *,
    retrievers: Sequence[Ranker | Encoder],
    held_out: Collection[str],
    k: int = 50,
    context: Sequence[ContextPart] = (),
) -> Questions:
    """Drop questions that do not lead to their chunk, and find other chunks that answer them.

    Each retriever ranks the whole corpus for each question. A question is kept if its chunk is among the first ``k`` of
    all of them (Dai et al., "Promptagator", 2022, with a much larger ``k``: a small one keeps only what the base model
    can already do). A chunk that all retrievers rank above the question's own is relevant as well if it has all words of
    the answer. If it does not, but is first everywhere and the question's own chunk is clearly behind, the question is
    ``"ambiguous"`` and dropped.

    Args:
        questions: The questions.
        chunks: Every chunk that will be searched.
        retrievers: BM25 and a base model, for instance ``[et.BM25(), et.load_model("minilm")]``: objects with
            ``rank``, with ``encode_queries`` and ``encode_documents``, or a SentenceTransformer.
        held_out: Ids of questions that are never dropped: those of the test split, for instance
            ``data.relevant("test")``. A test set filtered by a model would favour that model.
        k: Among how many chunks the relevant one must be.
        context: What comes before a chunk's text, as in ``build_dataset``.

    Raises:
        ValueError: If there is no retriever, or a question's chunk is not among the chunks.
        TypeError: If a retriever can neither rank nor encode.

    Example:
        >>> import embedtune as et
        >>> chunks = [Chunk("a#0", "a", "Press both.", 0, 11), Chunk("b#0", "b", "Turn the key.", 0, 13)]
        >>> questions = Questions((Question("a#0/0", "turn which key?", ("a#0",)),), (), {}, tuple(chunks))
        >>> filter_by_round_trip(questions, chunks, retrievers=[et.BM25()], held_out=(), k=1).dropped[0].reason
        'own chunk not found'
    """
    if not retrievers:
        raise ValueError("there are no retrievers. Pass BM25 and a base model: retrievers=[et.BM25(), model].")
    whole("k", k)
    position = {chunk.id: i for i, chunk in enumerate(chunks)}
    for question in questions:
        if unknown := [chunk_id for chunk_id in question.chunk_ids if chunk_id not in position]:
            raise ValueError(f"question {question.id!r} is about chunk {unknown[0]!r}, which is not among the chunks.")
    checked = [question for question in questions if question.id not in held_out and question.split != "test"]
    if not checked:
        return questions
    texts = [chunk.text_with(context) for chunk in chunks]
    rankings = [
        ranking_of(retriever, [question.text for question in checked], texts, min(k, len(texts)))
        for retriever in retrievers
    ]
    verdicts = {
        question.id: _verdict(question, [ranking[i].tolist() for ranking in rankings], chunks, position)
        for i, question in enumerate(checked)
    }
    kept = tuple(v for q in questions if isinstance(v := verdicts.get(q.id, q), Question))
    dropped = tuple(Dropped(q, v) for q in questions if isinstance(v := verdicts.get(q.id, q), str))
    return replace(questions, kept=kept, dropped=(*questions.dropped, *dropped))


def _verdict(
    question: Question, rankings: Sequence[list[int]], chunks: Sequence[Chunk], position: dict[str, int]
) -> Question | str:
    """Return the question, perhaps with more chunks, or the reason to drop it."""
    own = {position[chunk_id] for chunk_id in question.chunk_ids}
    places = [next((place for place, i in enumerate(ranking) if i in own), None) for ranking in rankings]
    behind = [place for place in places if place is not None]
    if len(behind) < len(rankings):
        return NOT_FOUND
    before = set.intersection(*(set(r[:place]) for r, place in zip(rankings, behind, strict=True)))
    answering = sorted(i for i in before if _holds_answer(question, chunks[i]))
    if answering:
        return question.with_labels(question.labels | {chunks[i].id: text_hash(chunks[i].text) for i in answering})
    tops = {ranking[0] for ranking in rankings}
    if len(tops) == 1 and tops <= before and min(behind) >= _CLEARLY_BEHIND:
        return AMBIGUOUS
    return question


def _holds_answer(question: Question, chunk: Chunk) -> bool:
    answer = words(question.answer)
    return len(answer) >= _MIN_ANSWER_WORDS and set(answer) <= set(words(chunk.text))


def ranking_of(retriever: Any, queries: Sequence[str], documents: Sequence[str], k: int) -> NDArray[np.int64]:
    """Return the positions of the best ``k`` documents of each query, of shape ``(num_queries, k)``, best first."""
    if isinstance(retriever, Ranker):
        return np.asarray(retriever.rank(queries, documents, k)[0])
    encode_queries = getattr(retriever, "encode_queries", None) or getattr(retriever, "encode_query", None)
    encode_documents = getattr(retriever, "encode_documents", None) or getattr(retriever, "encode_document", None)
    if encode_queries is None or encode_documents is None:
        raise TypeError(
            f"a retriever is a {type(retriever).__name__}, which can neither rank() nor encode_queries() and "
            f"encode_documents(). Pass BM25(), an Encoder or a SentenceTransformer."
        )
    query_vectors, vectors = _unit(encode_queries(list(queries))), _unit(encode_documents(list(documents)))
    blocks = [
        np.argsort(-(query_vectors[start : start + _BLOCK] @ vectors.T), axis=1, kind="stable")[:, :k]
        for start in range(0, len(queries), _BLOCK)
    ]
    return np.concatenate(blocks)


def _unit(vectors: Any) -> NDArray[np.float32]:
    rows = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.maximum(lengths, np.float32(1e-12))
    return unit
