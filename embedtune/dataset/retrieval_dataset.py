"""RetrievalDataset: corpus, queries and judgements, and the only place where columns are renamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from datasets import Dataset, Features, List, Value

from embedtune.dataset import sources, storage, views
from embedtune.dataset.checks import check_choices, check_records
from embedtune.dataset.groups import document_groups, duplicate_groups
from embedtune.dataset.splits import (
    SplitBy,
    check_sizes,
    split_as_given,
    split_by_document,
    split_by_question,
)
from embedtune.tables import html_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from embedtune.dataset.sources import Pair
    from embedtune.hub import Publication
    from embedtune.types import Chunk, ContextPart, Question

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
        "document_group": Value("string"),
        "duplicate_group": Value("string"),
    }
)
_QUERY_FEATURES = Features(
    {name: Value("string") for name in ("_id", "text", "style", "answer", "model", "prompt_version")}
)
_QREL_FEATURES = Features({"query-id": Value("string"), "corpus-id": Value("string"), "score": Value("int64")})


class SplitOptions(TypedDict, total=False):
    """The arguments of `build_dataset` that say how to split."""

    test_size: float
    dev_size: float
    test_seen_size: float
    split_by: SplitBy
    seed: int


@dataclass(frozen=True, repr=False)
class RetrievalDataset:
    """Chunks, questions, and which chunk answers which question, as three BEIR-shaped tables.

    Made by `build_dataset`, `from_pairs`, `from_llama_index`, `load_from_disk` or `load_from_hub`.

    Attributes:
        corpus: Every chunk, also those without a question: ``_id``, ``text`` (what is embedded, with its context) and
            where it comes from.
        queries: Every question: ``_id``, ``text``, and how it is asked, what the answer is and who wrote it, where known.
        qrels: For each split a table of ``query-id``, ``corpus-id`` and ``score``. A question's first row is the chunk
            that it was written for.
        split_by: How the splits were made: ``"document"``, ``"question"`` or ``"given"``.
        context: What was put before each chunk's text; serving must do the same.

    Example:
        >>> data = RetrievalDataset.from_pairs(
        ...     [("Press both buttons.", ["How do I restart?"]), ("Turn the key left.", ["How do I lock it?"])],
        ...     dev_size=0,
        ...     test_size=0.5,
        ... )
        >>> len(data.corpus), data.splits
        (2, ['train', 'test'])
    """

    corpus: Dataset
    queries: Dataset
    qrels: Mapping[str, Dataset]
    split_by: str = "document"
    context: tuple[ContextPart, ...] = ()

    def __post_init__(self) -> None:
        for name, table, columns in (
            ("corpus", self.corpus, ("_id", "text")),
            ("queries", self.queries, ("_id", "text")),
            *((f"qrels[{split!r}]", table, ("query-id", "corpus-id", "score")) for split, table in self.qrels.items()),
        ):
            if missing := [column for column in columns if column not in table.column_names]:
                raise ValueError(f"{name} has the columns {table.column_names}, and lacks {missing}.")
        for split in self.qrels:
            self._check_ids(split)

    def _check_ids(self, split: str) -> None:
        for column, known, name in (
            ("query-id", self.query_texts, "queries"),
            ("corpus-id", self.corpus_texts, "corpus"),
        ):
            if unknown := [i for i in self.qrels[split][column][:] if i not in known]:
                raise ValueError(f"qrels[{split!r}] names {column} {unknown[0]!r}, which is not in {name}.")

    @property
    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.qrels)

    @cached_property
    def corpus_texts(self) -> dict[str, str]:
        """The text to embed of each chunk id."""
        # The slice reads a column at once; without it, datasets reads row by row, which takes forty times as long.
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
        relevant: dict[str, list[str]] = {}
        for query, chunk, score in zip(table["query-id"][:], table["corpus-id"][:], table["score"][:], strict=True):
            if score > 0:
                relevant.setdefault(query, []).append(chunk)
        return relevant

    def pairs(self, split: str, *, with_ids: bool = False) -> Dataset:
        """Return rows of ``anchor`` (a question) and ``positive`` (a chunk that answers it).

        What losses with in-batch negatives take, embedtune's and sentence-transformers' own.

        Args:
            split: Which questions.
            with_ids: Add a ``label`` of equally many numbers in every row: what the positive says, then everything
                else that is known to answer the question (near-duplicates have one number), filled up by repetition.
                `InBatchNegativesLoss` uses it to leave right answers out of the negatives.
        """
        return views.pairs(self, split, with_ids=with_ids)

    def triplets(self, split: str, *, num_negatives: int = 5, seed: int = 0) -> Dataset:
        """Return rows of ``anchor`` (a chunk), ``positive`` (its question) and ``negative`` (another chunk's question).

        The roles of "Fine-tuning Embeddings for RAG applications" (Sharafudinov, 2024), but negatives are drawn from the
        same split alone (never a test question for training), with a seed, and never from questions that the chunk,
        a near-duplicate or an overlapping neighbour answers.

        Args:
            split: Which questions.
            num_negatives: Rows for each question; fewer where the split does not hold so many other questions.
            seed: Draws the negatives.
        """
        return views.triplets(self, split, num_negatives=num_negatives, seed=seed)

    def labelled_pairs(self, split: str, *, num_negatives: int = 5, seed: int = 0) -> Dataset:
        """Return rows of ``anchor`` (a chunk), ``candidate`` (a question) and ``label`` (1.0 if it is answered, else -1.0).

        Args:
            split: Which questions.
            num_negatives: Unanswered questions drawn for each answered one; a repeated row is kept once.
            seed: Draws the negatives.
        """
        return views.labelled_pairs(self, split, num_negatives=num_negatives, seed=seed)

    def save_to_disk(self, path: str | Path) -> None:
        """Write the dataset to a folder of Parquet files in BEIR's layout.

        An older dataset at ``path`` stays until the new one is whole.

        Raises:
            FileExistsError: If something else stands at ``path``.
        """
        storage.save(self, path)

    @classmethod
    def load_from_disk(cls, path: str | Path) -> RetrievalDataset:
        """Read what `save_to_disk` wrote."""
        return cls(**storage.load(path))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        dry_run: bool = False,
        token: str | None = None,
        commit_message: str = "Upload questions and chunks",
    ) -> Publication:
        """Upload the dataset to the Hub in one commit, private unless told otherwise.

        ``datasets.load_dataset(repo_id, "corpus")`` (or ``"queries"``, or without a name the judgements) reads it too.
        The whole text of chunks and questions is uploaded; the card itself has none of it.

        Args:
            repo_id: ``"organisation/name"``; created if it does not exist.
            private: False to publish for everyone. A repository that is public already is refused otherwise.
            dry_run: Only return what would be uploaded.
            token: For the Hub; the one of ``hf auth login`` where nothing is given.
            commit_message: Of the commit.

        Returns:
            The files, the card and the ``revision``; print it to see them.
        """
        return storage.push(self, repo_id, private=private, dry_run=dry_run, token=token, message=commit_message)

    @classmethod
    def load_from_hub(cls, repo_id: str, *, revision: str | None = None, token: str | None = None) -> RetrievalDataset:
        """Download what `push_to_hub` uploaded."""
        return cls.load_from_disk(storage.download(repo_id, revision=revision, token=token))

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[Pair] | Dataset,
        *,
        chunk_column: str = "chunk",
        question_column: str = "question",
        **options: Unpack[SplitOptions],
    ) -> RetrievalDataset:
        """Build a dataset from (chunk, question) pairs that exist already; equal chunk texts are one chunk.

        Each distinct chunk counts as a document of its own, near-duplicates as one.

        Args:
            pairs: Tuples of a chunk and a question (or a list of questions), or a Dataset with such columns.
            chunk_column: The Dataset's column of chunk texts.
            question_column: The Dataset's column of questions (texts, or lists of texts).
            **options: ``test_size``, ``dev_size``, ``test_seen_size``, ``split_by`` and ``seed`` of `build_dataset`.
        """
        chunks, questions = sources.records_from_pairs(
            pairs, chunk_column=chunk_column, question_column=question_column
        )
        return build_dataset(chunks, questions, **options)

    @classmethod
    def from_llama_index(cls, path: str | Path, **options: Unpack[SplitOptions]) -> RetrievalDataset:
        """Build a dataset from the JSON that LlamaIndex's ``EmbeddingQAFinetuneDataset.save_json`` wrote.

        That format does not say which document a node comes from, so near-duplicate nodes are all that is kept together.

        Args:
            path: The JSON file.
            **options: ``test_size``, ``dev_size``, ``test_seen_size``, ``split_by`` and ``seed`` of `build_dataset`.
        """
        chunks, questions = sources.records_from_llama_index(path)
        return build_dataset(chunks, questions, **options)

    def __repr__(self) -> str:
        width = max(map(len, self.splits), default=0)
        lines = [
            f"  {split:<{width}} {questions:>6} questions about {chunks} chunks"
            for split, questions, chunks in self._split_sizes()
        ]
        return "\n".join([self._title, *lines])

    def _repr_html_(self) -> str:
        rows = [(split, f"{questions:,}", f"{chunks:,}") for split, questions, chunks in self._split_sizes()]
        return f"<p>{escape(self._title)}</p>{html_table(['split', 'questions', 'chunks asked about'], rows)}"

    @property
    def _title(self) -> str:
        documents = len(set(self.corpus["document_id"][:])) if "document_id" in self.corpus.column_names else "?"
        return (
            f"RetrievalDataset: {len(self.corpus)} chunks of {documents} documents, {len(self.queries)} questions, "
            f"split by {self.split_by}"
        )

    def _split_sizes(self) -> Iterator[tuple[str, int, int]]:
        """Yield each split, how many questions it has, and about how many chunks they are."""
        for split in self.splits:
            relevant = self.relevant(split)
            yield split, len(relevant), len({chunk for chunks in relevant.values() for chunk in chunks})


def build_dataset(
    chunks: Sequence[Chunk],
    questions: Sequence[Question],
    *,
    test_size: float = 0.2,
    dev_size: float = 0.1,
    test_seen_size: float = 0.0,
    split_by: SplitBy = "document",
    context: Sequence[ContextPart] = (),
    seed: int = 0,
) -> RetrievalDataset:
    """Put chunks and questions together as a dataset whose splits do not leak into one another.

    Args:
        chunks: Every chunk that will be searched, also those without a question.
        questions: The questions, each naming the chunks that answer it.
        test_size: Share of the document groups whose questions are kept for the final test.
        dev_size: Share for choosing the best checkpoint; 0 for none.
        test_seen_size: Share of the remaining questions held out as ``test_seen``: new questions about chunks that are
            trained on. Gains there are larger than on unseen documents; report the two apart.
        split_by: ``"document"`` keeps each document, and what nearly repeats it, on one side (a question that documents
            of several sides answer is trained on with the training documents' chunks alone). ``"question"`` gives every
            chunk questions on both sides, as in "Fine-tuning Embeddings for RAG applications"; it measures known
            chunks only. ``"given"`` takes ``Question.split``.
        context: What to put before a chunk's text when it is embedded, see `Chunk.text_with`. Training, evaluation and
            serving read the same text from ``corpus``.
        seed: Draws the splits. A document group keeps its side when others are added.

    Raises:
        TypeError: If something is no chunk or no question.
        ValueError: If there is nothing to build from, an id stands twice, a question names an unknown chunk, or a split
            would be empty.

    Example:
        >>> from embedtune import Chunk, Question
        >>> chunks = [Chunk("a#0", "a", "Press both.", 0, 11), Chunk("b#0", "b", "Turn the key.", 0, 13)]
        >>> questions = [Question("a#0/0", "How do I restart?", ("a#0",)), Question("b#0/0", "How do I lock?", ("b#0",))]
        >>> build_dataset(chunks, questions, test_size=0.5, dev_size=0)
        RetrievalDataset: 2 chunks of 2 documents, 2 questions, split by document
          train      1 questions about 1 chunks
          test       1 questions about 1 chunks
    """
    check_records(chunks, questions)
    check_sizes(test_size=test_size, dev_size=dev_size, test_seen_size=test_seen_size)
    check_choices(split_by, context, questions)
    duplicates = duplicate_groups(chunks)
    group_of = document_groups(chunks, duplicates)
    if split_by == "document":
        bound = split_by_document(
            questions,
            {chunk.id: group_of[chunk.document_id] for chunk in chunks},
            test_size=test_size,
            dev_size=dev_size,
            test_seen_size=test_seen_size,
            seed=seed,
        )
    elif split_by == "question":
        bound = split_by_question(questions, test_size=test_size, dev_size=dev_size, seed=seed)
    else:
        bound = split_as_given(questions)
    return RetrievalDataset(
        corpus=_corpus_table(chunks, group_of=group_of, duplicates=duplicates, context=context),
        queries=_queries_table(bound),
        qrels=_qrels_tables(bound),
        split_by=split_by,
        context=tuple(context),
    )


def _corpus_table(
    chunks: Sequence[Chunk], *, group_of: Mapping[str, str], duplicates: Sequence[str], context: Sequence[ContextPart]
) -> Dataset:
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
            "document_group": group_of[chunk.document_id],
            "duplicate_group": duplicate,
        }
        for chunk, duplicate in zip(chunks, duplicates, strict=True)
    ]
    return Dataset.from_list(rows, features=_CORPUS_FEATURES)


def _queries_table(questions: Sequence[Question]) -> Dataset:
    rows = [
        {
            "_id": question.id,
            "text": question.text,
            "style": question.style,
            "answer": question.answer,
            "model": question.model,
            "prompt_version": question.prompt_version,
        }
        for question in questions
    ]
    return Dataset.from_list(rows, features=_QUERY_FEATURES)


def _qrels_tables(questions: Sequence[Question]) -> dict[str, Dataset]:
    """Return a table for each split that has a question, in the usual order of splits."""
    rows: dict[str, list[dict[str, str | int]]] = {}
    for question in questions:
        rows.setdefault(question.split, []).extend(
            {"query-id": question.id, "corpus-id": chunk_id, "score": 1} for chunk_id in question.chunk_ids
        )
    order = [*(name for name in SPLIT_ORDER if name in rows), *(name for name in rows if name not in SPLIT_ORDER)]
    return {name: Dataset.from_list(rows[name], features=_QREL_FEATURES) for name in order}
