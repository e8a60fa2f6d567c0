"""Questions that two or three related chunks answer together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.near_duplicates import NEAR_DUPLICATE_JACCARD, shingles
from embedtune.questions.asking import Subject, ask_about
from embedtune.questions.generation import check_chunks
from embedtune.questions.requests.replies import FOLDER
from embedtune.questions.round_trip import ranking_of
from embedtune.questions.template import RequestTemplate, default_instructions

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM
    from embedtune.questions.records import Questions
    from embedtune.questions.requests.dispatch import Mode
    from embedtune.types import Chunk, ContextPart

SEVERAL = "several"
"""The style of these questions."""

_NUM_CANDIDATES = 20  # neighbours of a chunk that are looked at


def generate_multi_chunk_questions(
    chunks: Sequence[Chunk],
    llm: LLM,
    *,
    retriever: Any,
    chunks_together: int = 2,
    per_group: int = 2,
    context: Sequence[ContextPart] = (),
    output_dir: str | Path = FOLDER,
    mode: Mode = "live",
    budget_usd: float | None = None,
    language: str = "",
    num_workers: int = 16,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Questions:
    """Let a language model write questions that need several related chunks, all of which are then relevant.

    Each chunk is put together with those most similar to it according to a retriever, and no chunk is in two groups. The
    replies go into the same ledger as those of `generate_questions`, and the same filters apply. The style of these
    questions is ``"several"``. Pass both to `build_dataset`: ``[*questions, *multi_chunk_questions]``.

    Args:
        chunks: What to ask about.
        llm: The model.
        retriever: Finds related chunks: a tuned `Retriever`, ``et.BM25()``, an encoder or a SentenceTransformer.
        chunks_together: How many chunks a question is about: 2 or 3.
        per_group: How many questions to ask for about each group. Models write none where chunks have little in common.
        context: What comes before a chunk's text when it is compared, as in ``build_dataset``.
        output_dir: The folder of the ledger.
        mode: ``"live"`` or ``"batch"``.
        budget_usd: The most that everything in ``output_dir`` may ever cost.
        language: The language to write in; by default that of the chunks.
        num_workers: How many requests may run at once.
        seed: Draws the styles of questions, and the order of groups.
        show_progress_bar: Whether to show progress; by default only in a terminal.

    Raises:
        ValueError: If there are fewer than two chunks, or an argument is out of its range.
        TypeError: If the retriever can neither rank nor encode.
        GenerationStoppedError: If no request can work.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> from embedtune.llms.protocol import Completion, Price
        >>> class Parrot:
        ...     name, price, max_tokens = "parrot", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def body(self, request): return {"text": request.text}
        ...     def send(self, body): return {"said": "1. How do I restart the pump, and what do I do before?"}
        ...     def read(self, reply): return Completion(reply["said"])
        >>> texts = ["Restart the pump with both buttons.", "Before you restart the pump, close the valve."]
        >>> chunks = [et.Chunk(f"{i}#0", str(i), text, 0, len(text)) for i, text in enumerate(texts)]
        >>> options = {"retriever": et.BM25(), "output_dir": tempfile.mkdtemp()}
        >>> questions = generate_multi_chunk_questions(chunks, Parrot(), **options)
        >>> questions[0].chunk_ids, questions[0].style
        (('0#0', '1#0'), 'several')
    """
    check_chunks(chunks, llm)
    if chunks_together not in (2, 3):
        raise ValueError(f"chunks_together is {chunks_together!r} and must be 2 or 3.")
    if per_group not in range(1, len(_STYLES) + 1):
        raise ValueError(f"per_group is {per_group!r} and must be from 1 to {len(_STYLES)}.")
    groups = related_chunks(chunks, retriever, size=chunks_together, context=context)
    if not groups:
        raise ValueError(f"the retriever finds no related chunks among the {len(chunks)}. Pass more chunks.")
    return ask_about(
        groups,
        llm,
        RequestTemplate(default_instructions(SEVERAL), per_group, language, seed, _STYLES[:per_group]),
        style=SEVERAL,
        output_dir=output_dir,
        mode=mode,
        num_workers=num_workers,
        budget_usd=budget_usd,
        show_progress_bar=show_progress_bar,
    )


_STYLES = ("natural", "vague", "keyword", "misspelt")  # of questions about several chunks, in this order


def related_chunks(
    chunks: Sequence[Chunk], retriever: Any, *, size: int, context: Sequence[ContextPart] = ()
) -> list[Subject]:
    """Put each chunk together with those most similar to it, no chunk in two groups.

    Near-duplicates say nothing more together, and are not put together.

    Example:
        >>> import embedtune as et
        >>> texts = ["red pump valve", "blue door key", "pump valve", "door key"]
        >>> chunks = [et.Chunk(str(i), "a", text, 0, len(text)) for i, text in enumerate(texts)]
        >>> [[chunk.id for chunk in group] for group in related_chunks(chunks, et.BM25(), size=2)]
        [['0', '2'], ['1', '3']]
    """
    texts = [chunk.text_with(context) for chunk in chunks]
    rankings = ranking_of(retriever, texts, texts, min(_NUM_CANDIDATES, len(texts)))
    parts = [shingles(chunk.text) for chunk in chunks]
    groups: list[Subject] = []
    used: set[int] = set()
    for first, ranking in enumerate(rankings.tolist()):
        if first in used:
            continue
        group = [first]
        for other in ranking:
            is_free = other >= 0 and other not in used and other != first
            if is_free and len(group) < size and not any(_is_near(parts[other], parts[i]) for i in group):
                group.append(other)
        if len(group) == size:
            used.update(group)
            groups.append(tuple(chunks[i] for i in group))
    return groups


def _is_near(first: frozenset[str], second: frozenset[str]) -> bool:
    return len(first & second) >= NEAR_DUPLICATE_JACCARD * len(first | second)
