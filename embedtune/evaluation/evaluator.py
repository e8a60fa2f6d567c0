"""TopKEvaluator: how often a relevant chunk is among the first k, for models, encoders and BM25 alike."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.base.evaluation import BaseEvaluator

from embedtune.bounds import whole
from embedtune.dataset import RetrievalDataset
from embedtune.dataset.folds import document_of_questions
from embedtune.evaluation.result import Evaluation, per_query_table, search_depth
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.fingerprint import fingerprint_of
from embedtune.retrieval.retrieve import Retrieving, check_retriever, is_approximate, name_of, retrieve
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.shard_search import rows_of_shards, search_shards

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer


logger: logging.Logger = logging.getLogger(__name__)


class TopKEvaluator(BaseEvaluator):
    """Rank all chunks of the corpus for every question of a split, and look for the relevant ones.

    Call `evaluate` for the full result. In a trainer it is a sentence-transformers evaluator with the metrics of
    ``InformationRetrievalEvaluator``, and writes no files. For every ``k`` there are accuracy (also called hit rate, or
    top-k accuracy), recall, mrr, ndcg and map; if each question has one relevant chunk, recall equals accuracy. Chunks of
    equal text are equally relevant: a copy of a relevant chunk is relevant too.

    Args:
        data: The corpus, the questions and the judgements.
        split: The split whose questions are asked.
        k: The cut-offs.
        batch_size: How many texts a SentenceTransformer encodes at once.
        name: Prefix of the metric names in a trainer; by default the name of the split.
        show_progress_bar: Show the progress of encoding and searching; by default only in a terminal, after two seconds.

    Attributes:
        primary_metric: ``"{name}_ndcg@{max(k)}"``; with ``load_best_model_at_end``, set ``metric_for_best_model`` to
            ``f"eval_{evaluator.primary_metric}"``.

    Raises:
        TypeError: If ``data`` is not a `RetrievalDataset`.
        ValueError: If the split is unknown or empty, or ``k`` is not a list of positive integers up to the size of the
            corpus.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs(
        ...     [("Press both buttons.", ["How do I restart?"]), ("Turn the key left.", ["Which way does the key turn?"])],
        ...     test_size=0.5,
        ...     dev_size=0,
        ... )
        >>> evaluation = et.TopKEvaluator(data, k=(1, 2)).evaluate(et.BM25())
        >>> evaluation.metrics["accuracy@1"]
        1.0
    """

    def __init__(
        self,
        data: RetrievalDataset,
        split: str = "test",
        *,
        k: Sequence[int] = (1, 3, 5, 10),
        batch_size: int = 32,
        name: str | None = None,
        show_progress_bar: bool | None = None,
    ) -> None:
        if not isinstance(data, RetrievalDataset):
            raise TypeError(
                f"data is a {type(data).__name__}. Make a RetrievalDataset with build_dataset(...) or "
                "RetrievalDataset.from_pairs(...)."
            )
        super().__init__()
        relevant = data.relevant(split)
        if not relevant:
            raise ValueError(f"The split {split!r} has no questions. Choose another of {list(data.qrels)}.")
        self.split = split
        self.k: tuple[int, ...] = _checked_k(k, len(data.corpus_texts))
        self.batch_size: int = whole("batch_size", batch_size)
        self.name: str = name or split
        self.show_progress_bar = show_progress_bar
        self.primary_metric: str = f"{self.name}_ndcg@{self.k[-1]}"
        self._corpus = dict(sorted(data.corpus_texts.items()))
        self._queries = {query: data.query_texts[query] for query in sorted(relevant)}
        self._relevant = _with_copies({query: relevant[query] for query in self._queries}, self._corpus)
        self.fingerprint: str = _fingerprint(self._queries, self._relevant, self._corpus)
        self._documents = _documents(data, split, self._relevant)

    def evaluate(self, retriever: Retrieving | str, *, name: str | None = None) -> Evaluation:
        """Search the whole corpus for every question.

        Args:
            retriever: A SentenceTransformer, any object with the methods of `Encoder` (its vectors are compared by
                cosine) or of `Ranker`, such as `BM25`, or the string ``"bm25"``.
            name: Its name in tables.

        Raises:
            TypeError: If it is none of these.
            ValueError: If its vectors or rankings are not usable: NaN, a wrong shape, a chunk that is ranked twice.
        """
        if isinstance(retriever, str) and retriever.lower() == "bm25":
            retriever = BM25()
        check_retriever(retriever)
        return self._evaluate(retriever, name=name or name_of(retriever), model=fingerprint_of(retriever))

    def _evaluate(self, retriever: Retrieving, *, name: str, model: str = "") -> Evaluation:
        positions, scores = retrieve(
            retriever,
            self._queries,
            self._corpus,
            search_depth(self.k, len(self._corpus)),
            batch_size=self.batch_size,
            show_progress_bar=self.show_progress_bar,
        )
        ids = list(self._corpus)
        self._check_distinct(positions, ids, name)
        found = [[ids[position] for position in row if position >= 0] for row in positions.tolist()]
        columns = {"scores": _of_found(scores, positions)}
        if isinstance(retriever, Retriever) and retriever.reranker is None:  # a reranker's score is not a sum
            words = retriever.word_scores(list(self._queries.values()), list(self._corpus.values()), positions)
            columns["word_scores"] = _of_found(words, positions)
        return self._record(
            found,
            columns,
            relevant=self._relevant,
            name=name,
            model=model,
            num_chunks=len(self._corpus),
            fingerprint=self.fingerprint,
            approximate=is_approximate(retriever),
        )

    def evaluate_shards(self, retriever: Retriever, folder: str | Path, *, name: str | None = None) -> Evaluation:
        """Search all chunks that `encode_shards` wrote, for every question, with all processes of a launcher or in this one.

        All processes call it, and each gets the result. The corpus of the dataset may be as small as the chunks that answer its
        questions; what is searched, counted and found are the chunks of the shards. Results for the same shards of a corpus can
        be compared with each other, whatever model encoded them.

        Args:
            retriever: Its model and its words are evaluated, as `search_shards` uses them.
            folder: The ``output_dir`` of `encode_shards`.
            name: Its name in tables.

        Raises:
            ValueError: If a chunk that answers a question is not in the shards with the text that it has in the dataset, or
                `search_shards` refuses the retriever or the shards.
        """
        relevant = self._relevant_in(folder)
        found = search_shards(
            retriever,
            folder,
            list(self._queries.values()),
            k=search_depth(self.k, sys.maxsize),
            show_progress_bar=self.show_progress_bar,
        )
        return self._record(
            found.ids,
            {"scores": found.scores, "word_scores": found.word_scores},
            relevant=relevant,
            name=name or name_of(retriever),
            model=fingerprint_of(retriever),
            num_chunks=found.num_chunks,
            fingerprint=_fingerprint(self._queries, relevant, {"shards": found.fingerprint}),
        )

    def _relevant_in(self, folder: str | Path) -> dict[str, list[str]]:
        """Return the ids of the chunks of shards that answer each question, copies included."""
        texts = {self._corpus[chunk] for chunks in self._relevant.values() for chunk in chunks}
        rows = rows_of_shards(folder, "text", texts)
        there = dict(zip(rows["_id"].to_pylist(), rows["text"].to_pylist(), strict=True))
        judged = sorted({chunk for chunks in self._relevant.values() for chunk in chunks})
        if missing := [chunk for chunk in judged if there.get(chunk) != self._corpus[chunk]]:
            raise ValueError(
                f"{len(missing)} chunks that answer questions, such as {missing[0]!r}, are not in {folder} with the texts that the "
                "dataset has. Encode these chunks too, with the same context."
            )
        return _with_copies(self._relevant, dict(sorted(there.items())))

    def _record(
        self,
        found: Sequence[Sequence[str]],
        columns: Mapping[str, list[list[float]]],
        *,
        relevant: Mapping[str, list[str]],
        **about: Any,
    ) -> Evaluation:
        """Return the result for the chunks found for each question, best first, with columns of their scores."""
        rows: dict[str, list[Any]] = {
            "query-id": list(self._queries),
            "query": list(self._queries.values()),
            "relevant": list(relevant.values()),
            "rank": [_rank(chunks, wanted) for chunks, wanted in zip(found, relevant.values(), strict=True)],
            "retrieved": [chunks[: self.k[-1]] for chunks in found],
            **{column: [row[: self.k[-1]] for row in values] for column, values in columns.items()},
        }
        return Evaluation(
            split=self.split, k=self.k, per_query=per_query_table(rows), documents=self._documents, **about
        )

    def _check_distinct(self, positions: NDArray[np.int64], ids: Sequence[str], name: str) -> None:
        """Raise if a ranking has a chunk twice, which would count one hit several times."""
        ordered = np.sort(positions, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if twice.any():
            row, place = np.argwhere(twice)[0]
            position = int(ordered[row, place])
            raise ValueError(
                f"{name!r} ranks a chunk more than once for the question {list(self._queries)[row]!r}: position {position}, "
                f"chunk {ids[position]!r}. Return each position once, and -1 where fewer chunks are found."
            )

    def __call__(
        self,
        model: SentenceTransformer,
        output_path: str | None = None,  # noqa: ARG002 - part of the interface
        epoch: int = -1,
        steps: int = -1,
    ) -> dict[str, float]:
        """Evaluate a model during training.

        Args:
            model: The model in its current state.
            output_path: Not used: nothing is written.
            epoch: The current epoch, for the model card.
            steps: The current step, for the model card.

        Returns:
            Each metric, with the name of the evaluator as prefix: ``"test_ndcg@10"`` for instance.
        """
        evaluation = self._evaluate(model, name=self.name)  # without the fingerprint, which takes time at each step
        metrics = {f"{self.name}_{metric}": value for metric, value in evaluation.metrics.items()}
        logger.info("%s: %.4f", self.primary_metric, metrics[self.primary_metric])
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)
        return metrics


def _with_copies(relevant: Mapping[str, Sequence[str]], corpus: Mapping[str, str]) -> dict[str, list[str]]:
    """Add to the relevant chunks of each query all chunks of equal text, in the order of their ids."""
    ids_of: dict[str, list[str]] = {}
    for chunk, text in corpus.items():
        ids_of.setdefault(text, []).append(chunk)
    return {
        query: list(dict.fromkeys(copy for chunk in chunks for copy in ids_of[corpus[chunk]]))
        for query, chunks in relevant.items()
    }


def _of_found(values: NDArray[np.float32], positions: NDArray[np.int64]) -> list[list[float]]:
    """Return the values of the chunks that were found for each question."""
    return [row[found].tolist() for row, found in zip(values, positions >= 0, strict=True)]


def _rank(found: Sequence[str], relevant: Sequence[str]) -> int | None:
    return next((rank for rank, chunk in enumerate(found, start=1) if chunk in relevant), None)


def _checked_k(k: Sequence[int], num_chunks: int) -> tuple[int, ...]:
    """Return the distinct cut-offs in ascending order."""
    values = list(k) if isinstance(k, Iterable) else []
    if not values or not all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v > 0 for v in values):
        raise ValueError(f"k must be a list of positive integers such as (1, 3, 5, 10), got {k!r}.")
    if max(values) > num_chunks:
        raise ValueError(
            f"k={max(values)} is larger than the corpus of {num_chunks} chunks. Choose values well below the size of the corpus."
        )
    return tuple(sorted({int(v) for v in values}))


def _documents(data: RetrievalDataset, split: str, relevant: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """Return the document group of each question where the split holds documents that are not trained on."""
    if (
        data.split_by != "document"
        or split in ("train", "test_seen")
        or "document_group" not in data.corpus.column_names
    ):
        return None
    group_of = document_of_questions(data, relevant)
    return tuple(group_of[query] for query in relevant)


def _fingerprint(queries: Mapping[str, str], relevant: Mapping[str, Sequence[str]], corpus: Mapping[str, str]) -> str:
    """Return the SHA-256 of the questions, the judgements and the corpus, all sorted by id."""
    digest = hashlib.sha256()
    for row in [*((query, text, sorted(relevant[query])) for query, text in queries.items()), *corpus.items()]:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()
