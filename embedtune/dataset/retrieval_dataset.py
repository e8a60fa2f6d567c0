"""RetrievalDataset: corpus, queries and judgements, and what can be made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from embedtune.bounds import whole
from embedtune.dataset import sources, storage, views
from embedtune.dataset.checks import check_choices, check_records, check_types
from embedtune.dataset.groups import document_groups, duplicate_groups
from embedtune.dataset.labels import follow_texts
from embedtune.dataset.splits import (
    SplitBy,
    check_sizes,
    split_as_given,
    split_by_document,
    split_by_question,
)
from embedtune.dataset.tables import RetrievalTables, corpus_table, qrels_tables, queries_table, questions_in

if TYPE_CHECKING:
    from datasets import Dataset
    from typing_extensions import Unpack

    from embedtune.dataset.sources import Pair
    from embedtune.hub import Publication
    from embedtune.types import Chunk, ContextPart, Question


class SplitOptions(TypedDict, total=False):
    """The arguments of `build_dataset` that say how to split."""

    test_size: float | None
    dev_size: float | None
    test_seen_size: float
    split_by: SplitBy
    seed: int


class RetrievalDataset(RetrievalTables):
    """Chunks, questions, and which chunk answers which question, as three BEIR-shaped tables.

    Made by `build_dataset`, `from_pairs`, `from_llama_index`, `load_from_disk` or `load_from_hub`.

    Attributes:
        corpus: Every chunk, also those without a question: ``_id``, ``text`` (what is embedded, with its context) and
            where it comes from. A column ``title``, as BEIR's corpora have it, becomes context: a line before the text.
        queries: Every question: ``_id``, ``text`` and, where known, its style, its answer and the model that wrote it.
        qrels: For each split a table of ``query-id``, ``corpus-id`` and ``score``, above 0 where the chunk is relevant; grades
            count alike. A question's first row is the chunk that it was written for.
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

    def pairs(self, split: str, *, with_ids: bool = False) -> Dataset:
        """Return rows of ``anchor`` (a question) and ``positive`` (a relevant chunk).

        For losses with in-batch negatives, embedtune's and sentence-transformers' own.

        Args:
            split: Which questions.
            with_ids: Add a ``label``, a list of ids of the same length in every row: the content of the positive, then
                all other contents that answer the question, padded by repeating the first. Near-duplicate chunks share
                an id. `InBatchNegativesLoss` reads it and never takes a relevant chunk as a negative.
        """
        return views.pairs(self, split, with_ids=with_ids)

    def triplets(self, split: str, *, num_negatives: int = 5, seed: int = 0) -> Dataset:
        """Return rows of ``chunk``, ``question`` (which the chunk answers) and ``other_question`` (which it does not).

        The triplets of "Fine-tuning Embeddings for RAG applications" (Sharafudinov, 2024). The other question is drawn
        from the same split, never from those that the chunk, a near-duplicate or an overlapping neighbour answers.

        Args:
            split: Which questions.
            num_negatives: Rows for each question; fewer if the split has fewer other questions.
            seed: Draws the negatives.
        """
        return views.triplets(self, split, num_negatives=num_negatives, seed=seed)

    def labelled_pairs(self, split: str, *, num_negatives: int = 5, seed: int = 0) -> Dataset:
        """Return rows of ``chunk``, ``question`` and ``label`` (1.0 if the chunk answers the question, else -1.0).

        Args:
            split: Which questions.
            num_negatives: Other questions drawn for each question; a repeated row is kept once.
            seed: Draws the negatives.
        """
        return views.labelled_pairs(self, split, num_negatives=num_negatives, seed=seed)

    def to_questions(self) -> list[Question]:
        """Return the questions with their splits and the hashes of their chunks' texts.

        When documents are read again, ``build_dataset(chunks, data.to_questions(), split_by="given")`` moves the questions to
        the chunks that have these texts now.
        """
        return questions_in(self)

    def save_to_disk(self, path: str | Path) -> None:
        """Write the dataset to a folder of Parquet files in BEIR's layout.

        An older dataset at ``path`` stays until the new one is complete.

        Raises:
            FileExistsError: If ``path`` exists and is not a saved dataset.
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
        """Upload the dataset to the Hub in one commit, to a private repository by default.

        ``datasets.load_dataset(repo_id, "corpus")`` reads it too, as do ``"queries"`` and, without a name, the judgements.
        All texts of chunks and questions are uploaded; the card quotes none of them.

        Args:
            repo_id: ``"organisation/name"``; created if it does not exist.
            private: False to publish for everyone. True refuses a repository that is already public.
            dry_run: Only return what would be uploaded.
            token: A token of the Hub; by default the one of ``hf auth login``.
            commit_message: The message of the commit.

        Returns:
            The files, the card and the ``revision``.
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
        """Build a dataset from (chunk, question) pairs; rows with the same chunk text become one chunk.

        Each distinct chunk counts as a document; near-duplicates count as one document.

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

        That format does not say which document a node comes from, so only near-duplicate nodes are kept together.

        Args:
            path: The JSON file.
            **options: ``test_size``, ``dev_size``, ``test_seen_size``, ``split_by`` and ``seed`` of `build_dataset`.
        """
        chunks, questions = sources.records_from_llama_index(path)
        return build_dataset(chunks, questions, **options)


def build_dataset(
    chunks: Sequence[Chunk],
    questions: Sequence[Question],
    *,
    test_size: float | None = None,
    dev_size: float | None = None,
    test_seen_size: float = 0.0,
    split_by: SplitBy = "document",
    context: Sequence[ContextPart] = (),
    seed: int = 0,
) -> RetrievalDataset:
    """Build a dataset from chunks and questions, with splits that do not leak into one another.

    Args:
        chunks: Every chunk that will be searched, also those without a question.
        questions: The questions, each naming the chunks that answer it.
        test_size: Share of the questions that form the test split, as nearly as whole document groups allow; 0.2 by default.
        dev_size: Share of the questions for choosing the best checkpoint, 0.1 by default; 0 for no dev split.
        test_seen_size: Share of the training questions to hold out as ``test_seen``: new questions about chunks that are
            trained on. Gains there are larger than on unseen documents; report the two separately.
        split_by: ``"document"`` keeps each document and its near-duplicates in one split; a question with relevant
            documents in several splits is trained on, with the chunks of the training documents only. ``"question"``
            puts questions about every chunk into every split, as in "Fine-tuning Embeddings for RAG applications"; it
            measures known chunks only. ``"given"`` takes ``Question.split``. Sizes that do not apply are refused.
        context: What to put before a chunk's text when it is embedded, see `Chunk.text_with`. Training, evaluation and
            serving read the same text from ``corpus``.
        seed: Draws the splits. Most document groups keep their split when others are added.

    A question that knows the texts of its chunks (``Question.chunk_hashes``: generated questions, those of a `FeedbackLog` or
    of another dataset) follows them where ids have moved, because documents were read again. Questions whose text is gone are
    set aside and counted in a warning.

    Raises:
        TypeError: If ``chunks`` or ``questions`` hold anything else.
        ValueError: If there are too few chunks or questions, an id is not unique, a question names an unknown chunk, a
            text cannot be stored as UTF-8, a size does not apply, or a split would be empty.

    Example:
        >>> from embedtune import Chunk, Question
        >>> chunks = [Chunk("a#0", "a", "Press both.", 0, 11), Chunk("b#0", "b", "Turn the key.", 0, 13)]
        >>> questions = [Question("a#0/0", "How do I restart?", ("a#0",)), Question("b#0/0", "How do I lock?", ("b#0",))]
        >>> build_dataset(chunks, questions, test_size=0.5, dev_size=0)
        RetrievalDataset: 2 chunks of 2 documents, 2 questions, split by document
          train      1 questions about 1 chunks
          test       1 questions about 1 chunks
    """
    whole("seed", seed, at_least=0)
    check_types(chunks, questions)
    check_choices(split_by, context, questions)
    cost_usd = getattr(questions, "cost_usd", None)
    questions = follow_texts(questions, chunks, context)
    check_records(chunks, questions)
    check_sizes(split_by, test_size=test_size, dev_size=dev_size, test_seen_size=test_seen_size)
    test_size, dev_size = 0.2 if test_size is None else test_size, 0.1 if dev_size is None else dev_size
    duplicates = duplicate_groups(chunks)
    group_of = document_groups(chunks, duplicates)
    if split_by == "document":
        bound = split_by_document(
            questions,
            {chunk.id: group_of[chunk.document_id] for chunk in chunks},
            {chunk.id: content for chunk, content in zip(chunks, duplicates, strict=True)},
            test_size=test_size,
            dev_size=dev_size,
            test_seen_size=test_seen_size,
            seed=seed,
        )
    elif split_by == "question":
        bound = split_by_question(questions, test_size=test_size, dev_size=dev_size, seed=seed)
    else:
        bound = split_as_given(questions)
    texts = {chunk.id: chunk.text_with(context) for chunk in chunks}
    return RetrievalDataset(
        corpus=corpus_table(chunks, group_of=group_of, duplicates=duplicates, context=context),
        queries=queries_table(bound),
        qrels=qrels_tables(bound, texts),
        split_by=split_by,
        context=tuple(context),
        cost_usd=cost_usd,
    )
