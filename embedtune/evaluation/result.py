"""Evaluation: what a retriever found for each question, and the metrics computed from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, List, Value

from embedtune.bounds import whole
from embedtune.evaluation.metrics import metrics_at_k
from embedtune.evaluation.statistics import Interval, mean_intervals
from embedtune.storage import reading, replace_file
from embedtune.tables import html_table, text_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Ranks are computed at least this deep, to distinguish near misses from misses.
_MIN_DEPTH = 100

_FEATURES = {
    "query-id": Value("string"),
    "query": Value("string"),
    "relevant": List(Value("string")),
    "rank": Value("int64"),
    "retrieved": List(Value("string")),
    "scores": List(Value("float32")),
    "word_scores": List(Value("float32")),
}


def per_query_table(columns: Mapping[str, Sequence[Any]]) -> Dataset:
    """Return the rows of `Evaluation.per_query`; ``word_scores`` may be missing."""
    features = Features(
        {name: feature for name, feature in _FEATURES.items() if name != "word_scores" or name in columns}
    )
    if not all(columns["relevant"]):
        raise ValueError("a question has no relevant chunks")
    return Dataset.from_dict({name: columns[name] for name in features}, features=features)


def search_depth(k: Sequence[int], num_chunks: int) -> int:
    """Return how deep to search for the relevant chunks.

    Example:
        >>> search_depth((1, 3, 10), num_chunks=5000)
        100
    """
    return min(num_chunks, max(*k, _MIN_DEPTH))


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The result of `TopKEvaluator.evaluate`. Printing it shows a table.

    Attributes:
        name: What was evaluated.
        split: The split whose questions were asked.
        k: The cut-offs, ascending.
        per_query: A row for each question, sorted by id: ``query-id``, ``query``, ``relevant`` (the ids of the relevant
            chunks), ``rank`` (of the first relevant chunk, from 1, or None beyond ``depth``), ``retrieved`` (the ids of the
            first ``max(k)`` chunks) and their ``scores``. For a `Retriever` also ``word_scores``: what words contribute to
            each score; the vectors contribute the rest.
        num_chunks: The size of the corpus.
        fingerprint: SHA-256 of the questions, the judgements and the corpus. Only results with equal fingerprints can be
            compared.
        model: Fingerprint of the retriever: of the weights and settings of a SentenceTransformer (see `model_fingerprint`),
            or the attribute ``fingerprint`` of another retriever, or the name of its class.
        approximate: Whether the search was approximate, so that chunks may have been overlooked.
        documents: The document group of each question, in the order of ``per_query``, where the claim is about documents that
            are not trained on: questions about one document are found or missed together. None if it is about chunks.
        repeats: Tables like ``per_query`` of the same training with other seeds. Metrics are then means over all seeds, and
            intervals cover the draw of the seed.
    """

    name: str
    split: str
    k: tuple[int, ...]
    per_query: Dataset
    num_chunks: int
    fingerprint: str
    model: str = ""
    approximate: bool = False
    documents: tuple[str, ...] | None = None
    repeats: tuple[Dataset, ...] = ()

    @property
    def num_queries(self) -> int:
        """The number of questions."""
        return len(self.per_query)

    @property
    def depth(self) -> int:
        """How deep the relevant chunks were searched for."""
        return search_depth(self.k, self.num_chunks)

    @property
    def primary_metric(self) -> str:
        """The metric that decides which of two results is better: nDCG at the largest k."""
        return f"ndcg@{self.k[-1]}"

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over all questions: accuracy (hit rate), recall, mrr, ndcg and map, at each k."""
        return {metric: float(values.mean()) for metric, values in self.per_query_metrics.items()}

    @cached_property
    def per_query_metrics(self) -> dict[str, NDArray[np.float64]]:
        """Each metric for each question, the mean over the seeds, of shape ``(num_queries,)``, in the order of ``per_query``."""
        return {name: values.mean(axis=0) for name, values in self.per_seed_metrics.items()}

    @cached_property
    def per_seed_metrics(self) -> dict[str, NDArray[np.float64]]:
        """Each metric for each seed and question, of shape ``(num_seeds, num_queries)``."""
        tables = [self._metrics_of(table) for table in (self.per_query, *self.repeats)]
        return {name: np.stack([table[name] for table in tables]) for name in tables[0]}

    def _metrics_of(self, per_query: Dataset) -> dict[str, NDArray[np.float64]]:
        relevant, retrieved = per_query["relevant"][:], per_query["retrieved"][:]
        hits = np.zeros((len(relevant), self.k[-1]), dtype=bool)
        for row, ids, found in zip(hits, relevant, retrieved, strict=True):
            row[: len(found)] = [chunk in ids for chunk in found]
        num_relevant = np.array([len(ids) for ids in relevant])
        return {name: values for k in self.k for name, values in metrics_at_k(hits, num_relevant, k=k).items()}

    @cached_property
    def clusters(self) -> NDArray[np.int64]:
        """The number of each question's document, or of the chunk it was written for, from 0, of shape ``(num_queries,)``."""
        number: dict[str, int] = {}
        names = self.documents or [chunks[0] for chunks in self.per_query["relevant"][:]]
        return np.array([number.setdefault(name, len(number)) for name in names])

    @property
    def spread(self) -> str:
        """The primary metric of each seed, as a reader sees it: ``ndcg@10 of each: 0.830, 0.826``."""
        shown = ", ".join(f"{mean:.3f}" for mean in self.per_seed_metrics[self.primary_metric].mean(axis=1))
        return f"{self.primary_metric} of each: {shown}"

    def intervals(self, *, confidence_level: float = 0.95) -> dict[str, Interval]:
        """Return the confidence interval of each metric; questions about one chunk are not independent observations."""
        values = np.stack(list(self.per_query_metrics.values()), axis=1)
        by_seed = np.stack([seeds.mean(axis=1) for seeds in self.per_seed_metrics.values()], axis=1)
        bounds = mean_intervals(values, self.clusters, confidence_level=confidence_level, by_seed=by_seed)
        return {
            metric: Interval(float(low), float(high))
            for metric, low, high in zip(self.per_query_metrics, *bounds, strict=True)
        }

    def misses(self, k: int = 10) -> Dataset:
        """Return the rows of ``per_query`` that have no relevant chunk among the first ``k``.

        Raises:
            ValueError: If ``k`` is beyond ``depth``.
        """
        if not 1 <= k <= self.depth:
            raise ValueError(f"k={k} is out of range: ranks are known from 1 to {self.depth}.")
        ranks = np.array(self.per_query["rank"][:], dtype=np.float64)  # a missing rank is NaN
        return self.per_query.select(np.flatnonzero(~(ranks <= k)))

    def save(self, path: str | Path) -> None:
        """Write the result to a JSON file, with the texts of the questions, but not of the chunks."""
        content = {
            "name": self.name,
            "split": self.split,
            "k": self.k,
            "num_chunks": self.num_chunks,
            "fingerprint": self.fingerprint,
            "model": self.model,
            "approximate": self.approximate,
            "documents": self.documents,
            "metrics": self.metrics,  # for other programs; `load` computes them again
            "per_query": self.per_query.to_dict(),
            "repeats": [table.to_dict() for table in self.repeats],
        }
        replace_file(path, json.dumps(content))

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file does not contain an evaluation.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as err:
            raise ValueError(f"{path} is not valid JSON, or is truncated: {err}.") from err
        if not isinstance(content, dict) or "per_query" not in content:
            raise ValueError(f"{path} does not contain an evaluation. Pass a file that Evaluation.save wrote.")
        with reading(path, remedy="Pass a file that Evaluation.save wrote."):
            return cls(
                name=content["name"],
                split=content["split"],
                k=_cutoffs(content["k"]),
                per_query=per_query_table(content["per_query"]),
                num_chunks=content["num_chunks"],
                fingerprint=content["fingerprint"],
                model=content.get("model", ""),
                approximate=content.get("approximate", False),
                documents=tuple(content["documents"]) if content.get("documents") else None,
                repeats=tuple(per_query_table(table) for table in content.get("repeats", ())),
            )

    def __repr__(self) -> str:
        return f"{self._title}\n{text_table(*self._table)}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title)}</p>{html_table(*self._table)}"

    @property
    def _title(self) -> str:
        title = f"{self.name} on {self.split}: {self.num_queries} questions, {self.num_chunks} chunks"
        if self.repeats:
            title = f"{title}, means of {1 + len(self.repeats)} trainings ({self.spread})"
        return f"{title}, approximate search" if self.approximate else title

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        kinds = dict.fromkeys(metric.partition("@")[0] for metric in self.metrics)
        rows = [[kind, *(f"{self.metrics[f'{kind}@{k}']:.3f}" for k in self.k)] for kind in kinds]
        return ["", *(f"@{k}" for k in self.k)], rows


def _cutoffs(k: Sequence[int]) -> tuple[int, ...]:
    if not k:
        raise ValueError("k has no cut-off")
    return tuple(whole("k", one) for one in k)
