from __future__ import annotations

import embedtune as et
from embedtune.dataset.groups import duplicate_groups

TEXT = "press the red button twice and wait for the lamp to shine before you open the door of the pump again"


def chunk(name, document, start, end):
    return et.Chunk(name, document, TEXT[start:end], start, end)


def test_overlapping_neighbours_are_not_duplicates_and_equal_texts_elsewhere_are():
    first, second = chunk("a#0", "a", 0, 80), chunk("a#1", "a", 10, 90)
    assert duplicate_groups([first, second]) == ["a#0", "a#1"]
    elsewhere = et.Chunk("a#2", "a", first.text, 500, 580)
    other_document = chunk("b#0", "b", 10, 90)
    assert duplicate_groups([first, elsewhere]) == ["a#0", "a#0"]
    assert duplicate_groups([second, other_document]) == ["a#1", "a#1"]


def test_a_chain_of_overlapping_neighbours_does_not_make_one_group_of_a_document():
    chain = [chunk(f"a#{i}", "a", 6 * i, 6 * i + 60) for i in range(6)]
    assert duplicate_groups(chain) == [one.id for one in chain]
