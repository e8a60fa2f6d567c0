"""The language models that embedtune can ask, and the records that go in and come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from embedtune.bounds import finite


@dataclass(frozen=True, slots=True)
class Request:
    """What a language model is asked.

    Attributes:
        system: The instructions.
        text: The material to work on.
        schema: The JSON schema that the reply should follow.
        num_shared: How many characters at the start of ``text`` other requests share. A provider that caches prompts
            reads them once; another model may ignore this.
    """

    system: str
    text: str
    schema: Mapping[str, Any]
    num_shared: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a language model replied.

    Attributes:
        text: The text of the reply.
        input_tokens: The tokens read, as the provider counted them, including cached ones.
        output_tokens: The tokens written, including thinking.
        problem: Why the text is not usable (``"refused"``, ``"cut off"``), or an empty string.
        cache_write_tokens: How many of the input tokens were written into the provider's cache of prompts.
        cache_read_tokens: How many of the input tokens were read from that cache.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    problem: str = ""
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """What a language model costs, in US dollars per million tokens.

    Attributes:
        input: Price of the tokens read.
        output: Price of the tokens written.
        batch: The share of the price that is paid in a batch.
        cache_write: The share of the input price that is paid for tokens written into a cache of prompts.
        cache_read: The share of the input price that is paid for tokens read from a cache of prompts.
    """

    input: float
    output: float
    batch: float = 0.5
    cache_write: float = field(default=1.25, repr=False, compare=False)
    cache_read: float = field(default=1.0, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("input", "output", "batch", "cache_write", "cache_read"):
            finite(name, getattr(self, name), at_least=0)


@runtime_checkable
class LLM(Protocol):
    """A language model. Its replies are stored unchanged, so that reading them again costs nothing."""

    @property
    def name(self) -> str:
        """The name of the model, as it appears in questions and summaries."""

    @property
    def price(self) -> Price | None:
        """What the model costs, or None if unknown."""

    @property
    def max_tokens(self) -> int:
        """The most tokens in one reply."""

    def body(self, request: Request) -> dict[str, Any]:
        """Return the JSON to send for a request. An equal body is never paid for twice."""

    def prepare(self) -> None:
        """Get ready, or raise if the model cannot be used. Called before the first request of a run; costs nothing."""

    def send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one body, from any thread, and return the reply as JSON."""

    def read(self, reply: Mapping[str, Any]) -> Completion:
        """Read a reply that `send` returned, in this run or an earlier one."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """The progress of a batch.

    Attributes:
        name: The provider's id of the batch.
        is_ended: Whether its results can be read.
        num_done: How many of its requests are done.
        num_requests: How many requests it has.
    """

    name: str
    is_ended: bool
    num_done: int
    num_requests: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One result of a batch.

    Attributes:
        key: The key of its request.
        reply: The reply, or None if the request failed.
        problem: Why it failed: ``"expired"``, ``"canceled"`` or a message.
    """

    key: str
    reply: Mapping[str, Any] | None = None
    problem: str = ""


@runtime_checkable
class BatchLLM(LLM, Protocol):
    """A language model that also takes batches. The methods may raise `BatchMissingError` for an unknown batch."""

    def create_batch(self, bodies: Mapping[str, Mapping[str, Any]]) -> str:
        """Create a batch from bodies by key, and return its name."""

    def batches_since(self, moment: float) -> Iterator[BatchStatus]:
        """Yield all batches created after a moment (seconds since 1970)."""

    def batch_status(self, name: str) -> BatchStatus:
        """Return the progress of a batch. A `RequestError` means that its results can never be read."""

    def batch_results(self, name: str) -> Iterator[BatchResult]:
        """Yield the results of a batch that has ended, in any order."""

    def delete_batch(self, name: str) -> None:
        """Delete a batch whose results were stored, if the user wants that."""
