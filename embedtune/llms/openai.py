"""Chat models of OpenAI, and of every server with the same protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

from embedtune.bounds import whole
from embedtune.llms.errors import GenerationStoppedError, TemporaryError
from embedtune.llms.prices import listed_price
from embedtune.llms.protocol import Completion, Price, Request
from embedtune.llms.sdk import call, openai_client, require_sdk

_PROBLEMS = {"length": "cut off", "content_filter": "refused"}


@dataclass(frozen=True)
class OpenAILLM:
    """A chat model of OpenAI, or of a server with the same protocol: vLLM, Ollama, llama.cpp, LiteLLM.

    Attributes:
        model: The model's id.
        base_url: The server, for instance ``"http://localhost:11434/v1"``. Your OpenAI key is not sent there; pass a
            client if the server needs a key.
        client: Your own ``openai.OpenAI``; by default one with the key of ``OPENAI_API_KEY``.
        max_tokens: The most tokens in one reply, including thinking. A larger value reserves more of a budget.
        price: The price; by default the one that genai-prices lists for the model and the server, or None if unknown.

    Raises:
        OptionalDependencyError: If the package ``openai`` is not installed.

    Example:
        >>> OpenAILLM("qwen3:8b", base_url="http://localhost:11434/v1", price=Price(0, 0)).name
        'qwen3:8b'
    """

    model: str
    _: KW_ONLY
    base_url: str | None = field(default=None, repr=False)
    client: Any = field(default=None, repr=False)
    max_tokens: int = 4096
    price: Price | None = None

    def __post_init__(self) -> None:
        require_sdk("openai", purpose="OpenAILLM")
        whole("max_tokens", self.max_tokens)
        if self.price is None:
            object.__setattr__(self, "price", listed_price(self.model, self.base_url or "openai"))

    @property
    def name(self) -> str:
        """The model's id."""
        return self.model

    def body(self, request: Request) -> dict[str, Any]:
        """Return the body of a chat completion."""
        limit = "max_tokens" if self.base_url else "max_completion_tokens"  # other servers know the old name
        return {
            "model": self.model,
            limit: self.max_tokens,
            "messages": [{"role": "system", "content": request.system}, {"role": "user", "content": request.text}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": dict(request.schema)},
            },
        }

    def prepare(self) -> None:
        """Ask OpenAI whether it has the model. Other servers may have no list of models and are not asked.

        Raises:
            GenerationStoppedError: If the model is unknown, or there is no key.
        """
        import openai

        client = self._client
        if self.base_url or self.client is not None:
            return
        try:
            call("openai", lambda: client.models.retrieve(self.model))
        except TemporaryError:
            return  # the first request will be retried
        except GenerationStoppedError as err:
            if not isinstance(err.__cause__, openai.NotFoundError):
                raise
            known = ", ".join(sorted(found.id for found in client.models.list()))
            raise GenerationStoppedError(
                f"the model {self.model!r} is unknown to the API, or retired. It has: {known}."
            ) from err

    def send(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request."""
        completion = call("openai", lambda: self._client.chat.completions.create(**body))
        choices = getattr(completion, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise TemporaryError("the reply was not a completion", maybe_paid=True)
        reply: dict[str, Any] = completion.to_dict(mode="json")
        return reply

    def read(self, reply: Mapping[str, Any]) -> Completion:
        """Read a chat completion."""
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        problem = _PROBLEMS.get(choice.get("finish_reason") or "", "")
        return Completion(
            text=choice["message"].get("content") or "",
            input_tokens=usage.get("prompt_tokens") or 0,
            output_tokens=usage.get("completion_tokens") or 0,
            cache_read_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            problem="refused" if choice["message"].get("refusal") else problem,
        )

    @cached_property
    def _client(self) -> Any:
        return openai_client(self.client, self.base_url)
