"""One way to ask a language model, and one way to try again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import tenacity

from embedtune.llms.errors import TemporaryError

if TYPE_CHECKING:
    from embedtune.llms.protocol import LLM, Completion, Request

logger: logging.Logger = logging.getLogger(__name__)

MAX_WAIT = 60.0  # seconds between two tries, whatever a server asks for

_growing = tenacity.wait_random_exponential(multiplier=0.5, min=0.25, max=MAX_WAIT)


def retrying(max_tries: int, *, sleep: Callable[[float], None] = time.sleep) -> tenacity.Retrying:
    """Return what calls a function again after each `TemporaryError`, and raises the last one.

    It waits as long as the server asks for, or else longer and longer, but never more than a minute.

    Example:
        >>> retrying(3)(round, 2.7)
        3
    """
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TemporaryError),
        wait=seconds_to_wait,
        stop=lambda state: state.attempt_number >= min(max_tries, getattr(_error(state), "max_tries", max_tries)),
        before_sleep=lambda state: logger.info("Trying again: %s", _error(state)),
        sleep=sleep,
        reraise=True,
    )


def seconds_to_wait(state: tenacity.RetryCallState) -> float:
    """Return how long to wait before the next try."""
    asked = getattr(_error(state), "retry_after", None)
    return _growing(state) if asked is None else min(float(asked), MAX_WAIT)


def ask(llm: LLM, request: Request, *, max_tries: int = 3) -> Completion:
    """Send one request and return the reply.

    Raises:
        TemporaryError: If the model cannot be reached after ``max_tries`` tries.
        RequestError: If the model refuses the request.
        GenerationStoppedError: If no request can work.
    """
    body = llm.body(request)
    return retrying(max_tries)(lambda: llm.read(llm.send(body)))


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
