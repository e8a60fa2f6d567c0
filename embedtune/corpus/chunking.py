"""Cuts documents into chunks of bounded length, with exact offsets and stable ids."""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Literal, get_args

from tqdm.auto import tqdm

from embedtune.bounds import whole
from embedtune.corpus.markdown import Heading, outline
from embedtune.corpus.splitting import fixed_spans, structure_spans
from embedtune.corpus.tokens import FastCounter, token_counter
from embedtune.tables import Listing, Row, excerpt
from embedtune.text import text_hash
from embedtune.types import Chunk, Document, Question

logger: logging.Logger = logging.getLogger(__name__)

Strategy = Literal["structure", "fixed"]

MAX_UNKNOWN_SHARE = 0.5  # of the characters of a chunk
MAX_NAMED = 10  # documents in a message

_LONG_WORD = re.compile(r"\S{101}")  # WordPiece does not look into words of more than 100 characters

# What a model puts around a text, such as [CLS] and [SEP], with some room.
_SPECIAL_TOKENS = 6


class Chunks(Listing[Chunk]):
    """Chunks, as a list that a notebook shows as a table."""

    header: ClassVar[Row] = ("id", "headings", "text")

    @staticmethod
    def row(one: Chunk) -> Row:
        """Return the cells of a chunk."""
        return one.id, " > ".join(one.headings), excerpt(one.text)


def chunk_documents(
    documents: Sequence[Document],
    *,
    max_tokens: int = 400,
    overlap: int = 0,
    tokenizer: object = None,
    strategy: Strategy = "structure",
    show_progress_bar: bool | None = None,
) -> list[Chunk]:
    r"""Cut documents into chunks of at most ``max_tokens`` tokens.

    For each chunk ``document.text[chunk.start:chunk.end] == chunk.text``, and the chunks of a document contain all its
    visible text. The same documents give the same chunks, with the same ids.

    Args:
        documents: As ``read_documents`` returns them.
        max_tokens: The largest number of tokens of a chunk's own text. The prompt and the special tokens of a model, and
            the context of ``Chunk.text_with``, come on top.
        overlap: Each chunk but the first starts up to this many tokens earlier, within its section.
        tokenizer: The tokenizer that counts, see ``token_counter``: the model to tune, to count as it does, or
            ``"o200k_base"`` for the tokens of a language model. By default tokens are counted roughly, without a download.
        strategy: ``"structure"`` prefers to cut before a heading, then between paragraphs, lines, sentences and words;
            keeps headings with their text, and code together, if possible; and joins small sections to chunks of at
            least half of ``max_tokens``. ``"fixed"`` cuts windows of ``max_tokens`` tokens with a stride of
            ``max_tokens - overlap``, if necessary in the middle of a word.
        show_progress_bar: Whether to show progress; by default only in a terminal, after two seconds.

    Raises:
        ValueError: If there are no documents, two have the same id, or an argument is out of range.

    Example:
        >>> import numpy as np
        >>> class Characters:
        ...     def token_starts(self, text):
        ...         return np.arange(len(text))
        >>> document = Document("pump.md", "# Pump\n\nPress both buttons.\n\n# Door\n\nLift it, and then pull.")
        >>> for chunk in chunk_documents([document], max_tokens=40, tokenizer=Characters()):
        ...     print(chunk.id, chunk.start, chunk.headings, repr(chunk.text))
        pump.md#0 0 ('Pump',) '# Pump\n\nPress both buttons.'
        pump.md#1 29 ('Door',) '# Door\n\nLift it, and then pull.'
    """
    _require_documents(documents)
    _require_sizes(max_tokens, overlap=overlap, strategy=strategy)
    _warn_if_cut(tokenizer, max_tokens)
    counter = token_counter(tokenizer)
    hidden = None if show_progress_bar is None else not show_progress_bar
    chunks: list[Chunk] = []
    blank: list[str] = []
    for document in tqdm(documents, desc="Chunking", unit="document", delay=2, disable=hidden):
        found = chunk_document(document, max_tokens=max_tokens, overlap=overlap, tokenizer=counter, strategy=strategy)
        if not found:
            blank.append(document.id)
        chunks += found
    if blank:
        logger.warning("%d documents have only white space and give no chunk: %s.", len(blank), _named(blank))
    if isinstance(counter, FastCounter):
        _report_unknown(chunks, counter)
    return Chunks(chunks)


def _warn_if_cut(tokenizer: object, max_tokens: int) -> None:
    """Warn now, before anybody pays for questions about what the model never reads."""
    limit = getattr(tokenizer, "max_seq_length", None)
    if isinstance(limit, int) and max_tokens > limit:
        logger.warning(
            "max_tokens=%d is more than the %d tokens that this model reads: the end of longer chunks would not be embedded. "
            "Pass max_tokens=%d or less, or load_model(..., max_seq_length=%d) if the model allows it.",
            max_tokens,
            limit,
            limit - _SPECIAL_TOKENS,
            max_tokens + _SPECIAL_TOKENS,
        )


def _report_unknown(chunks: Sequence[Chunk], counter: FastCounter) -> None:
    """Warn of chunks that a model cannot read: all of them would get nearly the same vector."""
    doubtful = (chunk for chunk in chunks if not chunk.text.isascii() or _LONG_WORD.search(chunk.text))
    unknown = [chunk for chunk in doubtful if counter.unknown_share(chunk.text) > MAX_UNKNOWN_SHARE]
    if unknown:
        logger.warning(
            "%d of %d chunks are mostly unknown to the tokenizer, and the model cannot distinguish their vectors; words still "
            "find them: %s. Choose a model that knows their language, or leave them out.",
            len(unknown),
            len(chunks),
            _named(sorted({chunk.document_id for chunk in unknown})),
        )


def _named(ids: Sequence[str]) -> str:
    """Return some ids, as they are safe to log."""
    return ", ".join(map(repr, ids[:MAX_NAMED])) + (f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else "")


def questions_of(documents: Sequence[Document], chunks: Sequence[Chunk]) -> list[Question]:
    """Return the questions that documents came with, each with the chunk that answers it.

    They come from the column that ``read_documents(..., question_column=...)`` named. Of a document that was cut into several
    chunks it is not known which one answers, so its questions are left out, with a warning.

    Args:
        documents: As ``read_documents`` returns them.
        chunks: Their chunks.

    Example:
        >>> document = Document("faq.csv:1", "Press both buttons.", questions=("How do I restart it?",))
        >>> chunk = Chunk("faq.csv:1#0", "faq.csv:1", "Press both buttons.", 0, 19)
        >>> [(question.text, question.chunk_ids) for question in questions_of([document], [chunk])]
        [('How do I restart it?', ('faq.csv:1#0',))]
    """
    chunks_of: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        chunks_of.setdefault(chunk.document_id, []).append(chunk)
    asked = [document for document in documents if document.questions and document.id in chunks_of]
    cut = [document.id for document in asked if len(chunks_of[document.id]) > 1]
    if cut:
        logger.warning(
            "The questions of %d documents are left out, because these were cut into several chunks: %s. Raise max_tokens.",
            len(cut),
            _named(cut),
        )
    return [
        Question(f"{chunk.id}/asked-{number}", text, (chunk.id,), chunk_hashes=(text_hash(chunk.text),))
        for document in asked
        for chunk in chunks_of[document.id]
        if len(chunks_of[document.id]) == 1
        for number, text in enumerate(document.questions)
    ]


def chunk_document(
    document: Document,
    *,
    max_tokens: int = 400,
    overlap: int = 0,
    tokenizer: object = None,
    strategy: Strategy = "structure",
) -> list[Chunk]:
    """Cut one document into chunks; see ``chunk_documents``.

    To cut many one by one, pass ``tokenizer=token_counter(...)``: each call copies any other tokenizer. The headings of a
    chunk are the Markdown headings (``#`` or underlined) above its first character; the first often equals the title.

    Example:
        >>> import numpy as np
        >>> class Words:
        ...     def token_starts(self, text):
        ...         return np.arange(len(text.split()))
        >>> [chunk.text for chunk in chunk_document(Document("a", "One. Two."), max_tokens=2, tokenizer=Words())]
        ['One. Two.']
    """
    _require_sizes(max_tokens, overlap=overlap, strategy=strategy)
    counter = token_counter(tokenizer)
    text, structure = document.text, outline(document.text)
    if strategy == "fixed":
        spans = fixed_spans(text, counter=counter, max_tokens=max_tokens, overlap=overlap)
    else:
        spans = structure_spans(text, structure, counter=counter, max_tokens=max_tokens, overlap=overlap)
    paths = _heading_paths(structure.headings, [start for start, _ in spans])
    return [
        Chunk(
            id=f"{document.id}#{position}",
            document_id=document.id,
            text=text[start:end],
            start=start,
            end=end,
            headings=headings,
            title=document.title,
            keywords=document.keywords,
            page=bisect_right(document.page_starts, start),
        )
        for position, ((start, end), headings) in enumerate(zip(spans, paths, strict=True))
    ]


def _heading_paths(headings: Sequence[Heading], starts: Iterable[int]) -> Iterator[tuple[str, ...]]:
    """Yield the texts of the headings above each start, outermost first."""
    path: list[Heading] = []
    position = 0
    for start in starts:
        while position < len(headings) and headings[position].start <= start:
            path = [outer for outer in path if outer.level < headings[position].level] + [headings[position]]
            position += 1
        yield tuple(heading.text for heading in path if heading.text)


def _require_documents(documents: Sequence[Document]) -> None:
    if len(documents) == 0:
        raise ValueError("There are no documents to chunk. Read some with read_documents().")
    seen: set[str] = set()
    for position, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(
                f"documents[{position}] is a {type(document).__name__}, not a Document. "
                f"Read paths, strings or a dataset with read_documents()."
            )
        if document.id in seen:
            raise ValueError(
                f"Two documents have the id {document.id!r}, and their chunks would share ids. Make ids unique."
            )
        seen.add(document.id)


def _require_sizes(max_tokens: int, *, overlap: int, strategy: str) -> None:
    for name, value in (("max_tokens", max_tokens), ("overlap", overlap)):
        whole(name, value, at_least=None)
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1; 200 to 800 are usual.")
    if not 0 <= overlap < max_tokens:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than max_tokens={max_tokens}.")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy={strategy!r} is unknown. Choose one of {', '.join(map(repr, get_args(Strategy)))}.")
