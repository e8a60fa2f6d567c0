"""What models cost, and keeping the bill below a ceiling. Amounts are whole micro-dollars."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from embedtune.llms.protocol import LLM, Completion, Price, Request

MICRODOLLARS = 1_000_000  # in a dollar

# Beyond the request's own text a provider counts the schema and some framing.
_FRAMING_TOKENS = 1_000
# Current Claude models count more tokens for the same text than OpenAI's o200k_base.
_CLAUDE_TOKENS = 1.35
_CACHES = '"cache_control"'  # in the body of a request: its start is written into the provider's cache
# What clouds put around a model's name: "us.anthropic.claude-haiku-4-5-20251001-v1:0".
_CLOUD_NAME = re.compile(r"^(?:\w+\.)?anthropic\.|-v\d+(?::\d+)?$")


def listed_price(model: str, *sellers: str) -> Price | None:
    """Return the price that genai-prices lists for a model, or None if it lists none. Nothing is looked up online.

    Long requests may cost more at some providers; this is the price of short ones.

    Args:
        model: The model's id.
        sellers: Who sells it, most likely first: provider ids of genai-prices, or addresses of servers.

    Example:
        >>> listed_price("claude-haiku-4-5", "anthropic"), listed_price("my-model", "http://localhost:8000/v1")
        (Price(input=1.0, output=5.0, batch=0.5), None)
    """
    try:
        from genai_prices import Usage, calc_price
    except ImportError:  # the SDK was installed without the extra of embedtune
        return None
    usage = Usage(input_tokens=1_000, output_tokens=1_000)
    for seller in sellers:
        where: dict[str, Any] = {"provider_api_url" if "://" in seller else "provider_id": seller}
        try:
            found = calc_price(usage, _CLOUD_NAME.sub("", model), **where)
        except LookupError:
            continue
        write, read = (
            float(calc_price(usage_of_cache, _CLOUD_NAME.sub("", model), **where).input_price / found.input_price)
            if found.input_price
            else 1.0
            for usage_of_cache in (
                Usage(input_tokens=1_000, cache_write_tokens=1_000),
                Usage(input_tokens=1_000, cache_read_tokens=1_000),
            )
        )
        dollars = float(found.input_price * 1_000), float(found.output_price * 1_000)
        return Price(*dollars, cache_write=write, cache_read=read)
    return None


def paid(price: Price | None, completion: Completion, *, in_batch: bool = False) -> int:
    """Return what a completion cost, in micro-dollars, rounded up; 0 if the price is unknown.

    Example:
        >>> paid(Price(2.0, 10.0), Completion("...", input_tokens=1000, output_tokens=300))
        5000
    """
    if price is None:
        return 0
    # A dollar per million tokens is a micro-dollar per token.
    written, read = completion.cache_write_tokens, completion.cache_read_tokens
    num_read = completion.input_tokens + written * (price.cache_write - 1) + read * (price.cache_read - 1)
    amount = num_read * price.input + completion.output_tokens * price.output
    return math.ceil(round(amount * (price.batch if in_batch else 1), 6))


def at_most(llm: LLM, body: Mapping[str, Any], *, in_batch: bool = False) -> int:
    """Return the most that a request can cost, in micro-dollars: no token is shorter than a byte."""
    text = json.dumps(body, ensure_ascii=False)
    most = len(text.encode("utf-8", "replace")) + _FRAMING_TOKENS
    cached = most if _CACHES in text else 0
    return paid(llm.price, Completion("", most, llm.max_tokens, cache_write_tokens=cached), in_batch=in_batch)


def approximate_tokens(text: str) -> float:
    """Estimate the number of tokens of a text without a tokenizer, which may not be available offline."""
    num_ascii = sum(map(str.isascii, text))
    return num_ascii / 4.2 + (len(text) - num_ascii) * 0.8


class Budget:
    """A ceiling that parallel requests cannot exceed: each reserves the most that it can cost, and settles afterwards.

    Args:
        ceiling: The most that may be spent, in micro-dollars; None means no ceiling.
        spent: What was spent before.

    Example:
        >>> budget = Budget(100, spent=20)
        >>> budget.reserve(50), budget.settle(50, 10), budget.spent
        (True, None, 30)
    """

    def __init__(self, ceiling: int | None, *, spent: int = 0) -> None:
        self.ceiling = ceiling
        self.spent: int = spent
        self._held = 0
        self._changed = threading.Condition()

    @property
    def left_usd(self) -> float:
        """What may still be spent, in dollars."""
        return math.inf if self.ceiling is None else max(0, self.ceiling - self.spent) / MICRODOLLARS

    @property
    def refusal(self) -> str:
        """Why a request is not sent that does not fit."""
        return f"not sent: over the budget of ${(self.ceiling or 0) / MICRODOLLARS:g}"

    def reserve(self, amount: int) -> bool:
        """Reserve an amount, waiting for others to settle if necessary; False if it does not fit even then."""
        with self._changed:
            while not self._fits(amount):
                if not self._held:
                    return False
                self._changed.wait()
            self._held += amount
            return True

    def settle(self, reserved: int, amount: int) -> None:
        """Release what was reserved, and add what was spent."""
        with self._changed:
            self._held -= reserved
            self.spent += amount
            self._changed.notify_all()

    def _fits(self, amount: int) -> bool:
        return self.ceiling is None or self.spent + self._held + amount <= self.ceiling


def budget_of(llm: LLM, budget_usd: float | None, *, spent: int) -> Budget:
    """Build a budget from dollars.

    Raises:
        ValueError: If it is not positive, or the model's price is unknown.
    """
    if budget_usd is None:
        return Budget(None, spent=spent)
    if isinstance(budget_usd, bool) or not isinstance(budget_usd, (int, float)):
        raise TypeError(f"budget_usd is {budget_usd!r}, a {type(budget_usd).__name__}. Pass a number of dollars.")
    if not 0 < budget_usd < math.inf:
        raise ValueError(
            f"budget_usd is {budget_usd} and must be a finite number above 0. Leave it out for no ceiling."
        )
    if llm.price is None:
        raise ValueError(
            f"budget_usd needs the price of {llm.name!r}, which genai-prices does not list (or is not installed). Pass it "
            f"in dollars per million tokens: price=Price(input=..., output=...)."
        )
    return Budget(math.floor(round(budget_usd * MICRODOLLARS, 3)), spent=spent)


@dataclass(frozen=True, slots=True, repr=False)
class Estimate:
    """What generating questions will take, see `estimate_cost`.

    Attributes:
        model: The model.
        num_requests: One for each distinct chunk.
        input_tokens: About how many tokens will be read.
        output_tokens: About how many tokens will be written. Models that think before they answer write more.
        live_usd: About how many dollars, or None if the price is unknown.
        batch_usd: The same in batches.
    """

    model: str
    num_requests: int
    input_tokens: int
    output_tokens: int
    live_usd: float | None
    batch_usd: float | None

    def __str__(self) -> str:
        tokens = f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        dollars = "price unknown: pass price=Price(input=..., output=...) to the model"
        if self.live_usd is not None and self.batch_usd is not None:
            dollars = f"about ${self.live_usd:.2f} live, ${self.batch_usd:.2f} in batches"
        return f"{self.model}: {self.num_requests:,} requests, about {tokens}, {dollars}"

    __repr__ = __str__


def estimate(llm: LLM, requests: Iterable[Request], *, output_tokens: int) -> Estimate:
    """Estimate what requests cost, without sending anything.

    Args:
        llm: The model.
        requests: What it will be asked.
        output_tokens: About how many o200k_base tokens it will write for each.
    """
    factor = _CLAUDE_TOKENS if "claude" in llm.name.lower() else 1.0
    num_requests, tokens, written, read = 0, 0.0, 0.0, 0.0
    seen: set[str] = set()
    for request in requests:
        num_requests += 1
        tokens += approximate_tokens(request.system + request.text + json.dumps(request.schema))
        if request.num_shared and _CACHES in json.dumps(llm.body(request)):
            shared = request.text[: request.num_shared]
            size = approximate_tokens(shared)
            written, read = (written, read + size) if shared in seen else (written + size, read)
            seen.add(shared)
    total = Completion(
        "",
        round(tokens * factor),
        round(output_tokens * num_requests * factor),
        cache_write_tokens=round(written * factor),
        cache_read_tokens=round(read * factor),
    )
    live, batch = (paid(llm.price, total, in_batch=in_batch) / MICRODOLLARS for in_batch in (False, True))
    is_known = llm.price is not None
    return Estimate(
        model=llm.name,
        num_requests=num_requests,
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        live_usd=live if is_known else None,
        batch_usd=batch if is_known else None,
    )
