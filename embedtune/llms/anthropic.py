"""Claude, one request at a time or in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Literal

from embedtune.llms.errors import GenerationStoppedError, TemporaryError
from embedtune.llms.prices import listed_price, price_table, replacement
from embedtune.llms.protocol import BatchResult, BatchStatus, Completion, Price, Prompt
from embedtune.llms.sdk import call, require_sdk, without_key, without_retries

_PROBLEMS = {"refusal": "refused", "max_tokens": "cut off", "model_context_window_exceeded": "cut off"}


@dataclass(frozen=True)
class AnthropicLLM:
    """A Claude model, through Anthropic's API or any cloud that the SDK has a client for.

    The key comes from ``ANTHROPIC_API_KEY``, or whatever else the SDK looks at. Replies follow a JSON schema;
    there is no temperature, which the API no longer has.

    Attributes:
        model: The model's id.
        client: A client of the SDK, for instance ``AnthropicBedrockMantle()``, ``AnthropicVertex(...)`` or an
            ``Anthropic`` with your own settings; by default ``anthropic.Anthropic()``.
        max_tokens: The most tokens in one reply, thinking included. What is reserved from a budget grows with it.
        effort: How much the model should think, where it can be told; ``"low"`` is cheaper.
        price: What it costs, by default the price in the table (see `price_table`).
        delete_results: Whether to delete a batch from the provider as soon as its results are in the ledger.

    Raises:
        ValueError: If the model is known to be retired.
        OptionalDependencyError: If the package ``anthropic`` is not installed.

    Example:
        >>> AnthropicLLM("claude-haiku-5-5").price
        Price(input=0.1, output=0.5, batch=0.5)
    """

    model: str
    client: Any = field(default=None, repr=False)
    max_tokens: int = 4096
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    price: Price | None = None
    delete_results: bool = False

    def __post_init__(self) -> None:
        require_sdk("anthropic", purpose="AnthropicLLM")
        if new := replacement(self.model):
            raise ValueError(f"the model {self.model!r} is retired, and its provider refuses it. Use {new!r} instead.")
        object.__setattr__(self, "price", self.price or listed_price(self.model))

    @property
    def name(self) -> str:
        """The model's id."""
        return self.model

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """Return the body of a Messages request."""
        output: dict[str, Any] = {"format": {"type": "json_schema", "schema": dict(prompt.schema)}}
        if self.effort:
            output["effort"] = self.effort
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": prompt.system,
            "messages": [{"role": "user", "content": prompt.text}],
            "output_config": output,
        }

    def prepare(self) -> None:
        """Ask Anthropic's API whether it has the model; other clouds name and list models in ways of their own.

        Raises:
            GenerationStoppedError: If the model is unknown or retired.
        """
        import anthropic

        if not isinstance(self._client, anthropic.Anthropic):
            return
        try:
            found = self._client.models.retrieve(self.model)
        except anthropic.NotFoundError as err:
            if self.model in err.message:  # else it is a gateway that has no list of models
                raise self._unusable("is unknown to the API") from err
        except anthropic.APIError:
            return  # the first request will say what is wrong, and may well be retried
        except TypeError as err:
            raise without_key("anthropic", err) from err
        else:
            if getattr(found, "lifecycle", "active") == "retired":
                raise self._unusable("is retired")

    def send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request."""
        message = call("anthropic", lambda: self._client.messages.create(**request))
        if not _is_whole(message):
            raise TemporaryError("the reply was not a message", maybe_paid=True)
        reply: dict[str, Any] = message.to_dict(mode="json")
        return reply

    def read(self, reply: Mapping[str, Any]) -> Completion:
        """Read a message; a block of thinking may stand before its text."""
        usage = reply["usage"]
        read = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return Completion(
            text="".join(block["text"] for block in reply["content"] if block["type"] == "text"),
            input_tokens=sum(usage.get(name) or 0 for name in read),
            output_tokens=usage["output_tokens"],
            problem=_PROBLEMS.get(reply.get("stop_reason") or "", ""),
        )

    def create_batch(self, requests: Mapping[str, Mapping[str, Any]]) -> str:
        """Create a batch and return its name; the keys come back with the results."""
        body = [{"custom_id": key, "params": dict(request)} for key, request in requests.items()]
        batch = call("anthropic", lambda: self._client.messages.batches.create(requests=body))
        name: str | None = getattr(batch, "id", None)
        if not name:
            raise TemporaryError("the reply was not a batch", maybe_paid=True)
        return name

    def batches_since(self, moment: float) -> Iterator[BatchStatus]:
        """Yield the account's batches that were created after a moment, newest first."""
        pages = iter(call("anthropic", lambda: self._client.messages.batches.list(limit=100)))
        while (batch := call("anthropic", lambda: next(pages, None))) is not None:
            if batch.created_at < datetime.fromtimestamp(moment, timezone.utc):
                return
            yield _status(batch)

    def batch_status(self, name: str) -> BatchStatus:
        """Return how far a batch is."""
        return call("anthropic", lambda: _status(self._client.messages.batches.retrieve(name)))

    def batch_results(self, name: str) -> Iterator[BatchResult]:
        """Yield the results of a batch that has ended, in any order, while they arrive."""
        lines = iter(call("anthropic", lambda: self._client.messages.batches.results(name)))
        while (line := call("anthropic", lambda: next(lines, None))) is not None:
            yield _result(line)

    def delete_batch(self, name: str) -> None:
        """Delete a batch and its results from the provider, if `delete_results` says so."""
        if self.delete_results:
            call("anthropic", lambda: self._client.messages.batches.delete(name))

    @cached_property
    def _client(self) -> Any:
        import anthropic

        if self.client is not None:
            return without_retries(self.client)
        return without_retries(call("anthropic", anthropic.Anthropic))

    def _unusable(self, what: str) -> GenerationStoppedError:
        known = ", ".join(price_table()["models"])
        return GenerationStoppedError(f"the model {self.model!r} {what}. Current models are, among others: {known}.")


def _is_whole(message: Any) -> bool:
    """Whether a reply is a message: a page of a proxy arrives as a string, an empty object as a message of nothing."""
    usage = getattr(message, "usage", None)
    return (
        getattr(message, "type", None) == "message"
        and isinstance(getattr(message, "content", None), list)
        and isinstance(getattr(usage, "input_tokens", None), int)
        and isinstance(getattr(usage, "output_tokens", None), int)
    )


def _status(batch: Any) -> BatchStatus:
    counts = batch.request_counts
    num_done = counts.succeeded + counts.errored + counts.canceled + counts.expired
    return BatchStatus(batch.id, batch.processing_status == "ended", num_done, num_done + counts.processing)


def _result(line: Any) -> BatchResult:
    outcome = line.result
    if outcome.type == "succeeded" and _is_whole(outcome.message):
        return BatchResult(line.custom_id, reply=outcome.message.to_dict(mode="json"))
    if outcome.type == "errored":
        return BatchResult(line.custom_id, problem=str(outcome.error.error.message))
    return BatchResult(line.custom_id, problem=outcome.type)
