"""Cuts documents into chunks of bounded length, with exact offsets and stable ids."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import Literal, get_args

from tqdm.auto import tqdm

from embedtune.corpus.markdown import Heading, outline
from embedtune.corpus.splitting import fixed_spans, structure_spans
from embedtune.corpus.tokens import token_counter
from embedtune.types import Chunk, Document

logger = logging.getLogger(__name__)

Strategy = Literal["structure", "fixed"]


def chunk_documents(
    documents: Sequence[Document],
    *,
    max_tokens: int = 400,
    overlap: int = 0,
    tokenizer: object = "o200k_base",
    strategy: Strategy = "structure",
    show_progress_bar: bool | None = None,
) -> list[Chunk]:
    r"""Cut documents into chunks of at most ``max_tokens`` tokens.

    ``document.text[chunk.start:chunk.end] == chunk.text`` holds for each chunk, and the chunks of a document hold all
    that is visible in it. The same documents give the same chunks, with the same ids.

    Args:
        documents: As ``read_documents`` returns them.
        max_tokens: No chunk has more, counted on its own text. The prompt and the special tokens of a model come
            on top, and so does what ``Chunk.text_with`` adds.
        overlap: Each chunk but the first starts up to that many tokens earlier, within its section.
        tokenizer: Whose tokens: anything that ``token_counter`` takes, for instance the model to tune.
        strategy: ``"structure"`` prefers to cut before a heading, then between paragraphs, lines, sentences and words;
            keeps a heading with what follows it and code together where it can; and joins small sections, for
            chunks of half of ``max_tokens`` or more. ``"fixed"`` cuts windows of ``max_tokens`` tokens, a stride of
            ``max_tokens - overlap`` apart, in the middle of words if it comes to that.
        show_progress_bar: Whether to show progress; by default in a terminal, if it takes more than a moment.

    Raises:
        ValueError: If there are no documents, two have the same id, or an argument is out of its range.

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
    counter = token_counter(tokenizer)
    hidden = None if show_progress_bar is None else not show_progress_bar
    chunks: list[Chunk] = []
    for document in tqdm(documents, desc="Chunking", unit="document", delay=2, disable=hidden):
        found = chunk_document(document, max_tokens=max_tokens, overlap=overlap, tokenizer=counter, strategy=strategy)
        if not found:
            logger.warning("Document %r has nothing but white space and gives no chunk.", document.id)
        chunks += found
    return chunks


def chunk_document(
    document: Document,
    *,
    max_tokens: int = 400,
    overlap: int = 0,
    tokenizer: object = "o200k_base",
    strategy: Strategy = "structure",
) -> list[Chunk]:
    """Cut one document into chunks; see ``chunk_documents``.

    To cut many one by one, pass ``tokenizer=token_counter(...)``, since each call copies any other tokenizer.
    The headings of a chunk are those of Markdown (``#`` or underlined) that its first character stands under,
    or in; the first of them often says the same as the title.

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
        )
        for position, ((start, end), headings) in enumerate(zip(spans, paths, strict=True))
    ]


def _heading_paths(headings: Sequence[Heading], starts: Iterable[int]) -> Iterator[tuple[str, ...]]:
    """Yield the texts of the headings that each start stands under or in, outermost first."""
    path: list[Heading] = []
    position = 0
    for start in starts:
        while position < len(headings) and headings[position].start <= start:
            path = [outer for outer in path if outer.level < headings[position].level] + [headings[position]]
            position += 1
        yield tuple(heading.text for heading in path if heading.text)


def _require_documents(documents: Sequence[Document]) -> None:
    if len(documents) == 0:
        raise ValueError("there are no documents to chunk. Read some with read_documents().")
    seen: set[str] = set()
    for position, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(
                f"documents[{position}] is a {type(document).__name__}, not a Document. "
                f"Make documents of paths, strings or a dataset with read_documents()."
            )
        if document.id in seen:
            raise ValueError(f"two documents have the id {document.id!r}, and so would their chunks. Make ids unique.")
        seen.add(document.id)


def _require_sizes(max_tokens: int, *, overlap: int, strategy: str) -> None:
    for name, value in (("max_tokens", max_tokens), ("overlap", overlap)):
        if not isinstance(value, Integral):  # numpy's too
            raise TypeError(f"{name} is {value!r}, a {type(value).__name__}. Give a whole number of tokens.")
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}. A chunk needs at least one token; 200 to 800 are usual.")
    if not 0 <= overlap < max_tokens:
        raise ValueError(f"overlap is {overlap} and must be at least 0 and less than max_tokens, {max_tokens}.")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy is {strategy!r}. Choose one of {', '.join(map(repr, get_args(Strategy)))}.")
