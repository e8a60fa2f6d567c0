"""How long to wait before a request is sent again."""

from __future__ import annotations

import random

MAX_WAIT = 60.0  # seconds, whatever a server asks for


def wait_before(attempt: int, retry_after: float | None) -> float:
    """Return how many seconds to wait before the next try: what the server asks for, else longer and longer.

    Example:
        >>> wait_before(1, 86_400), 1 <= wait_before(2, None) <= 2
        (60.0, True)
    """
    if retry_after is not None:
        return min(retry_after, MAX_WAIT)
    return min(0.5 * 2.0**attempt, MAX_WAIT) * random.uniform(0.5, 1)
