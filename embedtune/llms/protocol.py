"""What a language model is to embedtune: it takes requests, and its replies are kept as they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a language model is asked.

    Attributes:
        system: The instructions.
        text: The material to work on.
        schema: The JSON schema that the reply should follow.
    """

    system: str
    text: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a language model replied.

    Attributes:
        text: Its text.
        input_tokens: Tokens that were read, as the provider counted them.
        output_tokens: Tokens that were written, thinking included.
        problem: Why the text is not what was asked for (``"refused"``, ``"cut off"``), or an empty string.
    """

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    """What a language model costs, in US dollars per million tokens.

    Attributes:
        input: For tokens that are read.
        output: For tokens that are written.
        batch: The share of this that is paid in a batch.
    """

    input: float
    output: float
    batch: float = 0.5


@runtime_checkable
class LLM(Protocol):
    """Answers prompts. Replies are kept as they came, so that reading them anew never costs anything."""

    @property
    def name(self) -> str:
        """The model, as questions and summaries name it."""

    @property
    def price(self) -> Price | None:
        """What it costs, or None where that is not known."""

    @property
    def max_tokens(self) -> int:
        """The most tokens that it writes in one reply."""

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """Return the full request as JSON; the same request is paid for once."""

    def prepare(self) -> None:
        """Get ready, or raise if the model cannot be used. Called before the first request of a run; costs nothing."""

    def send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request, from any thread, and return the reply as JSON."""

    def read(self, reply: Mapping[str, Any]) -> Completion:
        """Read a reply that `send` returned, now or in an earlier run."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch is.

    Attributes:
        name: What the provider calls it.
        is_ended: Whether its results can be read.
        num_done: How many of its requests are done.
        num_requests: How many it has.
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
        reply: The reply, if there is one.
        problem: Otherwise what happened: ``"expired"``, ``"canceled"`` or a message.
    """

    key: str
    reply: Mapping[str, Any] | None = None
    problem: str = ""


@runtime_checkable
class BatchLLM(LLM, Protocol):
    """A language model that also takes batches."""

    def create_batch(self, requests: Mapping[str, Mapping[str, Any]]) -> str:
        """Create a batch and return its name."""

    def batches_since(self, moment: float) -> Iterator[BatchStatus]:
        """Yield all batches created after a moment (seconds since 1970)."""

    def batch_status(self, name: str) -> BatchStatus:
        """Return how far a batch is."""

    def batch_results(self, name: str) -> Iterator[BatchResult]:
        """Yield the results of a batch that has ended, in any order."""

    def delete_batch(self, name: str) -> None:
        """Delete a batch that has been collected, where that is wanted."""
