"""Sends requests one at a time from several threads, and keeps each reply before it sends the next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from embedtune.llms.errors import GenerationStoppedError, RequestError, TemporaryError
from embedtune.llms.prices import Budget, at_most, paid
from embedtune.llms.retries import wait_before
from embedtune.questions.requests.ledger import Ledger, StoredReply

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM

logger = logging.getLogger(__name__)

Requests = Mapping[str, Callable[[], dict[str, Any]]]
"""How to build each request, by its key."""

MAX_TRIES = 6
MAX_FIRST_FAILURES = 8  # refused one after the other, none ever accepted: the fault is not theirs

OVER_BUDGET = "not sent: over budget"


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
        num_workers: How many requests may be under way; so many are lost at most when the process is killed.
        show: Called now and then with how many are done, and what has been spent in micro-dollars.

    Raises:
        GenerationStoppedError: If no request can work. Those under way are waited for and kept.
        KeyboardInterrupt: On Ctrl-C, likewise.
    """
    run = _LiveRun(requests, llm, ledger=ledger, budget=budget)
    threading.Thread(target=run.work_in_threads, args=[min(num_workers, len(requests))], daemon=True).start()
    try:
        while not run.finished.wait(0.2):
            show(run.num_done, budget.spent)
    except KeyboardInterrupt:
        run.stop()
        logger.warning("Stopping: waiting for the replies that are under way. Press Ctrl-C again to give them up.")
        run.finished.wait()
        raise
    if run.error:
        raise run.error
    return run.failures


class _LiveRun:
    """What the threads share.

    The main thread waits for an event and joins none of them: before Python 3.13, a `join` that Ctrl-C interrupts takes
    the thread for ended though it still waits for its reply (https://github.com/python/cpython/issues/90882).
    """

    def __init__(self, requests: Requests, llm: LLM, *, ledger: Ledger, budget: Budget) -> None:
        self.requests, self.llm, self.ledger, self.budget = requests, llm, ledger, budget
        self.finished = threading.Event()
        self.failures: dict[str, str] = {}
        self.num_done = 0
        self.error: BaseException | None = None
        self._keys = iter(list(requests))
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def work_in_threads(self, num_workers: int) -> None:
        """Work in so many threads, and set `finished` when the last of them has ended."""
        threads = [threading.Thread(target=self.work, daemon=True) for _ in range(num_workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.finished.set()

    def work(self) -> None:
        """Answer one request after the other until there are no more, or the run is stopped."""
        try:
            while not self._stopped.is_set() and (key := self._next_key()) is not None:
                problem = self._answer(key)
                with self._lock:
                    self.num_done += 1
                    if problem:
                        self.failures[key] = problem
        except BaseException as err:  # it is raised again where the run was started
            self.error = self.error or err
            self.stop()

    def stop(self) -> None:
        """Let no thread start another request."""
        self._stopped.set()

    def _next_key(self) -> str | None:
        with self._lock:
            return next(self._keys, None)

    def _answer(self, key: str) -> str:
        """Get one reply into the ledger; return why not if that failed."""
        request = self.requests[key]()
        most = at_most(self.llm, request)
        problem = ""
        for attempt in range(MAX_TRIES):
            if not self.budget.reserve(most):
                self.stop()
                return OVER_BUDGET
            try:
                self._attempt(key, request, most)
            except TemporaryError as err:
                problem = f"gave up after {attempt + 1} tries: {err}"
                if attempt + 1 == MAX_TRIES or self._stopped.wait(wait_before(attempt, err.retry_after)):
                    break
            except RequestError as err:
                self._require_some_success(err)
                return str(err)
            else:
                return ""
        return problem

    def _attempt(self, key: str, request: dict[str, Any], most: int) -> None:
        """Send a request once. What was reserved is settled whatever happens."""
        spent = most  # unless it is known to be less
        try:
            self.ledger.reserve(key, most)
            try:
                reply = self.llm.send(request)
            except (TemporaryError, RequestError, GenerationStoppedError) as err:
                if not getattr(err, "maybe_paid", False):
                    spent = 0
                    self.ledger.release(key)
                raise
            cost = paid(self.llm.price, self.llm.read(reply))
            self.ledger.put(StoredReply(key, self.llm.name, cost, reply))
            spent = cost
        finally:
            self.budget.settle(most, spent)

    def _require_some_success(self, err: RequestError) -> None:
        """Raise if nothing but failures has been seen so far."""
        with self._lock:
            only_failures = self.num_done == len(self.failures)
        if only_failures and len(self.failures) + 1 >= MAX_FIRST_FAILURES:
            raise GenerationStoppedError(
                f"the first {MAX_FIRST_FAILURES} requests were all refused, the last with: {err}"
            ) from err
