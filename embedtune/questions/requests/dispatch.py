"""Gets requests answered: from the ledger if possible, otherwise by the model."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from tqdm.auto import tqdm

from embedtune.llms.prices import MICRODOLLARS, Budget, budget_of, estimate
from embedtune.llms.protocol import LLM, BatchLLM
from embedtune.questions.requests.batches import send_batches
from embedtune.questions.requests.ledger import Ledger, StoredReply
from embedtune.questions.requests.live import Requests, send_live

logger: logging.Logger = logging.getLogger(__name__)

Mode = Literal["live", "batch"]

MAX_WORKERS = 1_000  # each is a thread with a connection

_LIMITS = {"max_tokens", "max_completion_tokens"}
_DIGEST = 48  # of 64 characters: a provider takes at most 64 for a digest and a limit


@runtime_checkable
class GroupLLM(LLM, Protocol):
    """A language model on this machine that answers several requests at once."""

    batch_size: int

    def send_all(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer several requests."""


def request_digest(version: str, body: Mapping[str, Any]) -> str:
    """Return the hash of a request, without its limit of tokens.

    Example:
        >>> request_digest("1", {"model": "m"}) == request_digest("1", {"model": "m", "max_tokens": 9})
        True
    """
    rest = {name: value for name, value in body.items() if name not in _LIMITS}
    canonical = json.dumps([version, rest], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST]


def answer_requests(
    requests: Requests,
    llm: LLM,
    *,
    ledger: Ledger,
    mode: Mode,
    num_workers: int,
    budget_usd: float | None,
    show_progress_bar: bool | None,
    label: str,
    output_tokens: int,
) -> dict[str, str]:
    """Get a reply to every request into the ledger; return why not for those that have none, by key.

    Raises:
        ValueError: If an argument is out of its range.
        GenerationStoppedError: If no request can work.
        KeyboardInterrupt: On Ctrl-C, once the replies under way are stored.
        SystemExit: On SIGTERM, in the same way, unless the program has a handler of its own.
    """
    _check(llm, mode=mode, num_workers=num_workers)
    budget = budget_of(llm, budget_usd, spent=ledger.spent())
    stored = ledger.stored(requests)
    missing = {key: build for key, build in requests.items() if key not in stored}
    if not missing:
        return {}
    if llm.price is None:
        logger.warning(
            "The price of %r is unknown, so no cost is counted. Pass price=Price(input=..., output=...).", llm.name
        )
    if mode == "live":
        _require_no_batch(missing, ledger)
    if budget_usd is not None:
        _warn_if_short(missing, llm, budget=budget, in_batch=mode == "batch", output_tokens=output_tokens)
    llm.prepare()
    before, in_doubt = budget.spent, ledger.in_doubt()
    hidden = None if show_progress_bar is None else not show_progress_bar
    with tqdm(total=len(requests), initial=len(stored), desc=label, unit="request", disable=hidden) as bar:

        def show(num_done: int, spent: int) -> None:
            bar.set_postfix_str(f"${(spent - before) / MICRODOLLARS:.4f}", refresh=False)
            bar.update(max(0, len(stored) + num_done - bar.n))

        try:
            with _sigterm_raises():
                failures = _send(
                    missing, llm, ledger=ledger, budget=budget, mode=mode, num_workers=num_workers, show=show
                )
            show(len(missing), ledger.spent())
        except (KeyboardInterrupt, SystemExit):
            logger.warning(
                "Stopped: %d of %d requests are answered and stored in %s. Run the same again to go on; nothing is paid twice.",
                len(ledger.stored(requests)),
                len(requests),
                ledger.path,
            )
            raise
    doubt = (ledger.in_doubt() - in_doubt) / MICRODOLLARS
    logger.info(
        "Paid $%.4f for the replies of this run, and at most $%.4f more for requests whose replies were lost.",
        (ledger.spent() - before) / MICRODOLLARS - doubt,
        doubt,
    )
    answered = ledger.stored(missing)
    return {key: failures.get(key, "not sent") for key in missing if key not in answered}


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise SystemExit within the block, so that replies under way are stored; the user's own handler stays."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _send(
    requests: Requests,
    llm: LLM,
    *,
    ledger: Ledger,
    budget: Budget,
    mode: Mode,
    num_workers: int,
    show: Callable[[int, int], None],
) -> dict[str, str]:
    if mode == "batch" and isinstance(llm, BatchLLM):
        return send_batches(requests, llm, ledger=ledger, budget=budget, show=show)
    if isinstance(llm, GroupLLM):
        return _send_groups(requests, llm, ledger=ledger, show=show)
    return send_live(requests, llm, ledger=ledger, budget=budget, num_workers=num_workers, show=show)


def _send_groups(
    requests: Requests, llm: GroupLLM, *, ledger: Ledger, show: Callable[[int, int], None]
) -> dict[str, str]:
    keys = iter(requests)
    num_done = 0
    while group := list(islice(keys, llm.batch_size)):
        replies = llm.send_all([llm.body(requests[key]()) for key in group])
        ledger.put(*(StoredReply(key, llm.name, 0, reply) for key, reply in zip(group, replies, strict=True)))
        num_done += len(group)
        show(num_done, 0)
    return {}


def _check(llm: LLM, *, mode: str, num_workers: int) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}. Choose 'live' or 'batch'.")
    if mode == "batch" and not isinstance(llm, BatchLLM):
        raise ValueError(f"{type(llm).__name__} takes no batches. Leave out mode='batch', or use AnthropicLLM.")
    if isinstance(num_workers, bool) or not isinstance(num_workers, int):
        raise TypeError(f"num_workers is {num_workers!r}, a {type(num_workers).__name__}. Pass a whole number.")
    if not 1 <= num_workers <= MAX_WORKERS:
        raise ValueError(f"num_workers is {num_workers} and must be from 1 to {MAX_WORKERS}; 16 is usual.")


def _warn_if_short(requests: Requests, llm: LLM, *, budget: Budget, in_batch: bool, output_tokens: int) -> None:
    """Say before anything is sent that a budget will not suffice."""
    quote = estimate(llm, (build() for build in requests.values()), output_tokens=output_tokens)
    needed, left = (quote.batch_usd if in_batch else quote.live_usd) or 0.0, budget.left_usd
    if needed > left:
        logger.warning(
            "The %d requests will cost about $%.2f, and the budget leaves $%.2f: about %d of them will be sent, spread "
            "evenly over the documents. Raise budget_usd to send all.",
            len(requests),
            needed,
            left,
            len(requests) * left / needed,
        )


def _require_no_batch(missing: Mapping[str, Any], ledger: Ledger) -> None:
    """Raise if some requests are in a batch that is still open: sending them now would pay twice."""
    under_way = {key for batch in ledger.open_batches() for key in batch.keys} & missing.keys()
    if under_way:
        raise ValueError(
            f"{len(under_way)} of the chunks are in a batch that has not been collected. Collect it with mode='batch', "
            f"which also says what to do if it is gone, or use another folder."
        )
