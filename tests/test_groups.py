"""Which chunks say the same, and which documents are one: copies and revisions are, pages with one footer are not."""

from __future__ import annotations

import random

import pytest

from embedtune.dataset.groups import document_groups, duplicate_groups, home_of_chunks
from embedtune.types import Chunk

NOTICE = "All rights reserved. No part of this manual may be copied without the written consent of the maker."
DRAW = random.Random(0)


def own(num_words=60):
    return " ".join(f"w{DRAW.randrange(4000)}" for _ in range(num_words))


def chunks_of(documents):
    """Make the chunks of documents that are given as lists of texts."""
    found = []
    for name, texts in documents.items():
        start = 0
        for i, text in enumerate(texts):
            found.append(Chunk(f"{name}#{i}", name, text, start, start + len(text)))
            start += len(text) + 1
    return found


def groups_of(documents):
    chunks = chunks_of(documents)
    contents = duplicate_groups(chunks)
    return document_groups(chunks, contents), dict(zip([chunk.id for chunk in chunks], contents, strict=True))


def error_page(number, cause):
    return (
        f"Error E{number:02}: the {cause} has failed. Close the program, disconnect the device from the mains, wait thirty "
        "seconds and start it again. If the error appears once more, call the service desk and name the serial number."
    )


def test_sixty_pages_of_one_template_are_sixty_documents_that_say_different_things():
    groups, contents = groups_of({f"e{i}": [error_page(i, f"part{i % 20}")] for i in range(60)})
    assert len(set(groups.values())) == len(set(contents.values())) == 60


def test_two_copies_of_each_page_of_a_template_are_one_document_each():
    pages = {f"e{i:02}-{copy}": [error_page(i, f"part{i % 20}")] for i in range(30) for copy in "ab"}
    groups, contents = groups_of(pages)
    assert all(groups[name] == f"{name[:3]}-a" for name in pages)
    assert len(set(contents.values())) == 30


@pytest.mark.parametrize("num_documents", [4, 8, 40])
@pytest.mark.parametrize("num_words", [8, 60])
def test_a_notice_that_documents_share_is_one_content_and_does_not_join_them(num_documents, num_words):
    pages = {f"d{i:02}": [own(num_words), NOTICE] for i in range(num_documents)}
    groups, contents = groups_of(pages)
    assert groups == {name: name for name in pages}
    assert {contents[f"{name}#1"] for name in pages} == {"d00#1"}


def test_a_copy_and_a_revision_are_one_document_also_under_a_notice_that_all_share():
    pages = {f"d{i:02}": [own(), own(), NOTICE] for i in range(20)}
    revision = pages["d00"][0].split()
    revision[30] = "changed"
    copies = {"mirror": pages["d01"], "revision": [" ".join(revision), own(), NOTICE]}
    groups, _ = groups_of(pages | copies)
    assert groups == {name: name for name in pages} | {"mirror": "d01", "revision": "d00"}


@pytest.mark.parametrize("num_copies", [2, 3, 4, 15])
def test_copies_are_one_document_however_many_there_are(num_copies):
    text = [own() for _ in range(5)]
    others = {f"z{i}": [own(), NOTICE] for i in range(20)}
    copies = {f"copy{i:02}": [*text[:4], text[4] if i % 2 else own(40), NOTICE] for i in range(num_copies)}
    groups, _ = groups_of(copies | others)
    assert {groups[name] for name in copies} == {"copy00"}
    assert {groups[name] for name in others} == set(others)


def test_a_page_that_is_the_notice_alone_joins_nothing():
    pages = {f"d{i:02}": [own(), NOTICE] for i in range(10)}
    groups, _ = groups_of(pages | {"legal": [NOTICE]})
    assert len(set(groups.values())) == 11


def test_two_documents_that_share_one_paragraph_are_one_group():
    paragraph = own()
    groups, _ = groups_of({"a": [own(), own(), paragraph], "b": [own(), own(), paragraph], "c": [own()]})
    assert groups == {"a": "a", "b": "a", "c": "c"}


def test_the_home_of_a_shared_chunk_is_its_copy_in_the_first_group():
    group_of = {"a1": "a", "a2": "a", "b1": "b", "c1": "c"}
    content_of = {"a1": "x", "a2": "x", "b1": "x", "c1": "y"}
    assert home_of_chunks(["c1", "b1", "a2", "a1"], group_of, content_of) == {
        "a1": "a1",
        "a2": "a2",
        "b1": "a1",
        "c1": "c1",
    }
    assert home_of_chunks(["b1"], group_of, content_of) == {"b1": "b1"}
