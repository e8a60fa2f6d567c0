"""The record of a dataset: a corpus, queries and judgements, with their checks and look-ups."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value

from embedtune.dataset.beir import warn_of_grades, with_titles_in_texts
from embedtune.tables import html_table
from embedtune.text import text_hash
from embedtune.types import Question, require_descriptions

if TYPE_CHECKING:
    from embedtune.types import Chunk, ContextPart

SPLIT_ORDER = ("train", "dev", "test", "test_seen")

_CORPUS_FEATURES = Features(
    {
        "_id": Value("string"),
        "text": Value("string"),
        "document_id": Value("string"),
        "start": Value("int64"),
        "end": Value("int64"),
        # Not "title": BEIR readers would put a column of that name before the text.
        "document_title": Value("string"),
        "headings": List(Value("string")),
        "keywords": List(Value("string")),
        "page": Value("int64"),
        "document_group": Value("string"),
        "duplicate_group": Value("string"),
    }
)
_QUERY_FEATURES = Features(
    {name: Value("string") for name in ("_id", "text", "style", "answer", "model", "prompt_version")}
)
_QREL_FEATURES = Features(
    {
        "query-id": Value("string"),
        "corpus-id": Value("string"),
        "score": Value("int64"),
        "chunk_hash": Value("string"),
    }
)


@dataclass(frozen=True, repr=False)
class RetrievalTables:
    """Chunks, questions, and which chunk answers which question, as three BEIR-shaped tables.

    Attributes:
        corpus: Every chunk, also those without a question: ``_id``, ``text`` (what is embedded, with its context) and
            where it comes from. A column ``title``, as BEIR's corpora have it, becomes context: a line before the text.
        queries: Every question: ``_id``, ``text`` and, where known, its style, its answer and the model that wrote it.
        qrels: For each split a table of ``query-id``, ``corpus-id`` and ``score``, above 0 where the chunk is relevant; grades
            count alike. A question's first row is the chunk that it was written for. A column ``chunk_hash`` has the `text_hash` of the text that a label was given for.
        split_by: How the splits were made: ``"document"``, ``"question"`` or ``"given"``.
        context: What was put before each chunk's text; serving must do the same.
        cost_usd: What a language model was paid for the questions; None if that is not known.

    Raises:
        ValueError: If a table lacks a column, a text is empty, or ``qrels`` names an unknown id, or one whose text is not that of the label.
    """

    corpus: Dataset
    queries: Dataset
    qrels: Mapping[str, Dataset]
    split_by: str = "document"
    context: tuple[ContextPart, ...] = ()
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        for name, table, columns in (
            ("corpus", self.corpus, ("_id", "text")),
            ("queries", self.queries, ("_id", "text")),
            *((f"qrels[{split!r}]", table, ("query-id", "corpus-id", "score")) for split, table in self.qrels.items()),
        ):
            if missing := [column for column in columns if column not in table.column_names]:
                raise ValueError(
                    f"{name} has the columns {table.column_names} and lacks {missing}. Add or rename them."
                )
        check_split_names(self.qrels)
        _check_texts("corpus", self.corpus)
        _check_texts("queries", self.queries)
        if "title" in self.corpus.column_names:
            object.__setattr__(self, "corpus", with_titles_in_texts(self.corpus))
            object.__setattr__(self, "context", ("title", *(part for part in self.context if part != "title")))
        _check_not_empty("corpus", self.corpus)
        _check_not_empty("queries", self.queries)
        for split in self.qrels:
            self._check_ids(split)
            _check_scores(split, self.qrels[split])
        warn_of_grades(self.qrels)

    def _check_ids(self, split: str) -> None:
        for column, known, name in (
            ("query-id", self.query_texts, "queries"),
            ("corpus-id", self.corpus_texts, "corpus"),
        ):
            if unknown := [i for i in self.qrels[split][column][:] if i not in known]:
                raise ValueError(f"qrels[{split!r}] names {column} {unknown[0]!r}, which is not in {name}.")
        if "chunk_hash" not in self.qrels[split].column_names:
            return
        labels = dict(zip(self.qrels[split]["corpus-id"][:], self.qrels[split]["chunk_hash"][:], strict=True))
        other = [chunk for chunk, digest in labels.items() if digest and digest != text_hash(self.corpus_texts[chunk])]
        if other:
            raise ValueError(
                f"qrels[{split!r}] names chunk {other[0]!r} for a text that it no longer has ({len(other)} such chunks). Move "
                "the labels to their texts: build_dataset(chunks, data.to_questions(), split_by='given')."
            )

    @property
    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.qrels)

    @cached_property
    def corpus_texts(self) -> dict[str, str]:
        """The text to embed of each chunk id."""
        # The slice reads the whole column; without it, datasets reads row by row, which takes forty times as long.
        return dict(zip(self.corpus["_id"][:], self.corpus["text"][:], strict=True))

    @cached_property
    def query_texts(self) -> dict[str, str]:
        """The text of each question id."""
        return dict(zip(self.queries["_id"][:], self.queries["text"][:], strict=True))

    def relevant(self, split: str) -> dict[str, list[str]]:
        """Map each question of a split to the chunks that answer it, the one it was written for first."""
        if split not in self.qrels:
            raise ValueError(f"There is no split {split!r}; this dataset has {self.splits}.")
        table = self.qrels[split]
        relevant: dict[str, dict[str, None]] = {}  # an ordered set: a judgement may be there twice
        for query, chunk, score in zip(table["query-id"][:], table["corpus-id"][:], table["score"][:], strict=True):
            if score > 0:
                relevant.setdefault(query, {})[chunk] = None
        return {query: list(chunks) for query, chunks in relevant.items()}

    def __repr__(self) -> str:
        width = max(map(len, self.splits), default=0)
        lines = [
            f"  {split:<{width}} {questions:>6} questions about {chunks} chunks"
            for split, questions, chunks in self._split_sizes()
        ]
        mix = named_mix(self.styles_of(self.query_texts))
        return "\n".join([self._title, *lines, *([f"  styles: {mix}"] if mix else [])])

    def _repr_html_(self) -> str:
        rows = [(split, f"{questions:,}", f"{chunks:,}") for split, questions, chunks in self._split_sizes()]
        mix = named_mix(self.styles_of(self.query_texts))
        table = html_table(["split", "questions", "chunks asked about"], rows)
        return f"<p>{escape(self._title)}</p>{table}" + (f"<p>styles: {escape(mix)}</p>" if mix else "")

    def styles_of(self, queries: Iterable[str]) -> dict[str, int]:
        """Return how many of some questions are of each style, the most frequent first; empty if none has a style."""
        if "style" not in self.queries.column_names:
            return {}
        style_of = dict(zip(self.queries["_id"][:], self.queries["style"][:], strict=True))
        counted = Counter(style_of[query] or "" for query in queries)
        return dict(sorted(counted.items(), key=lambda one: (-one[1], one[0]))) if any(counted) else {}

    @property
    def _title(self) -> str:
        documents = len(set(self.corpus["document_id"][:])) if "document_id" in self.corpus.column_names else "?"
        return (
            f"RetrievalDataset: {len(self.corpus)} chunks of {documents} documents, {len(self.queries)} questions, "
            f"split by {self.split_by}"
        )

    def _split_sizes(self) -> Iterator[tuple[str, int, int]]:
        """Yield the name of each split, its number of questions, and the number of chunks that they are about."""
        for split in self.splits:
            relevant = self.relevant(split)
            yield split, len(relevant), len({chunk for chunks in relevant.values() for chunk in chunks})


def named_mix(styles: Mapping[str, int]) -> str:
    """Return how many questions are of each style, in words.

    Example:
        >>> named_mix({"keyword": 12, "": 3})
        '12 keyword, 3 without a style'
    """
    return ", ".join(f"{number:,} {style or 'without a style'}" for style, number in styles.items())


def questions_in(data: RetrievalTables) -> list[Question]:
    """Return the questions of a dataset; one that is in several splits is repeated under another id."""
    columns = [name for name in _QUERY_FEATURES if name != "_id" and name in data.queries.column_names]
    rows: dict[str, dict[str, Any]] = {
        row["_id"]: {name: row[name] or "" for name in columns} for row in data.queries.to_list()
    }
    seen: set[str] = set()
    found = []
    for split in data.splits:
        for query, chunks in data.relevant(split).items():
            labels = {chunk: text_hash(data.corpus_texts[chunk]) for chunk in chunks}
            name = f"{query}/{split}" if query in seen else query
            found.append(Question(name, chunk_ids=(), split=split, **rows[query]).with_labels(labels))
            seen.add(query)
    return found


def _check_texts(name: str, table: Dataset) -> None:
    """Raise a ``ValueError`` if an id is not unique or a text is missing."""
    ids, texts = table["_id"][:], table["text"][:]
    if len(set(ids)) < len(ids):
        repeated = next(one for one, number in Counter(ids).items() if number > 1)
        raise ValueError(f"{name} has the _id {repeated!r} more than once. Rename or remove the rows.")
    if wrong := [row for row, text in enumerate(texts) if not isinstance(text, str)]:
        raise ValueError(
            f"{name} has no text in row {wrong[0]} ({texts[wrong[0]]!r}, _id {ids[wrong[0]]!r}). Remove the row."
        )


def _check_not_empty(name: str, table: Dataset) -> None:
    """Raise a ``ValueError`` that names the first row whose text is empty."""
    if empty := [row for row, text in enumerate(table["text"][:]) if not text.strip()]:
        raise ValueError(
            f"The text of {name} is empty in row {empty[0]} (_id {table['_id'][empty[0]]!r}, {len(empty)} such rows). Remove "
            "them, and the judgements that name them."
        )


def _check_scores(split: str, table: Dataset) -> None:
    """Raise a ``ValueError`` if a score is not a number."""
    for row, score in enumerate(table["score"][:]):
        if not isinstance(score, (int, float)):
            raise ValueError(
                f"qrels[{split!r}] has the score {score!r} in row {row}. Give a number, 1 where the chunk is relevant."
            )


def check_split_names(names: Iterable[str]) -> None:
    """Raise a ``ValueError`` unless each name is words of letters, digits, hyphens and underscores, joined by single dots.

    A split becomes the name of a file, and a part of the dataset's card.
    """
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name):
            raise ValueError(
                f"The split name {name!r} cannot be the name of a file. Use letters, digits, hyphens and underscores, such as "
                "'test'."
            )


def corpus_table(
    chunks: Sequence[Chunk], *, group_of: Mapping[str, str], duplicates: Sequence[str], context: Sequence[ContextPart]
) -> Dataset:
    """Return the corpus: a row for each chunk."""
    require_descriptions(chunks, context)
    rows = [
        {
            "_id": chunk.id,
            "text": chunk.text_with(context),
            "document_id": chunk.document_id,
            "start": chunk.start,
            "end": chunk.end,
            "document_title": chunk.title,
            "headings": list(chunk.headings),
            "keywords": list(chunk.keywords),
            "page": chunk.page,
            "document_group": group_of[chunk.document_id],
            "duplicate_group": duplicate,
        }
        for chunk, duplicate in zip(chunks, duplicates, strict=True)
    ]
    return Dataset.from_list(rows, features=_CORPUS_FEATURES)


def queries_table(questions: Sequence[Question]) -> Dataset:
    """Return the queries: a row for each question."""
    rows = [
        {name: question.id if name == "_id" else getattr(question, name) for name in _QUERY_FEATURES}
        for question in questions
    ]
    return Dataset.from_list(rows, features=_QUERY_FEATURES)


def judgement(query: str, chunk: str, text: str) -> dict[str, str | int]:
    """Return a row of ``qrels``: a chunk, with its text in the corpus, answers a question."""
    return {"query-id": query, "corpus-id": chunk, "score": 1, "chunk_hash": text_hash(text)}


def qrels_tables(questions: Sequence[Question], corpus_texts: Mapping[str, str]) -> dict[str, Dataset]:
    """Return a table for each split that has a question, in the usual order of splits."""
    rows: dict[str, list[dict[str, str | int]]] = {}
    for question in questions:
        rows.setdefault(question.split, []).extend(
            judgement(question.id, chunk_id, corpus_texts[chunk_id]) for chunk_id in question.chunk_ids
        )
    order = [*(name for name in SPLIT_ORDER if name in rows), *(name for name in rows if name not in SPLIT_ORDER)]
    return {name: Dataset.from_list(rows[name], features=_QREL_FEATURES) for name in order}
