"""One check each for counts, shares and other numbers that users pass, with messages in the caller's words."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def whole(name: str, value: Any, *, at_least: int | None = 1, at_most: int | None = None) -> int:
    """Return a whole number, as Python's int.

    Args:
        name: The argument's name, for the message.
        value: Its value. numpy's integers are whole numbers; True and 3.0 are not.
        at_least: The smallest allowed value; None if there is none.
        at_most: The largest allowed value, if there is one.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is out of bounds.

    Example:
        >>> whole("k", 3)
        3
        >>> whole("k", 0)
        Traceback (most recent call last):
        ...
        ValueError: k=0 must be at least 1.
    """
    limits = " and ".join(
        f"at {what} {bound}" for what, bound in (("least", at_least), ("most", at_most)) if bound is not None
    )
    if not _is(Integral, value):
        raise TypeError(f"{name}={value!r} must be a whole number" + (f", {limits}." if limits else "."))
    if (at_least is not None and value < at_least) or (at_most is not None and value > at_most):
        raise ValueError(f"{name}={value!r} must be {limits}.")
    return int(value)


def finite(name: str, value: Any, *, above: float | None = None, at_least: float | None = None) -> float:
    """Return a number that is neither NaN nor infinite, as Python's float.

    Args:
        name: The argument's name, for the message.
        value: Its value.
        above: A bound that it must exceed.
        at_least: A bound that it may equal.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is NaN, infinite or out of bounds.

    Example:
        >>> finite("budget_usd", float("nan"), above=0)
        Traceback (most recent call last):
        ...
        ValueError: budget_usd=nan must be a finite number above 0.
    """
    what = "a finite number"
    what += "" if above is None else f" above {above}"
    what += "" if at_least is None else f" of at least {at_least}"
    if not _is(Real, value):
        raise TypeError(f"{name}={value!r} must be {what}.")
    too_small = (above is not None and not value > above) or (at_least is not None and not value >= at_least)
    if too_small or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be {what}.")
    return float(value)


def share(name: str, value: Any, *, below_one: bool = False) -> float:
    """Return a number from 0 to 1, as Python's float.

    Args:
        name: The argument's name, for the message.
        value: Its value.
        below_one: Refuse 1 as well.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is not in the range.

    Example:
        >>> share("dropout", 1, below_one=True)
        Traceback (most recent call last):
        ...
        ValueError: dropout=1 must be at least 0 and below 1.
    """
    limits = "at least 0 and below 1" if below_one else "from 0 to 1"
    if not _is(Real, value):
        raise TypeError(f"{name}={value!r} must be a number, {limits}.")
    if not 0 <= value <= 1 or (below_one and value == 1):
        raise ValueError(f"{name}={value!r} must be {limits}.")
    return float(value)


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
