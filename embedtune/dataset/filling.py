"""Chooses groups of questions whose sizes add up to what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

# So many groups of middling size decide how near the sum is; those before them are taken as they come.
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
    to_choose = _GROUPS_TO_CHOOSE * sorted(sizes)[len(sizes) // 2]
    taken: list[int] = []
    left = wanted
    for position, size in enumerate(sizes):
        if len(taken) == max_groups or size <= to_choose > left - size:
            break
        if size <= to_choose:  # a huge group is chosen only if it fits in the end
            taken.append(position)
            left -= size
    kept = set(taken)
    rest = [position for position in range(len(sizes)) if position not in kept]
    chosen = _nearest_sum(
        [sizes[position] for position in rest], left, max_groups=max_groups - len(taken), may_be_none=bool(taken)
    )
    return _improved(sizes, {*taken, *(rest[position] for position in chosen)}, wanted, max_groups=max_groups)


def _improved(sizes: Sequence[int], chosen: set[int], wanted: float, *, max_groups: int) -> list[int]:
    """Add or drop one group after the other as long as that brings the sum nearer: groups that were taken as they came may be too many."""
    while True:
        missing = wanted - sum(sizes[position] for position in chosen)
        changes = [(abs(missing + sizes[one]), one) for one in chosen if len(chosen) > 1]
        changes += [
            (abs(missing - size), one)
            for one, size in enumerate(sizes)
            if one not in chosen and len(chosen) < max_groups
        ]
        distance, best = min(changes, default=(abs(missing), -1))
        if distance >= abs(missing):
            return sorted(chosen)
        chosen ^= {best}


def _nearest_sum(sizes: Sequence[int], wanted: float, *, max_groups: int, may_be_none: bool) -> list[int]:
    """Return the positions of groups with the sum nearest to ``wanted``; of equal sums, the one that is found first."""
    step = gcd(*sizes)  # all sums are multiples of it
    found = {0: (0, -1)}  # for each sum, how many groups make it, and the last of them
    best = 0
    for position, size in enumerate(sizes):
        for total, (count, _) in list(found.items()):
            longer = total + size
            if longer not in found and (total < wanted or not total) and count < max_groups:
                found[longer] = (count + 1, position)
                if abs(longer - wanted) < abs(best - wanted) or not (best or may_be_none):
                    best = longer
        if abs(best - wanted) <= step / 2:
            break
    chosen = []
    while best:
        chosen.append(found[best][1])
        best -= sizes[chosen[-1]]
    return chosen[::-1]
