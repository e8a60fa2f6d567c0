"""Chooses groups of questions whose sizes add up to what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

# The last few groups decide how near the sum is; all others are taken as they come.
_GROUPS_TO_CHOOSE = 30


def fill(sizes: Sequence[int], wanted: float, *, max_groups: int) -> list[int]:
    """Return the positions of groups whose sizes add up to ``wanted`` as nearly as groups allow, ascending.

    Groups are taken in their order while they fit. The last ones are chosen among all that are left such that the sum is
    nearest to what is wanted, and early ones are preferred. So a random order gives a random choice, and a group more
    changes little. At least one group is taken.

    Args:
        sizes: The size of each group, in the order of preference.
        wanted: The sum.
        max_groups: How many groups may be taken at most.

    Example:
        >>> fill([5, 4, 3, 2], 6, max_groups=3)
        [1, 3]
    """
    largest = max(sizes)
    taken = []
    left = wanted
    for position, size in enumerate(sizes):
        if left - size < _GROUPS_TO_CHOOSE * largest or len(taken) == max_groups:
            break
        taken.append(position)
        left -= size
    first = len(taken)
    chosen = _nearest_sum(sizes[first:], left, max_groups=max_groups - first)
    return [*taken, *(first + position for position in chosen)]


def _nearest_sum(sizes: Sequence[int], wanted: float, *, max_groups: int) -> list[int]:
    """Return the positions of at least one group, with the sum nearest to ``wanted``; of equals, the one found first."""
    step = gcd(*sizes)  # all sums are multiples of it
    found = {0: (0, -1)}  # for each sum, how many groups make it, and the last of them
    best = 0
    for position, size in enumerate(sizes):
        for total, (count, _) in list(found.items()):
            longer = total + size
            if longer not in found and (total < wanted or not total) and count < max_groups:
                found[longer] = (count + 1, position)
                if not best or abs(longer - wanted) < abs(best - wanted):
                    best = longer
        if abs(best - wanted) <= step / 2:
            break
    chosen = []
    while best:
        chosen.append(found[best][1])
        best -= sizes[chosen[-1]]
    return chosen[::-1]
