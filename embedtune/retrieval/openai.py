"""Embedding models of OpenAI, and of every server with the same protocol."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from embedtune.bounds import finite, whole
from embedtune.llms.errors import RequestError, TemporaryError
from embedtune.llms.prices import approximate_tokens, listed_price
from embedtune.llms.retries import retrying
from embedtune.llms.sdk import call, openai_client, require_sdk, without_password
from embedtune.retrieval.vector_cache import VectorCache, vector_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_TRIES = 6

logger: logging.Logger = logging.getLogger(__name__)

MAX_INPUTS = 2048
"""The most texts in one request."""
_TOKENS_PER_REQUEST = 300_000
_TOKENS_PER_TEXT = 8_192
_ROOM = 0.7  # tokens are estimated; a request that is too large anyway is refused, unpaid
# What OpenAI's and other servers say if a smaller request may pass.
_TOO_LARGE = ("token", "batch size", "too large", "too long")


@dataclass(frozen=True)
class Quote:
    """What encoding some texts will take, see `OpenAIEncoder.quote`.

    Attributes:
        model: The model.
        num_texts: How many distinct texts.
        num_cached: How many of them are in the cache, and free.
        num_tokens: About how many tokens the others have.
        usd: About how many dollars they cost, or None if the price is unknown.
    """

    model: str
    num_texts: int
    num_cached: int
    num_tokens: int
    usd: float | None

    def __str__(self) -> str:
        dollars = "price unknown" if self.usd is None else f"about ${self.usd:.4f}"
        return (
            f"{self.model}: {self.num_texts - self.num_cached:,} of {self.num_texts:,} texts to encode, about "
            f"{self.num_tokens:,} tokens, {dollars}"
        )

    __repr__ = __str__


@dataclass(frozen=True)
class OpenAIEncoder:
    """An embedding model of OpenAI, or of a server with the same protocol (vLLM, Ollama, TEI), to compare with others.

    Vectors are cached on disk: a second run costs nothing, a changed chunk costs that chunk, and a run that failed
    continues where it stopped. The estimated cost is logged before anything is sent. Texts longer than the model's limit
    are cut, and counted in a warning.

    Attributes:
        model: The model's id.
        dimensions: The length of the vectors, if the model supports shorter ones.
        base_url: The server, for instance ``"http://localhost:11434/v1"``. Your OpenAI key is not sent there; pass a
            client if the server needs a key.
        client: Your own ``openai.OpenAI``; by default one with the key of ``OPENAI_API_KEY``.
        query_prompt: Put before each query, for open models whose server does not add it (``"query: "`` for e5).
        document_prompt: Put before each document.
        cache: The file of the cached vectors.
        price: US dollars per million tokens; by default the price that genai-prices lists, or None if unknown.
        max_usd: The most that one call may cost, by the estimate; beyond it nothing is sent.
        show_progress_bar: Whether to show the progress of encoding.

    Raises:
        OptionalDependencyError: If the package ``openai`` is not installed.

    Example:
        >>> encoder = OpenAIEncoder("text-embedding-3-large", dimensions=1024)
        >>> print(encoder.quote(["How do I restart the pump?"] * 2))
        text-embedding-3-large: 1 of 1 texts to encode, about 6 tokens, about $0.0000
    """

    model: str
    dimensions: int | None = None
    base_url: str | None = field(default=None, repr=False)
    client: Any = field(default=None, repr=False)
    query_prompt: str = ""
    document_prompt: str = ""
    cache: str | Path = Path(".embedtune") / "vectors.sqlite"
    price: float | None = None
    max_usd: float | None = None
    show_progress_bar: bool = False

    def __post_init__(self) -> None:
        require_sdk("openai", purpose="OpenAIEncoder")
        if self.dimensions is not None:
            whole("dimensions", self.dimensions)
        for name in ("price", "max_usd"):
            if getattr(self, name) is not None:
                finite(name, getattr(self, name), at_least=0)
        if self.price is None and (listed := listed_price(self.model, self.base_url or "openai")):
            object.__setattr__(self, "price", listed.input)
        if self.max_usd is not None and self.price is None:
            raise ValueError(
                f"max_usd needs the price of {self.model!r}. Pass it in dollars per million tokens: price=..."
            )

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder in results."""
        prompts = (self.query_prompt, self.document_prompt)
        return f"{self._space}, prompts={prompts}" if any(prompts) else self._space

    @property
    def _space(self) -> str:
        """Everything except the text that a vector depends on."""
        server = str(self.base_url or getattr(self.client, "base_url", None) or "https://api.openai.com/v1/")
        return f"openai({self.model}, dimensions={self.dimensions}, server={without_password(server)})"

    def quote(self, texts: Sequence[str]) -> Quote:
        """Estimate what encoding texts costs, without sending anything."""
        distinct = list(dict.fromkeys(texts))
        missing = self._missing(distinct)
        num_tokens = round(sum(map(approximate_tokens, missing)))
        usd = None if self.price is None else num_tokens * self.price / 1e6
        return Quote(self.model, len(distinct), len(distinct) - len(missing), num_tokens, usd)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector per query, of shape ``(num_texts, dim)``.

        Raises:
            ValueError: If a text is empty, or the estimated cost exceeds ``max_usd``.
            GenerationStoppedError: If there is no key, or no request can work. What was encoded before stays cached.
            TemporaryError: If the server does not answer for minutes. What was encoded before stays cached.
        """
        return self._encode([self.query_prompt + text for text in texts])

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector per document, of shape ``(num_texts, dim)``. Raises the same errors as `encode_queries`."""
        return self._encode([self.document_prompt + text for text in texts])

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if empty := [i for i, text in enumerate(texts) if not text]:
            raise ValueError(
                f"texts[{empty[0]}] is empty ({len(empty)} are), and the API refuses empty texts. Leave it out."
            )
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
                "%d texts exceed the limit of %s, so their ends were cut. Use smaller chunks.", num_cut, self.model
            )

    def _embed(self, texts: Sequence[str]) -> Iterator[tuple[Sequence[str], NDArray[np.float32], bool]]:
        """Yield texts, their vectors and whether they were cut. A request refused as too long is halved or shortened."""
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
        """Embed as much of a text as the model accepts."""
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

        def attempt() -> NDArray[np.float32]:
            try:
                return _vectors(
                    call("openai", lambda: create(model=self.model, input=list(texts), **options)), len(texts)
                )
            except ValueError as err:  # the SDK's, for a reply without vectors
                raise TemporaryError(str(err), maybe_paid=True) from err

        return retrying(MAX_TRIES)(attempt)

    @cached_property
    def _cache(self) -> VectorCache:
        return VectorCache(self.cache)

    @cached_property
    def _client(self) -> Any:
        return openai_client(self.client, self.base_url)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Split texts into requests within the limits, by estimated tokens. A text that is too long gets its own request."""
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
