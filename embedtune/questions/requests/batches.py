"""Sends requests in batches at half the price, and never creates a batch twice."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from embedtune.llms.errors import BatchMissingError, GenerationStoppedError, RequestError, TemporaryError
from embedtune.llms.prices import Budget, at_most, paid
from embedtune.llms.retries import retrying
from embedtune.questions.requests.ledger import Ledger, StoredBatch, StoredReply

if TYPE_CHECKING:
    from embedtune.llms.protocol import BatchLLM, BatchStatus
    from embedtune.questions.requests.live import Requests

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

# Well below what the provider allows (100,000 requests, 256 MB), so that a lost connection costs little.
MAX_REQUESTS = 10_000
MAX_BYTES = 100_000_000
POLL_SECONDS = 20.0
MAX_TRIES = 15
MAX_FRUITLESS_ROUNDS = 3  # in which everything expired
# A batch that the provider does not list after this time was not created.
GRACE_SECONDS = 60.0
CLOCK_SKEW = 600.0

_NUM_TOGETHER = 200  # results written in one commit


def send_batches(
    requests: Requests, llm: BatchLLM, *, ledger: Ledger, budget: Budget, show: Callable[[int, int], None]
) -> dict[str, str]:
    """Answer requests and return the reasons of those that failed, by key.

    Batches that an earlier run left open are collected first. Only expired requests are sent again. With a budget, no more
    requests are sent at a time than it covers in the worst case.

    Args:
        requests: What to send.
        llm: The model.
        ledger: Where the replies go.
        budget: What may be spent.
        show: Called regularly with how many requests are done, and what was spent in micro-dollars.

    Raises:
        GenerationStoppedError: If no request can work, or, once all others are answered, a batch with some of them is gone.
        KeyboardInterrupt: On Ctrl-C. Batches continue at the provider, and another run collects them.
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
    run.require_none_gone()
    over_budget = budget.ceiling is not None and any(run.pending())
    return run.failures | dict.fromkeys(run.pending(), budget.refusal if over_budget else "expired")


@dataclass
class _BatchRun:
    requests: Requests
    llm: BatchLLM
    ledger: Ledger
    budget: Budget
    show: Callable[[int, int], None]
    failures: dict[str, str] = field(default_factory=dict)
    foreign: set[tuple[int, str]] = field(default_factory=set)
    gone: dict[str, Exception] = field(default_factory=dict)  # by the name of the batch

    def pending(self) -> list[str]:
        """Return the keys without a reply, a failure or a batch."""
        waiting = {key for batch in self.ledger.open_batches() for key in batch.keys}
        known = self.ledger.stored(self.requests) | waiting | self.failures.keys()
        return [key for key in self.requests if key not in known]

    def create(self) -> bool:
        """Create one batch of what is pending and affordable; False if there is nothing."""
        bodies, most = self._affordable()
        if not bodies:
            return False
        batch = self.ledger.intend_batch(list(bodies), model=self.llm.name, microdollars=most)
        try:
            self.ledger.name_batch(batch, self.llm.create_batch(bodies))
        except TemporaryError as err:
            # It may exist anyway: creating has no idempotency key. `collect` looks for it.
            logger.info("Creating a batch failed: %s", err)
            return False
        except (RequestError, GenerationStoppedError) as err:
            self.ledger.forget_batch(batch)
            raise GenerationStoppedError(f"the batch was refused: {err}") from err
        return True

    def collect(self) -> bool:
        """Wait for all open batches and store their results; False if there was none."""
        some = False
        while batches := self._open():
            some = True
            for batch in batches:
                name = batch.name or self._adopted(batch)
                if name:
                    self._look_after(batch, name)
            if self._open():
                time.sleep(POLL_SECONDS)
        return some

    def _look_after(self, batch: StoredBatch, name: str) -> None:
        """Show the progress of a batch, and store its results if it has ended."""
        try:
            status = _patiently(lambda: self.llm.batch_status(name))
            self._show(status)
            if status.is_ended:
                self._take(batch, name)
        except (BatchMissingError, RequestError) as err:
            self.gone[name] = err
            logger.warning("%s. The others go on.", err)

    def require_none_gone(self) -> None:
        """Raise if a batch with some of the requests can never be collected."""
        for batch in self.ledger.open_batches():
            err = self.gone.get(batch.name or "")
            if err and self.requests.keys() & set(batch.keys):
                raise GenerationStoppedError(
                    f"{err}. If another key created it, use that key. Otherwise give it up, which sends its "
                    f"{len(batch.keys)} requests again: Ledger({str(self.ledger.path.parent)!r}).give_up_batch("
                    f"{batch.name!r}), with from embedtune.questions.requests.ledger import Ledger."
                ) from err

    def _open(self) -> list[StoredBatch]:
        return [b for b in self.ledger.open_batches() if b.model == self.llm.name and b.name not in self.gone]

    def _affordable(self) -> tuple[dict[str, dict[str, Any]], int]:
        """Return the bodies to send in the next batch, and the most that they can cost."""
        room = None if self.budget.ceiling is None else self.budget.ceiling - self.ledger.spent()
        chosen: dict[str, dict[str, Any]] = {}
        total, num_bytes = 0, 0
        for key in self.pending():
            body = self.llm.body(self.requests[key]())
            most = at_most(self.llm, body, in_batch=True)
            if room is not None and total + most > room:
                continue  # a smaller one may still fit
            num_bytes += len(json.dumps(body).encode()) + 200
            if len(chosen) >= MAX_REQUESTS or (num_bytes > MAX_BYTES and chosen):
                break
            chosen[key] = body
            total += most
        return chosen, total

    def _adopted(self, batch: StoredBatch) -> str | None:
        """Look for a batch whose creation was never confirmed. If it does not appear, forget the intent."""
        known = self.ledger.batch_names()
        candidates = _patiently(lambda: list(self.llm.batches_since(batch.created - CLOCK_SKEW)))
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
        """Store the results of a batch that has ended."""
        num_ours, num_results = _patiently(lambda: self._read_results(batch, name))
        if num_results and not num_ours:
            # Another batch of the same size was taken for this one.
            self.foreign.add((batch.id, name))
            self.ledger.name_batch(batch, None)
            return
        self.ledger.finish_batch(batch)
        _patiently(lambda: self.llm.delete_batch(name))
        self.budget.spent = self.ledger.spent()

    def _read_results(self, batch: StoredBatch, name: str) -> tuple[int, int]:
        """Store all results. If the stream breaks, those before are stored, and the batch is read again for free."""
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
                    replies.append(StoredReply(result.key, self.llm.name, 0, result.reply))
                elif result.problem != "expired":
                    self.failures[result.key] = result.problem
                if len(replies) >= _NUM_TOGETHER:
                    self._store(replies)
                    replies = []
        finally:
            self._store(replies)
        return num_ours, num_results

    def _store(self, replies: Sequence[StoredReply]) -> None:
        """Store replies before they are read: what they cost is known only then, and reading may fail."""
        self.ledger.put(*replies)
        price, read = self.llm.price, self.llm.read
        self.ledger.charge({one.key: paid(price, read(one.body), in_batch=True) for one in replies})

    def _show(self, status: BatchStatus) -> None:
        num_stored = len(self.ledger.stored(self.requests))
        self.show(num_stored + (0 if status.is_ended else status.num_done), self.ledger.spent())


def _patiently(function: Callable[[], T]) -> T:
    """Call until it works: a batch continues while the network is down."""
    try:
        return retrying(MAX_TRIES)(function)
    except BatchMissingError:
        raise
    except TemporaryError as err:
        raise GenerationStoppedError(
            f"gave up after {MAX_TRIES} tries: {err}. Batches continue at the provider; run again to collect them."
        ) from err
