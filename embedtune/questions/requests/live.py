"""Sends requests one at a time from several threads, and stores each reply before it is read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from embedtune.llms.errors import GenerationStoppedError, RequestError, TemporaryError
from embedtune.llms.prices import Budget, at_most, paid
from embedtune.llms.retries import retrying
from embedtune.questions.requests.ledger import Ledger, StoredReply

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM, Request

logger: logging.Logger = logging.getLogger(__name__)

Requests = Mapping[str, Callable[[], "Request"]]
"""What builds each request, by its key."""

MAX_TRIES = 6
MAX_FIRST_FAILURES = 8  # if the first are all refused, all others would be
_FIRST_SHARE = 4  # a run starts with this part of its threads


def send_live(
    requests: Requests,
    llm: LLM,
    *,
    ledger: Ledger,
    budget: Budget,
    num_workers: int,
    show: Callable[[int, int], None],
) -> dict[str, str]:
    """Answer requests and return the reasons of those that failed, by key.

    Args:
        requests: What to send.
        llm: The model.
        ledger: Where the replies go.
        budget: What may be spent.
        num_workers: How many requests may run at once; as many replies are lost at most if the process is killed. A run
            starts with a quarter of them, and grows with the replies that arrive; after a run that was killed, it starts
            with one, and grows more slowly.
        show: Called regularly with how many requests are done, and what was spent in micro-dollars.

    Raises:
        GenerationStoppedError: If no request can work. Replies under way are waited for and stored.
        KeyboardInterrupt: On Ctrl-C, in the same way.
        SystemExit: On SIGTERM, in the same way.
    """
    run = _LiveRun(requests, llm, ledger=ledger, budget=budget, num_workers=num_workers)
    run.start()
    try:
        while not run.finished.wait(0.2):
            show(run.num_done, budget.spent)
    except (KeyboardInterrupt, SystemExit):
        run.stop()
        logger.warning("Stopping: waiting for the replies under way. Press Ctrl-C again to lose them.")
        run.finished.wait()
        raise
    if run.error:
        raise run.error
    return run.failures


class _OverBudgetError(Exception):
    pass


class _LiveRun:
    """What the threads share.

    The main thread waits for an event instead of joining: before Python 3.13, a `join` that Ctrl-C interrupts marks the
    thread as ended although it still waits for its reply (https://github.com/python/cpython/issues/90882).
    """

    def __init__(self, requests: Requests, llm: LLM, *, ledger: Ledger, budget: Budget, num_workers: int) -> None:
        self.requests, self.llm, self.ledger, self.budget = requests, llm, ledger, budget
        self.finished = threading.Event()
        self.failures: dict[str, str] = {}
        self.num_done = 0
        self.error: BaseException | None = None
        self._keys = iter(list(requests))
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._num_answered = self._num_refused = 0
        self._num_workers = num_workers
        self._num_alive = 0
        self._was_killed = ledger.num_in_doubt() > 0
        self._num_replies = 0  # since the last thread was started

    def start(self) -> None:
        """Start the first threads; the others follow as replies arrive."""
        share = 1 if self._was_killed else -(-self._num_workers // _FIRST_SHARE)
        for number in range(min(share, len(self.requests))):
            try:
                self._add_thread()
            except RuntimeError as err:
                if not number:
                    raise
                self.error = err  # raised once the others have stored their replies
                self.stop()
                return

    def work(self) -> None:
        """Answer requests until there are no more, or the run is stopped."""
        try:
            while not self._stopped.is_set() and (key := self._next_key()) is not None:
                problem = self._answer(key)
                with self._lock:
                    self.num_done += 1
                    self._num_answered += not problem
                    if problem:
                        self.failures[key] = problem
                self._grow()
        except BaseException as err:  # raised again in the main thread
            self.error = self.error or err
            self.stop()
        finally:
            with self._lock:
                self._num_alive -= 1
                is_last = not self._num_alive
            if is_last:
                self.finished.set()

    def _grow(self) -> None:
        """Start another thread after each reply, or after as many as there are threads if the last run was killed."""
        with self._lock:
            self._num_replies += 1
            is_due = self._num_replies >= (self._num_alive if self._was_killed else 1)
        if is_due and not self._stopped.is_set():
            self._add_thread()

    def _add_thread(self) -> None:
        """Start a thread, unless there are enough."""
        with self._lock:
            if self._num_alive >= min(self._num_workers, len(self.requests)):
                return
            self._num_alive += 1
            self._num_replies = 0
        try:
            threading.Thread(target=self.work, daemon=True).start()
        except RuntimeError as err:
            with self._lock:
                self._num_alive -= 1
            raise RuntimeError(f"{err} beside {self._num_alive} others: lower num_workers.") from err

    def stop(self) -> None:
        """Let no thread start another request."""
        self._stopped.set()

    def _next_key(self) -> str | None:
        with self._lock:
            return next(self._keys, None)

    def _answer(self, key: str) -> str:
        """Get one reply into the ledger; return why not if that failed."""
        body = self.llm.body(self.requests[key]())
        tries = retrying(MAX_TRIES, sleep=self._pause)
        try:
            tries(self._attempt, key, body, at_most(self.llm, body))
        except _OverBudgetError:
            return self.budget.refusal  # a smaller request may still fit
        except TemporaryError as err:
            return f"gave up after {tries.statistics['attempt_number']} tries: {err}"
        except RequestError as err:
            self._require_some_success(err)
            return str(err)
        return ""

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise TemporaryError("the run was stopped")

    def _attempt(self, key: str, body: dict[str, Any], most: int) -> None:
        """Send a request once, and settle what was reserved for it whatever happens."""
        if not self.budget.reserve(most):
            raise _OverBudgetError
        spent = most  # until it is known to be less
        try:
            self.ledger.reserve(key, most)
            try:
                reply = self.llm.send(body)
            except (TemporaryError, RequestError, GenerationStoppedError) as err:
                if not getattr(err, "maybe_paid", False):
                    spent = 0
                    self.ledger.release(key)
                raise
            # Stored before it is read: if reading fails, the reply is not lost.
            self.ledger.put(StoredReply(key, self.llm.name, most, reply))
            spent = paid(self.llm.price, self.llm.read(reply))
            self.ledger.charge({key: spent})
        finally:
            self.budget.settle(most, spent)

    def _require_some_success(self, err: RequestError) -> None:
        """Raise if all requests so far were refused."""
        with self._lock:
            self._num_refused += 1
            is_hopeless = not self._num_answered and self._num_refused >= MAX_FIRST_FAILURES
        if is_hopeless:
            raise GenerationStoppedError(
                f"the first {MAX_FIRST_FAILURES} requests were all refused, the last with: {err}"
            ) from err
