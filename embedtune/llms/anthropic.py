"""Claude, one request at a time or in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Literal, TypeVar

from embedtune.bounds import whole
from embedtune.llms.errors import BatchMissingError, GenerationStoppedError, RequestError, TemporaryError
from embedtune.llms.prices import listed_price
from embedtune.llms.protocol import BatchResult, BatchStatus, Completion, Price, Request
from embedtune.llms.sdk import call, client_of, redact, require_sdk, without_key

T = TypeVar("T")

_PROBLEMS = {"refusal": "refused", "max_tokens": "cut off", "model_context_window_exceeded": "cut off"}


@dataclass(frozen=True)
class AnthropicLLM:
    """A Claude model, through Anthropic's API or any cloud that the SDK has a client for.

    The SDK reads the key, by default from ``ANTHROPIC_API_KEY``. Replies follow a JSON schema. There is no temperature,
    because the API no longer has one.

    Attributes:
        model: The model's id.
        client: A client of the SDK, for instance ``AnthropicBedrockMantle()``, ``AnthropicVertex(...)`` or an
            ``Anthropic`` with your own settings; by default ``anthropic.Anthropic()``.
        max_tokens: The most tokens in one reply, including thinking. A larger value reserves more of a budget.
        effort: How much the model should think, if it supports that; ``"low"`` is cheaper.
        price: The price; by default the one that genai-prices lists, or None if unknown.
        delete_results: Whether to delete a batch from the provider as soon as its results are in the ledger.

    Raises:
        OptionalDependencyError: If the package ``anthropic`` is not installed.

    Example:
        >>> AnthropicLLM("claude-haiku-5-5").price
        Price(input=0.1, output=0.5, batch=0.5)
    """

    model: str
    _: KW_ONLY
    client: Any = field(default=None, repr=False)
    max_tokens: int = 4096
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    price: Price | None = None
    delete_results: bool = False

    def __post_init__(self) -> None:
        require_sdk("anthropic", purpose="AnthropicLLM")
        whole("max_tokens", self.max_tokens)
        if self.price is None:
            object.__setattr__(self, "price", listed_price(self.model, "anthropic", "aws", "google"))

    @property
    def name(self) -> str:
        """The model's id."""
        return self.model

    def body(self, request: Request) -> dict[str, Any]:
        """Return the body of a Messages request."""
        output: dict[str, Any] = {"format": {"type": "json_schema", "schema": dict(request.schema)}}
        if self.effort:
            output["effort"] = self.effort
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "system": request.system,
            "messages": [{"role": "user", "content": _content(request)}],
            "output_config": output,
        }

    def prepare(self) -> None:
        """Ask Anthropic's API whether it has the model. Other clouds list their models differently and are not asked.

        Raises:
            GenerationStoppedError: If the model is unknown or retired.
        """
        import anthropic

        if not isinstance(self._client, anthropic.Anthropic):
            return
        try:
            found = self._client.models.retrieve(self.model)
        except anthropic.NotFoundError as err:
            redact(err)
            if self.model in err.message:  # otherwise it is a gateway without a list of models
                raise self._unusable("is unknown to the API") from err
        except anthropic.APIError:
            return  # the first request will say what is wrong, or will be retried
        except TypeError as err:
            raise without_key("anthropic", err) from err
        else:
            if getattr(found, "lifecycle", "active") == "retired":
                raise self._unusable("is retired")

    def send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request."""
        message = call("anthropic", lambda: self._client.messages.create(**body))
        if not _is_whole(message):
            raise TemporaryError("the reply was not a message", maybe_paid=True)
        reply: dict[str, Any] = message.to_dict(mode="json")
        return reply

    def read(self, reply: Mapping[str, Any]) -> Completion:
        """Read a message. A block of thinking may come before its text."""
        usage = reply["usage"]
        read = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return Completion(
            text="".join(block["text"] for block in reply["content"] if block["type"] == "text"),
            input_tokens=sum(usage.get(name) or 0 for name in read),
            output_tokens=usage["output_tokens"],
            cache_write_tokens=usage.get("cache_creation_input_tokens") or 0,
            cache_read_tokens=usage.get("cache_read_input_tokens") or 0,
            problem=_PROBLEMS.get(reply.get("stop_reason") or "", ""),
        )

    def create_batch(self, bodies: Mapping[str, Mapping[str, Any]]) -> str:
        """Create a batch and return its name. The keys come back with the results."""
        requests = [{"custom_id": key, "params": dict(body)} for key, body in bodies.items()]
        batch = call("anthropic", lambda: self._client.messages.batches.create(requests=requests))
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
        """Return the progress of a batch."""
        return _call_about(name, lambda: _status(self._client.messages.batches.retrieve(name)))

    def batch_results(self, name: str) -> Iterator[BatchResult]:
        """Yield the results of a batch that has ended, in any order, as they arrive."""
        lines = iter(_call_about(name, lambda: self._client.messages.batches.results(name)))
        while (line := call("anthropic", lambda: next(lines, None))) is not None:
            yield _result(line)

    def delete_batch(self, name: str) -> None:
        """Delete a batch and its results from the provider, if `delete_results` says so."""
        if self.delete_results:
            with suppress(BatchMissingError):  # deleted by an earlier try
                _call_about(name, lambda: self._client.messages.batches.delete(name))

    @cached_property
    def _client(self) -> Any:
        return client_of("anthropic", "Anthropic", client=self.client)

    def _unusable(self, what: str) -> GenerationStoppedError:
        return GenerationStoppedError(
            f"the model {self.model!r} {what}. Choose one of https://platform.claude.com/docs/en/about-claude/models."
        )


def _content(request: Request) -> str | list[dict[str, Any]]:
    """Return the material, with a mark behind what other requests share, so that it is cached."""
    if not request.num_shared:
        return request.text
    shared = {"type": "text", "text": request.text[: request.num_shared], "cache_control": {"type": "ephemeral"}}
    return [shared, {"type": "text", "text": request.text[request.num_shared :]}]


def _call_about(name: str, function: Callable[[], T]) -> T:
    """Call the SDK about a batch that may be missing."""
    import anthropic

    try:
        return call("anthropic", function)
    except GenerationStoppedError as err:
        if isinstance(err.__cause__, anthropic.NotFoundError):
            raise BatchMissingError(f"the provider does not know the batch {name}") from err
        raise


def _is_whole(message: Any) -> bool:
    """Whether a reply is a message: a page of a proxy arrives as a string, an empty object as an empty message."""
    usage = getattr(message, "usage", None)
    return (
        getattr(message, "type", None) == "message"
        and isinstance(getattr(message, "content", None), list)
        and isinstance(getattr(usage, "input_tokens", None), int)
        and isinstance(getattr(usage, "output_tokens", None), int)
    )


def _status(batch: Any) -> BatchStatus:
    if getattr(batch, "archived_at", None):
        raise RequestError(f"the batch {batch.id} is archived: its results are deleted 29 days after its creation")
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
