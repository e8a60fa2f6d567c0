"""Embedding models of OpenAI, and of every server that speaks its protocol."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from embedtune.llms.errors import RequestError, TemporaryError
from embedtune.llms.prices import approximate_tokens
from embedtune.llms.retries import wait_before
from embedtune.llms.sdk import call, require_sdk, without_retries
from embedtune.retrieval.vector_cache import VectorCache, vector_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_TRIES = 6

logger = logging.getLogger(__name__)

# US dollars per million tokens, of 2026-11-22.
_PRICES = {"text-embedding-3-large": 0.13, "text-embedding-3-small": 0.02, "text-embedding-ada-002": 0.10}

MAX_INPUTS = 2048
"""The most texts in one request."""
_TOKENS_PER_REQUEST = 300_000
_TOKENS_PER_TEXT = 8_192
# Tokens are estimated, so requests are planned with room; one that is too large all the same is refused, unpaid.
_ROOM = 0.7
# What a refusal says, of OpenAI's and other servers', if smaller requests may pass.
_TOO_LARGE = ("token", "batch size", "too large", "too long")


@dataclass(frozen=True)
class Quote:
    """What encoding some texts will take, see `OpenAIEncoder.quote`.

    Attributes:
        model: The model.
        num_texts: How many distinct texts.
        num_cached: How many of them are in the cache, and free.
        num_tokens: About how many tokens the others have.
        usd: About how many dollars they cost, or None where the price is not known.
    """

    model: str
    num_texts: int
    num_cached: int
    num_tokens: int
    usd: float | None

    def __str__(self) -> str:
        dollars = "price not known" if self.usd is None else f"about ${self.usd:.4f}"
        return (
            f"{self.model}: {self.num_texts - self.num_cached:,} of {self.num_texts:,} texts to encode, about "
            f"{self.num_tokens:,} tokens, {dollars}"
        )


@dataclass(frozen=True)
class OpenAIEncoder:
    """A closed embedding model in the same table: of OpenAI, or of a server with the same protocol (vLLM, Ollama, TEI).

    Vectors are kept on disk by what was embedded, so a second run costs nothing, a changed chunk costs that chunk, and a
    run that failed half-way goes on where it stopped. The cost is logged before anything is sent. Texts longer than the
    model reads are cut, and counted in a warning.

    Attributes:
        model: The model's id.
        dimensions: Ask for shorter vectors, where the model can.
        base_url: The server, for instance ``"http://localhost:11434/v1"``. Your OpenAI key is not sent there; pass a
            client if it needs a key.
        client: An ``openai.OpenAI`` of your own; by default one with the key of ``OPENAI_API_KEY``.
        query_prompt: Put before each query, for open models on a server that does not do it (``"query: "`` for e5).
        document_prompt: Put before each document.
        cache: The file that keeps the vectors.
        price: US dollars per million tokens; known for OpenAI's own models.
        max_usd: Refuse to send what costs more than this in one call, by the estimate.
        show_progress_bar: Show the progress of encoding.

    Raises:
        OptionalDependencyError: If the package ``openai`` is not installed.

    Example:
        >>> encoder = OpenAIEncoder("text-embedding-3-large", dimensions=1024)
        >>> print(encoder.quote(["How do I restart the pump?"] * 2))
        text-embedding-3-large: 1 of 1 texts to encode, about 6 tokens, about $0.0000
    """

    model: str
    dimensions: int | None = None
    base_url: str | None = None
    client: Any = field(default=None, repr=False)
    query_prompt: str = ""
    document_prompt: str = ""
    cache: str | Path = Path(".embedtune") / "vectors.sqlite"
    price: float | None = None
    max_usd: float | None = None
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        require_sdk("openai", purpose="OpenAIEncoder")
        if self.price is None and self.base_url is None:
            object.__setattr__(self, "price", _PRICES.get(self.model))
        if self.max_usd is not None and self.price is None:
            raise ValueError(
                f"max_usd needs the price of {self.model!r}. Give it in dollars per million tokens: price=..."
            )

    @property
    def fingerprint(self) -> str:
        """What the vectors depend on, as a result remembers it."""
        prompts = f", prompts={(self.query_prompt, self.document_prompt)}" if self._has_prompts else ""
        return f"{self._space}{prompts}"

    @property
    def _has_prompts(self) -> bool:
        return bool(self.query_prompt or self.document_prompt)

    @property
    def _space(self) -> str:
        """What makes the vector of a text."""
        server = self.base_url or getattr(self.client, "base_url", None) or "https://api.openai.com/v1/"
        return f"openai({self.model}, dimensions={self.dimensions}, server={server})"

    def quote(self, texts: Sequence[str]) -> Quote:
        """Say what encoding texts would cost, without sending anything."""
        distinct = list(dict.fromkeys(texts))
        missing = self._missing(distinct)
        num_tokens = round(sum(map(approximate_tokens, missing)))
        usd = None if self.price is None else num_tokens * self.price / 1e6
        return Quote(self.model, len(distinct), len(distinct) - len(missing), num_tokens, usd)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a query, of shape ``(num_texts, dim)``.

        Raises:
            ValueError: If a text is empty, or the cost is beyond ``max_usd``.
            GenerationStoppedError: If there is no key, or no request can work. What was encoded before is kept.
            TemporaryError: If the server does not answer for minutes. What was encoded before is kept.
        """
        return self._encode([self.query_prompt + text for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a document, of shape ``(num_texts, dim)``, or raise as `encode_queries` does."""
        return self._encode([self.document_prompt + text for text in texts])

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if empty := [i for i, text in enumerate(texts) if not text]:
            raise ValueError(f"Text {empty[0]} is empty ({len(empty)} are), and the API takes none. Leave it out.")
        quote = self.quote(texts)
        if quote.num_texts > quote.num_cached:
            logger.info("%s", quote)
            if self.max_usd is not None and quote.usd is not None and quote.usd > self.max_usd:
                raise ValueError(f"{quote}, which is more than max_usd={self.max_usd}. Nothing was sent.")
            self._fill_cache(list(dict.fromkeys(texts)))
        vectors = self._cache.get([vector_key(self._space, text) for text in dict.fromkeys(texts)])
        return np.stack([vectors[vector_key(self._space, text)] for text in texts])

    def _missing(self, texts: Sequence[str]) -> list[str]:
        keys = {text: vector_key(self._space, text) for text in texts}
        known = self._cache.get(list(keys.values()))
        return [text for text, key in keys.items() if key not in known]

    def _fill_cache(self, texts: Sequence[str]) -> None:
        missing = self._missing(texts)
        num_cut = 0
        with tqdm(total=len(missing), desc=self.model, unit="text", disable=not self.show_progress_bar) as bar:
            for batch in _batches(missing):
                for some, vectors, is_cut in self._embed(batch):
                    self._cache.put({vector_key(self._space, t): v for t, v in zip(some, vectors, strict=True)})
                    num_cut += is_cut
                    bar.update(len(some))
        if num_cut:
            logger.warning(
                "%d texts are longer than %s reads, so their ends were cut. Cut smaller chunks.", num_cut, self.model
            )

    def _embed(self, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], NDArray[np.float32], bool]]:
        """Yield texts, their vectors and whether they were cut; what is refused as too long is halved, or shortened."""
        try:
            yield texts, self._request(texts), False
        except RequestError as err:
            if not any(words in str(err).lower() for words in _TOO_LARGE):
                raise
            if len(texts) > 1:
                half = len(texts) // 2
                yield from self._embed(texts[:half])
                yield from self._embed(texts[half:])
            else:
                yield texts, self._request_shortened(texts[0], err), True

    def _request_shortened(self, text: str, refusal: RequestError) -> NDArray[np.float32]:
        """Embed as much of a text as the model takes."""
        size = len(text)
        while size > 1:
            size = int(size * 0.85)
            try:
                return self._request([text[:size]])
            except RequestError as err:
                refusal = err
        raise refusal

    def _request(self, texts: Sequence[str]) -> NDArray[np.float32]:
        options = {} if self.dimensions is None else {"dimensions": self.dimensions}
        create = self._client.embeddings.create
        attempt = 0
        while True:
            try:
                reply = call("openai", lambda: create(model=self.model, input=list(texts), **options))
                return _vectors(reply, len(texts))
            except (TemporaryError, ValueError) as err:  # the SDK raises a ValueError where a reply has no vectors
                attempt += 1
                if attempt == MAX_TRIES:
                    raise
                logger.info("%s; trying again", err)
                time.sleep(wait_before(attempt, getattr(err, "retry_after", None)))

    @cached_property
    def _cache(self) -> VectorCache:
        return VectorCache(self.cache)

    @cached_property
    def _client(self) -> Any:
        import openai

        if self.client is not None:
            return without_retries(self.client)
        if self.base_url:
            return without_retries(openai.OpenAI(base_url=self.base_url, api_key="none"))
        return without_retries(call("openai", openai.OpenAI))


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut a list into requests within the limits, by estimated tokens; a text that is too long goes alone."""
    batch: list[str] = []
    num_tokens = 0.0
    for text in texts:
        size = approximate_tokens(text)
        if size > _TOKENS_PER_TEXT:
            yield [text]
            continue
        if batch and (len(batch) == MAX_INPUTS or num_tokens + size > _ROOM * _TOKENS_PER_REQUEST):
            yield batch
            batch, num_tokens = [], 0.0
        batch.append(text)
        num_tokens += size
    if batch:
        yield batch


def _vectors(reply: Any, num_texts: int) -> NDArray[np.float32]:
    """Read the vectors of a reply in the order of the texts."""
    rows = sorted(getattr(reply, "data", None) or [], key=lambda row: row.index)
    if [row.index for row in rows] != list(range(num_texts)):
        raise TemporaryError(f"the reply has {len(rows)} vectors for {num_texts} texts", maybe_paid=True)
    vectors = np.array([row.embedding for row in rows], dtype=np.float32)
    if vectors.ndim != 2 or not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        raise TemporaryError("the reply holds vectors that are zero or not finite", maybe_paid=True)
    return vectors
