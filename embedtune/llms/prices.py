"""What models cost, and keeping the bill below a ceiling. Money is counted in whole micro-dollars."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from embedtune.llms.protocol import LLM, Completion, Price, Prompt
from embedtune.tables import html_table

MICRODOLLARS = 1_000_000  # in a dollar

# Beyond the request's own text a provider reads the schema and some framing.
_FRAMING_TOKENS = 1_000


@cache
def price_table() -> dict[str, Any]:
    """Return the price table that comes with the package: ``as_of``, ``source``, ``models`` and ``retired``."""
    table: dict[str, Any] = json.loads(files("embedtune.llms").joinpath("prices.json").read_text("utf-8"))
    return table


def listed_price(model: str) -> Price | None:
    """Return the price of a model in the table, or None where it is not in there.

    A date or a cloud's prefix and version around the model's name do not matter.

    Example:
        >>> listed_price("anthropic.claude-haiku-4-5-20251001-v1:0")
        Price(input=1.0, output=5.0, batch=0.5)
    """
    row = _row(model)
    return Price(row["input"], row["output"]) if row else None


def tokens_factor(model: str) -> float:
    """Return how many tokens a model counts where OpenAI's o200k_base counts one."""
    return float(_row(model).get("tokens", 1.0))


def _row(model: str) -> dict[str, float]:
    for name, row in price_table()["models"].items():
        if re.search(rf"(?:^|[./]){re.escape(name)}(?:[-@]\d{{8}})?(?:-v\d.*)?$", model):
            return dict(row)
    return {}


def replacement(model: str) -> str:
    """Return the model to use in place of a retired one, or an empty string.

    Example:
        >>> replacement("claude-3-sonnet-20240229")
        'claude-sonnet-5-5'
    """
    retired: dict[str, str] = price_table()["retired"]
    return next((new for old, new in retired.items() if model.startswith(old)), "")


def paid(price: Price | None, completion: Completion, *, in_batch: bool = False) -> int:
    """Return what a completion cost, in micro-dollars, rounded up; 0 where the price is not known.

    Example:
        >>> paid(Price(2.0, 10.0), Completion("...", input_tokens=1000, output_tokens=300))
        5000
    """
    if price is None:
        return 0
    # A dollar for a million tokens is a micro-dollar for a token.
    amount = completion.input_tokens * price.input + completion.output_tokens * price.output
    return math.ceil(round(amount * (price.batch if in_batch else 1), 6))


def at_most(llm: LLM, request: Mapping[str, Any], *, in_batch: bool = False) -> int:
    """Return the most that a request can cost, in micro-dollars: no token is shorter than a byte."""
    num_bytes = len(json.dumps(request, ensure_ascii=False).encode("utf-8", "replace"))
    return paid(llm.price, Completion("", num_bytes + _FRAMING_TOKENS, llm.max_tokens), in_batch=in_batch)


def approximate_tokens(text: str) -> float:
    """Return about how many tokens a text has, without a tokenizer (which may not be there, offline)."""
    num_ascii = sum(map(str.isascii, text))
    return num_ascii / 4.2 + (len(text) - num_ascii) * 0.8


class Budget:
    """A ceiling that parallel requests cannot exceed: each reserves the most that it can cost, and settles afterwards.

    Args:
        ceiling: The most that may be spent, in micro-dollars, or None for no ceiling.
        spent: What has been spent before.

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

    def reserve(self, amount: int) -> bool:
        """Set an amount aside, waiting for others to settle if need be; False if it does not fit even then."""
        with self._changed:
            while not self._fits(amount):
                if not self._held:
                    return False
                self._changed.wait()
            self._held += amount
            return True

    def settle(self, reserved: int, amount: int) -> None:
        """Give back what was set aside, and book what was spent."""
        with self._changed:
            self._held -= reserved
            self.spent += amount
            self._changed.notify_all()

    def _fits(self, amount: int) -> bool:
        return self.ceiling is None or self.spent + self._held + amount <= self.ceiling


def budget_of(llm: LLM, budget_usd: float | None, *, spent: int) -> Budget:
    """Make a budget of a number of dollars.

    Raises:
        ValueError: If it is not positive, or there is a ceiling but the model's price is not known.
    """
    if budget_usd is None:
        return Budget(None, spent=spent)
    if not budget_usd > 0:
        raise ValueError(f"budget_usd is {budget_usd} and must be more than 0. Leave it out for no ceiling.")
    if llm.price is None:
        raise ValueError(
            f"budget_usd needs the price of {llm.name!r}, which is not in the table of {price_table()['as_of']}. "
            f"Give it in dollars per million tokens: price=Price(input=..., output=...)."
        )
    return Budget(math.floor(round(budget_usd * MICRODOLLARS, 3)), spent=spent)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What generating questions will take, see `estimate_cost`.

    Attributes:
        model: The model.
        num_requests: One for each distinct chunk.
        input_tokens: About how many tokens will be read.
        output_tokens: About how many tokens will be written. Models that think before they answer write more.
        live_usd: About how many dollars, or None where the price is not known.
        batch_usd: The same in batches.
        as_of: The day of the price table, or an empty string where the caller gave the price.
    """

    model: str
    num_requests: int
    input_tokens: int
    output_tokens: int
    live_usd: float | None
    batch_usd: float | None
    as_of: str

    def __str__(self) -> str:
        tokens = f"{self.input_tokens:,} tokens in, {self.output_tokens:,} out"
        dollars = "price not known"
        if self.live_usd is not None and self.batch_usd is not None:
            dollars = f"about ${self.live_usd:.2f} live, ${self.batch_usd:.2f} in batches"
        prices = f" (prices of {self.as_of})" if self.as_of else ""
        return f"{self.model}: {self.num_requests:,} requests, about {tokens}, {dollars}{prices}"

    def _repr_html_(self) -> str:
        dollars = ["not known" if usd is None else f"${usd:.2f}" for usd in (self.live_usd, self.batch_usd)]
        row = [self.model, f"{self.num_requests:,}", f"{self.input_tokens:,}", f"{self.output_tokens:,}", *dollars]
        prices = f"<p>About; prices of {escape(self.as_of)}.</p>" if self.as_of else ""
        return html_table(["model", "requests", "tokens in", "tokens out", "live", "in batches"], [row]) + prices


def estimate(llm: LLM, prompts: Iterable[Prompt], *, output_tokens: int) -> Estimate:
    """Estimate what prompts cost, without sending anything.

    Args:
        llm: The model.
        prompts: What it will be asked.
        output_tokens: About how many o200k_base tokens it will write for each.
    """
    factor = tokens_factor(llm.name)
    sizes = [approximate_tokens(p.system + p.text + json.dumps(p.schema)) for p in prompts]
    total = Completion("", round(sum(sizes) * factor), round(output_tokens * len(sizes) * factor))
    dollars = {in_batch: paid(llm.price, total, in_batch=in_batch) / MICRODOLLARS for in_batch in (False, True)}
    known = llm.price is not None
    return Estimate(
        model=llm.name,
        num_requests=len(sizes),
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        live_usd=dollars[False] if known else None,
        batch_usd=dollars[True] if known else None,
        as_of=price_table()["as_of"] if known and llm.price == listed_price(llm.name) else "",
    )
