"""Gets requests answered: from the ledger where it can, from the model where it must."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from tqdm.auto import tqdm

from embedtune.llms.prices import MICRODOLLARS, Budget, budget_of
from embedtune.llms.protocol import LLM, BatchLLM
from embedtune.questions.requests.batches import send_batches
from embedtune.questions.requests.ledger import Ledger, StoredReply
from embedtune.questions.requests.live import OVER_BUDGET, Requests, send_live

logger = logging.getLogger(__name__)

Mode = Literal["live", "batch"]


@runtime_checkable
class GroupLLM(LLM, Protocol):
    """A language model on this machine, which answers several requests at once."""

    batch_size: int

    def send_all(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer some requests."""


def request_key(version: str, request: Mapping[str, Any]) -> str:
    """Return the hash under which the reply to a request is kept.

    Args:
        version: The version of the prompt.
        request: The full request.

    Example:
        >>> len(request_key("1", {"model": "m"}))
        64
    """
    canonical = json.dumps([version, request], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


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
) -> dict[str, str]:
    """See to it that every request has a reply in the ledger; return why not for those that have none, by key.

    Raises:
        ValueError: If an argument is out of its range.
        GenerationStoppedError: If no request can work.
        KeyboardInterrupt: On Ctrl-C, once the replies under way are kept.
    """
    _check(llm, mode=mode, num_workers=num_workers)
    budget = budget_of(llm, budget_usd, spent=ledger.spent())
    stored = ledger.stored(requests)
    missing = {key: build for key, build in requests.items() if key not in stored}
    if not missing:
        return {}
    if mode == "live":
        _require_no_batch(missing, ledger)
    llm.prepare()
    before = budget.spent
    hidden = None if show_progress_bar is None else not show_progress_bar
    with tqdm(total=len(requests), initial=len(stored), desc=label, unit="chunk", disable=hidden) as bar:

        def show(num_done: int, spent: int) -> None:
            bar.set_postfix_str(f"${(spent - before) / MICRODOLLARS:.4f}", refresh=False)
            bar.update(max(0, len(stored) + num_done - bar.n))

        try:
            failures = _send(missing, llm, ledger=ledger, budget=budget, mode=mode, num_workers=num_workers, show=show)
            show(len(missing), ledger.spent())
        except KeyboardInterrupt:
            logger.warning(
                "Stopped: %d of %d chunks are done and kept in %s. Run the same again to go on; nothing is paid twice.",
                len(ledger.stored(requests)),
                len(requests),
                ledger.path,
            )
            raise
    logger.info("Spent $%.4f in this run.", (ledger.spent() - before) / MICRODOLLARS)
    answered = ledger.stored(missing)
    return {key: failures.get(key, OVER_BUDGET) for key in missing if key not in answered}


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
        replies = llm.send_all([requests[key]() for key in group])
        ledger.put(*(StoredReply(key, llm.name, 0, reply) for key, reply in zip(group, replies, strict=True)))
        num_done += len(group)
        show(num_done, 0)
    return {}


def _check(llm: LLM, *, mode: str, num_workers: int) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}. Choose 'live' or 'batch'.")
    if mode == "batch" and not isinstance(llm, BatchLLM):
        raise ValueError(f"{type(llm).__name__} takes no batches. Leave out mode='batch', or use AnthropicLLM.")
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers} and must be at least 1.")


def _require_no_batch(missing: Mapping[str, Any], ledger: Ledger) -> None:
    """Raise if some of the requests are in a batch that is still under way: sending them now would pay twice."""
    under_way = {key for batch in ledger.open_batches() for key in batch.keys} & missing.keys()
    if under_way:
        raise ValueError(
            f"{len(under_way)} of the chunks are in a batch that has not been collected. Collect it with mode='batch', "
            f"or work in another folder."
        )
