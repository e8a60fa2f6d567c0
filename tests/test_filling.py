"""Groups whose sizes add up to what is asked for."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.dataset.filling import fill

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(SIZES, st.floats(0, 1))
def test_no_group_more_or_less_brings_the_sum_nearer(sizes, share):
    wanted = share * sum(sizes)
    taken = fill(sizes, wanted, max_groups=len(sizes))
    assert taken == sorted(set(taken))
    total = sum(sizes[one] for one in taken)
    others = [total + size for position, size in enumerate(sizes) if position not in taken]
    others += [total - sizes[one] for one in taken if len(taken) > 1]
    assert abs(total - wanted) <= min((abs(other - wanted) for other in others), default=math.inf) + 1e-6


def test_small_groups_that_were_taken_first_are_given_back_for_a_huge_one():
    assert fill([1, 1, 40], 31.5, max_groups=3) == [2]
    assert fill([1] * 40 + [20, 20], 45.4, max_groups=42) == [*range(25), 40]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0, 1))
def test_of_few_groups_the_best_sum_is_found(sizes, share):
    wanted = share * sum(sizes)
    every = itertools.chain(*(itertools.combinations(sizes, n) for n in range(1, len(sizes) + 1)))
    best = min(abs(sum(some) - wanted) for some in every)
    found = fill(sizes, wanted, max_groups=len(sizes))
    assert abs(abs(sum(sizes[one] for one in found) - wanted) - best) < 1e-6


@given(SIZES.filter(lambda sizes: len(sizes) > 3), st.floats(0, 1), st.integers(1, 3))
def test_no_more_groups_are_taken_than_allowed(sizes, share, max_groups):
    assert 1 <= len(fill(sizes, share * sum(sizes), max_groups=max_groups)) <= max_groups


def test_early_groups_are_preferred_and_large_numbers_take_no_time():
    assert fill([2, 2, 2, 2], 4, max_groups=4) == [0, 1]
    taken = fill([4] * 50_000, 40_002.5, max_groups=50_000)
    assert taken == list(range(10_001))
    uneven = [1 + 7 * i % 12 for i in range(20_000)]
    uneven[3] = 5000
    found = fill(uneven, 40_000, max_groups=20_000)
    assert sum(uneven[one] for one in found) == 40_000
    assert 3 not in found
