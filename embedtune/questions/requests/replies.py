"""Replies to requests, by the caller's own names: equal requests are sent once, and stored replies not at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.llms.prices import MICRODOLLARS
from embedtune.questions.requests.dispatch import Mode, answer_requests, request_digest
from embedtune.questions.requests.ledger import Ledger

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM, Completion, Request

FOLDER = ".embedtune"
"""Where the ledger is by default."""

MALFORMED = "malformed reply"
CUT_OFF = "cut off"

MAX_REPLIES = 3
"""How many replies a request gets at most, one a run, while they are malformed: a fourth would be no better."""


@dataclass(frozen=True)
class Replies:
    """What a language model replied, read from the ledger when it is asked for.

    Attributes:
        cost_usd: What the replies cost, in this run and earlier ones; None if the price is unknown.
        lost_usd: The most that requests of the folder whose replies were lost can have cost besides.
    """

    cost_usd: float | None
    lost_usd: float
    _llm: LLM
    _ledger: Ledger
    _keys: Mapping[str, str]
    _failures: Mapping[str, str]

    def get(self, name: str) -> Completion | str:
        """Return a usable reply, or why there is none."""
        key = self._keys[name]
        reply = self._ledger.reply(key)
        if reply is None:
            return self._failures.get(key, "no reply")
        completion = self._llm.read(reply)
        return completion.problem or completion

    def all_of(self, name: str) -> list[Completion]:
        """Return every reply to a request at this limit of tokens, the last one last, also malformed ones."""
        digest, limit, *_ = self._keys[name].split("-")
        stored = [self._ledger.reply(key) for key in _tries(f"{digest}-{limit}")]
        completions = [self._llm.read(reply) for reply in stored if reply is not None]
        return [completion for completion in completions if not completion.problem]


@contextmanager
def answered(
    requests: Mapping[str, Callable[[], Request]],
    llm: LLM,
    *,
    version: str,
    label: str,
    output_tokens: int,
    is_whole: Callable[[str, Completion], bool],
    output_dir: str | Path,
    mode: Mode = "live",
    num_workers: int = 16,
    budget_usd: float | None = None,
    show_progress_bar: bool | None = None,
) -> Iterator[Replies]:
    """Get requests answered, and yield their replies while the ledger is open.

    A request whose stored reply is malformed is sent once more by each run, until it has `MAX_REPLIES` at this limit of
    tokens. All of them stay in the ledger, and their costs count.

    Args:
        requests: What builds each request, by a name. They are sent in this order.
        llm: The model.
        version: The version of the instructions.
        label: What the progress bar says.
        output_tokens: About how many tokens a reply has, to warn of a budget that will not suffice.
        is_whole: Whether the reply to the request of a name has all that was asked for; otherwise it is malformed.
        output_dir: The folder of the ledger.
        mode: ``"live"`` or ``"batch"``.
        num_workers: How many requests may run at once.
        budget_usd: The most that everything in ``output_dir`` may ever cost.
        show_progress_bar: Whether to show progress; by default only in a terminal.

    Raises:
        ValueError: If an argument is out of its range.
        GenerationStoppedError: If no request can work.
        RuntimeError: If another run uses the folder.
        OSError: If the ledger cannot be written.
    """
    with Ledger(output_dir) as ledger:
        keys = _keys(ledger, llm, version, requests, is_whole=is_whole)
        first = {keys[name]: build for name, build in reversed(list(requests.items()))}  # the first of equal requests
        failures = answer_requests(
            {key: first[key] for key in dict.fromkeys(keys.values())},
            llm,
            ledger=ledger,
            mode=mode,
            num_workers=num_workers,
            budget_usd=budget_usd,
            show_progress_bar=show_progress_bar,
            label=label,
            output_tokens=output_tokens,
        )
        cost = None if llm.price is None else ledger.paid(keys.values()) / MICRODOLLARS
        yield Replies(cost, ledger.in_doubt() / MICRODOLLARS, llm, ledger, keys, failures)


def _keys(
    ledger: Ledger,
    llm: LLM,
    version: str,
    requests: Mapping[str, Callable[[], Request]],
    *,
    is_whole: Callable[[str, Completion], bool],
) -> dict[str, str]:
    """Return the key of each request: that of a usable reply in the ledger, or else of the request as it would be sent.

    A usable reply stays usable whatever the limit of tokens is now, so raising it sends only what was cut off.
    """
    known: dict[str, list[str]] = defaultdict(list)
    for stored in ledger.all_keys():
        known[stored.partition("-")[0]].append(stored)
    keys = {}
    for name, build in requests.items():
        digest = request_digest(version, llm.body(build()))
        problems = {key: _problem(ledger, llm, key, partial(is_whole, name)) for key in sorted(known.get(digest, ()))}
        keys[name] = _key(f"{digest}-{llm.max_tokens}", problems)
    return keys


def _problem(ledger: Ledger, llm: LLM, key: str, is_whole: Callable[[Completion], bool]) -> str:
    """Return why a stored reply is not usable, or an empty string."""
    completion = llm.read(ledger.reply(key) or {})
    return completion.problem or ("" if is_whole(completion) else MALFORMED)


def _key(first: str, problems: Mapping[str, str]) -> str:
    """Choose among the stored replies of a request, or name the next one: ``first``, ``first-2``, ``first-3``."""
    tries = _tries(first)
    usable = (key for key in (*tries, *problems) if problems.get(key, CUT_OFF) not in (CUT_OFF, MALFORMED))
    unasked = (key for key in tries if problems.get(key) != MALFORMED)
    return next(usable, None) or next(unasked, tries[-1])


def _tries(first: str) -> list[str]:
    return [first, *(f"{first}-{number}" for number in range(2, MAX_REPLIES + 1))]
