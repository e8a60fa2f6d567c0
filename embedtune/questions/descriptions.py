"""Contextual chunks: a language model writes where each chunk stands in its document, to be embedded with it."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.llms.prices import Estimate, estimate
from embedtune.llms.protocol import Completion, Request
from embedtune.llms.structured import context_tags, escaped, object_in, schema_of
from embedtune.questions.generation import check_chunks
from embedtune.questions.requests.replies import FOLDER, MALFORMED, answered
from embedtune.questions.template import default_instructions
from embedtune.text import storable

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM
    from embedtune.questions.requests.dispatch import Mode
    from embedtune.types import Chunk, Document

logger: logging.Logger = logging.getLogger(__name__)

SCHEMA = schema_of({"description": {"type": "string"}})
MAX_CHARACTERS = 1_000  # of a description: one that is longer is not one

_TOKENS = 90  # of a reply
_PART = 200_000  # characters of a document that a request shows: about 50,000 tokens
_MARGIN = 20_000  # characters that a part shows of the next


def generate_descriptions(
    chunks: Sequence[Chunk],
    documents: Sequence[Document],
    llm: LLM,
    *,
    output_dir: str | Path = FOLDER,
    mode: Mode = "live",
    budget_usd: float | None = None,
    num_workers: int = 16,
    show_progress_bar: bool | None = None,
) -> list[Chunk]:
    """Let a language model write a sentence or two that say where each chunk stands in its document.

    This is Anthropic's "contextual retrieval" (2024), for chunks that do not name what they are about. The whole document is
    sent with each chunk; Claude reads it from its cache of prompts after the first. To use the descriptions, name them
    as context: ``build_dataset(chunks, questions, context=["title", "description"])``. Training, evaluation and serving
    then embed the same text. A chunk that is added to the retriever later needs a description, too.

    Replies are stored in the ledger of `generate_questions`: the same call again sends nothing. See
    `embedtune.questions.descriptions.estimate_descriptions` for the cost before anything is sent.

    Args:
        chunks: The chunks.
        documents: The documents that they were cut from.
        llm: The model. A small one will do.
        output_dir: The folder of the ledger.
        mode: ``"live"`` or ``"batch"``.
        budget_usd: The most that everything in ``output_dir`` may ever cost. If all descriptions are estimated to cost
            more, nothing is sent.
        num_workers: How many requests may run at once.
        show_progress_bar: Whether to show progress; by default only in a terminal.

    Returns:
        The chunks with their descriptions. One whose reply is not usable has none; a warning counts them.

    Raises:
        ValueError: If a chunk's document is missing, the budget does not suffice, or an argument is out of its range.
        GenerationStoppedError: If no request can work.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> from embedtune.llms.protocol import Price
        >>> class Scripted:
        ...     name, price, max_tokens = "scripted", Price(0, 0), 100
        ...     def prepare(self): ...
        ...     def body(self, request): return {"text": request.text}
        ...     def send(self, body): return {"said": '{"description": "Restarting the pump X1."}'}
        ...     def read(self, reply): return Completion(reply["said"])
        >>> document = et.Document("pump.md", "The pump X1. Press both buttons.")
        >>> chunk = et.Chunk("pump.md#0", "pump.md", "Press both buttons.", 13, 32)
        >>> described = generate_descriptions([chunk], [document], Scripted(), output_dir=tempfile.mkdtemp())
        >>> print(described[0].text_with(["description"]))
        Restarting the pump X1.
        Press both buttons.
    """
    requests = _requests(chunks, documents, llm, num_together=num_workers)
    if budget_usd is not None:
        _require_budget(_quote(requests, llm), budget_usd, mode)
    described: dict[str, str] = {}
    failed: Counter[str] = Counter()
    with answered(
        requests,
        llm,
        version="descriptions",
        label="Descriptions",
        output_tokens=_TOKENS,
        is_whole=lambda _, completion: bool(_description(completion)),
        output_dir=output_dir,
        mode=mode,
        num_workers=num_workers,
        budget_usd=budget_usd,
        show_progress_bar=show_progress_bar,
    ) as replies:
        for chunk in chunks:
            reply = replies.get(chunk.id)
            description = "" if isinstance(reply, str) else _description(reply)
            described[chunk.id] = description
            if not description:
                failed[reply[:60] if isinstance(reply, str) else MALFORMED] += 1
    if failed:
        logger.warning(
            "%d of %d chunks have no description (%s). Run the same again to ask for them once more.",
            failed.total(),
            len(chunks),
            ", ".join(f"{number} {reason}" for reason, number in failed.most_common()),
        )
    return [replace(chunk, description=described[chunk.id]) for chunk in chunks]


def estimate_descriptions(chunks: Sequence[Chunk], documents: Sequence[Document], llm: LLM) -> Estimate:
    """Estimate the tokens and dollars that `generate_descriptions` will take, without sending anything.

    A model that caches prompts reads each document once at the full price. In batches some reads miss the cache.

    Example:
        >>> import embedtune as et
        >>> document = et.Document("a", "Press both buttons. " * 1000)
        >>> chunks = [et.Chunk(f"a#{i}", "a", "Press both buttons. " * 100, 2000 * i, 2000 * i + 2000) for i in range(10)]
        >>> estimate_descriptions(chunks, [document], et.AnthropicLLM("claude-haiku-4-5")).num_requests
        10
    """
    return _quote(_requests(chunks, documents, llm, num_together=1), llm)


def _quote(requests: Mapping[str, partial[Request]], llm: LLM) -> Estimate:
    return estimate(llm, (build() for build in requests.values()), output_tokens=_TOKENS)


def _require_budget(quote: Estimate, budget_usd: float, mode: Mode) -> None:
    needed = quote.batch_usd if mode == "batch" else quote.live_usd
    if needed is not None and needed > budget_usd:
        raise ValueError(
            f"budget_usd={budget_usd:g} does not suffice to describe all chunks, and nothing was sent. {quote}. Raise "
            f"budget_usd, describe fewer chunks, or use mode='batch'."
        )


def _requests(
    chunks: Sequence[Chunk], documents: Sequence[Document], llm: LLM, *, num_together: int
) -> dict[str, partial[Request]]:
    """Return what builds the request about each chunk.

    As many documents take turns as there are workers, so that the first request about a document fills the provider's cache
    before the next one reads it, and all about a document follow while it is still there.
    """
    check_chunks(chunks, llm)
    by_id = {document.id: document for document in documents}
    if missing := [chunk for chunk in chunks if chunk.document_id not in by_id]:
        raise ValueError(
            f"the document {missing[0].document_id!r} of chunk {missing[0].id!r} is not among the {len(documents)} documents."
        )
    system = default_instructions("describe")
    parts: dict[tuple[str, int], list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        parts[chunk.document_id, chunk.start // _PART].append(chunk)
    groups = list(parts.items())
    requests = {}
    for start in range(0, len(groups), max(1, num_together)):
        together = groups[start : start + max(1, num_together)]
        for turn in zip_longest(*(members for _, members in together)):
            for ((document_id, part), _), chunk in zip(together, turn, strict=True):
                if chunk is not None:
                    requests[chunk.id] = partial(_request, system, by_id[document_id], part, chunk)
    return requests


def _request(system: str, document: Document, part: int, chunk: Chunk) -> Request:
    shown = escaped(document.text[part * _PART : (part + 1) * _PART + _MARGIN])
    shared = "\n".join(["<document>", *context_tags(document.title, ()), shown, "</document>", ""])
    asked = "\n".join([*context_tags("", chunk.headings), f"<passage>\n{escaped(chunk.text)}\n</passage>"])
    return Request(system, shared + asked, SCHEMA, num_shared=len(shared))


def _description(completion: Completion) -> str:
    """Return the description in a reply, or an empty string."""
    said = (object_in(completion) or {}).get("description")
    text = " ".join(storable(said).split()) if isinstance(said, str) else ""
    return text if len(text) <= MAX_CHARACTERS else ""
