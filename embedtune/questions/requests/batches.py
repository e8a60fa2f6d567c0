"""Sends requests in batches at half the price: slower, and never two batches for one intent."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from embedtune.llms.errors import GenerationStoppedError, RequestError, TemporaryError
from embedtune.llms.prices import Budget, at_most, paid
from embedtune.llms.retries import wait_before
from embedtune.questions.requests.ledger import Ledger, StoredBatch, StoredReply
from embedtune.questions.requests.live import OVER_BUDGET, Requests

if TYPE_CHECKING:
    from embedtune.llms.protocol import BatchLLM, BatchStatus

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Well below what the provider allows (100,000 requests, 256 MB), so that a lost connection costs little.
MAX_REQUESTS = 10_000
MAX_BYTES = 100_000_000
POLL_SECONDS = 20.0
MAX_TRIES = 15
MAX_FRUITLESS_ROUNDS = 3  # in which everything expired
# A batch that the provider does not list so long after it was to be created has not been created.
GRACE_SECONDS = 60.0
CLOCK_SKEW = 600.0

_NUM_TOGETHER = 200  # results written in one commit


def send_batches(
    requests: Requests, llm: BatchLLM, *, ledger: Ledger, budget: Budget, show: Callable[[int, int], None]
) -> dict[str, str]:
    """Answer requests and return the reasons of those that failed, by key.

    Batches that an earlier run left open are collected first. What has expired is sent again; nothing else is. Under
    a ceiling only so many requests are sent at a time as can be paid for in the worst case.

    Args:
        requests: What to send.
        llm: The model.
        ledger: Where the replies go.
        budget: What may be spent.
        show: Called now and then with how many are done, and what has been spent in micro-dollars.

    Raises:
        GenerationStoppedError: If no request can work.
        KeyboardInterrupt: On Ctrl-C. Batches go on at the provider, and another run collects them.
    """
    run = _BatchRun(requests, llm, ledger=ledger, budget=budget, show=show)
    run.collect()
    num_fruitless = 0
    while num_fruitless < MAX_FRUITLESS_ROUNDS:
        num_pending = len(run.pending())
        while run.create():
            pass
        if not run.collect():
            break
        num_fruitless += len(run.pending()) == num_pending
    over_budget = budget.ceiling is not None and any(run.pending())
    return run.failures | dict.fromkeys(run.pending(), OVER_BUDGET if over_budget else "expired")


@dataclass
class _BatchRun:
    requests: Requests
    llm: BatchLLM
    ledger: Ledger
    budget: Budget
    show: Callable[[int, int], None]
    failures: dict[str, str] = field(default_factory=dict)
    foreign: set[tuple[int, str]] = field(default_factory=set)

    def pending(self) -> list[str]:
        """Return the keys without a reply, a failure or an open batch."""
        waiting = {key for batch in self._open() for key in batch.keys}
        known = self.ledger.stored(self.requests) | waiting | self.failures.keys()
        return [key for key in self.requests if key not in known]

    def create(self) -> bool:
        """Create one batch of what is pending and affordable; False if there is nothing."""
        requests, most = self._affordable()
        if not requests:
            return False
        batch = self.ledger.intend_batch(list(requests), model=self.llm.name, microdollars=most)
        try:
            self.ledger.name_batch(batch, self.llm.create_batch(requests))
        except TemporaryError as err:
            # It may exist all the same: creating has no idempotency key. `collect` looks for it.
            logger.info("Creating a batch failed: %s", err)
            return False
        except (RequestError, GenerationStoppedError) as err:
            self.ledger.forget_batch(batch)
            raise GenerationStoppedError(f"the batch was refused: {err}") from err
        return True

    def collect(self) -> bool:
        """Wait for all open batches and keep their results; False if there was none."""
        some = False
        while batches := self._open():
            some = True
            for batch in batches:
                name = batch.name or self._adopted(batch)
                if name and (status := self._patiently(lambda n=name: self.llm.batch_status(n))):  # type: ignore[misc]
                    self._show(status)
                    if status.is_ended:
                        self._take(batch, name)
            if self._open():
                time.sleep(POLL_SECONDS)
        return some

    def _open(self) -> list[StoredBatch]:
        return [batch for batch in self.ledger.open_batches() if batch.model == self.llm.name]

    def _affordable(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Return the next requests to send together, and the most that they can cost."""
        room = None if self.budget.ceiling is None else self.budget.ceiling - self.ledger.spent()
        chosen: dict[str, dict[str, Any]] = {}
        total, num_bytes = 0, 0
        for key in self.pending():
            request = self.requests[key]()
            most = at_most(self.llm, request, in_batch=True)
            num_bytes += len(json.dumps(request).encode()) + 200
            is_full = len(chosen) >= MAX_REQUESTS or (num_bytes > MAX_BYTES and chosen)
            if is_full or (room is not None and total + most > room):
                break
            chosen[key] = request
            total += most
        return chosen, total

    def _adopted(self, batch: StoredBatch) -> str | None:
        """Look for a batch whose creation was never confirmed; after a while without one, forget the intent."""
        known = self.ledger.batch_names()
        candidates = self._patiently(lambda: list(self.llm.batches_since(batch.created - CLOCK_SKEW)))
        for status in candidates:
            is_free = status.name not in known and (batch.id, status.name) not in self.foreign
            if is_free and status.num_requests == len(batch.keys):
                self.ledger.name_batch(batch, status.name)
                logger.info("Found batch %s, which an earlier request had created.", status.name)
                return status.name
        if time.time() - batch.created > GRACE_SECONDS:
            self.ledger.forget_batch(batch)
        return None

    def _take(self, batch: StoredBatch, name: str) -> None:
        """Keep the results of a batch that has ended."""
        num_ours, num_results = self._patiently(lambda: self._read_results(batch, name))
        if num_results and not num_ours:
            # Adopted by mistake: same size, other requests.
            self.foreign.add((batch.id, name))
            self.ledger.name_batch(batch, None)
            return
        self.ledger.finish_batch(batch)
        self._patiently(lambda: self.llm.delete_batch(name))
        self.budget.spent = self.ledger.spent()

    def _read_results(self, batch: StoredBatch, name: str) -> tuple[int, int]:
        """Read all results; if the stream breaks, what came before is kept, and reading it again does no harm."""
        ours = set(batch.keys)
        num_ours = num_results = 0
        replies: list[StoredReply] = []
        try:
            for result in self.llm.batch_results(name):
                num_results += 1
                if result.key not in ours:
                    continue
                num_ours += 1
                if result.reply is not None:
                    cost = paid(self.llm.price, self.llm.read(result.reply), in_batch=True)
                    replies.append(StoredReply(result.key, self.llm.name, cost, result.reply))
                elif result.problem != "expired":
                    self.failures[result.key] = result.problem
                if len(replies) >= _NUM_TOGETHER:
                    self.ledger.put(*replies)
                    replies.clear()
        finally:
            self.ledger.put(*replies)
        return num_ours, num_results

    def _patiently(self, function: Callable[[], T]) -> T:
        """Call until it works: a batch goes on while the network is down."""
        for attempt in range(MAX_TRIES):
            try:
                return function()
            except TemporaryError as err:
                logger.info("Trying again: %s", err)
                last = err
                time.sleep(wait_before(attempt, err.retry_after))
        raise GenerationStoppedError(
            f"no luck after {MAX_TRIES} tries: {last}. Batches go on at the provider; run again to collect them."
        ) from last

    def _show(self, status: BatchStatus) -> None:
        num_stored = len(self.ledger.stored(self.requests))
        self.show(num_stored + (0 if status.is_ended else status.num_done), self.ledger.spent())
