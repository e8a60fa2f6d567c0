from __future__ import annotations

import re
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedtune.corpus.chunking import chunk_document, chunk_documents
from embedtune.corpus.graphemes import WINDOW, grapheme_starts
from embedtune.corpus.markdown import outline
from embedtune.types import Document

MERGES = [b" t", b"he", b" the", b"ing", b"  ", b"\n\n", b"\xe3\x81", b"\xf0\x9f", b"an", b"er", b"on", b"aa", b"aaaa"]
BYTES = tiktoken.Encoding(
    "tiny",
    pat_str=r" ?[^\s]+|\s*[\r\n]+|\s+(?!\S)|\s+",
    mergeable_ranks={piece: rank for rank, piece in enumerate([bytes([b]) for b in range(256)] + MERGES)},
    special_tokens={"<|endoftext|>": 256 + len(MERGES)},
)


class Words:
    """A token a word: sizes that a reader of these tests can count."""

    def token_starts(self, text):
        return np.array([match.start() for match in re.finditer(r"\S+", text)], dtype=np.int64)


class Characters:
    """A token a character."""

    def token_starts(self, text):
        return np.arange(len(text))


class Prefixed:
    """A token a character, and one more that opens every text: a text's parts have more tokens than the text."""

    def token_starts(self, text):
        return np.array([0, *range(len(text))], dtype=np.int64)


def count(tokenizer, text):
    if isinstance(tokenizer, tiktoken.Encoding):
        return len(tokenizer.encode_ordinary(text))
    return len(tokenizer.token_starts(text))


def chunk(text, **options):
    return chunk_document(Document("d", text), **{"tokenizer": Words(), **options})


def texts_of(text, **options):
    return [each.text for each in chunk(text, **options)]


def sentence(num_words, word="word"):
    return " ".join([word.title(), *[word] * (num_words - 2), "end."][-num_words:])


FAMILY = "👨‍👩‍👧‍👦"
MARKDOWN = [
    "# Pump\n",
    "\n\n## Door ##\n\n",
    "Title\n=====\n",
    "```\n",
    "a = 1\n",
    "| a | b |\n",
    "- item\n",
    "1. item\n",
]
SPACE = ["\n\n", "\n", "\r\n", " ", "   \t", "\u3000", "\u00a0", "\x1c", "\u2028", "\x85", "\u200b", "\ufeff"]
PROSE = [
    "See this:\n",
    "The pump. ",
    "He said “no.” Then ",
    "e.g. ",
    "日本語です。",
    "「はい\uff01」",
    "नमस्ते। ",
    "한국어 ",
]
ODD = [FAMILY, "👍🏽", "🇩🇪🇫🇷", "e\u0301", " \u0301", "。\ufe0f", "<|endoftext|>", "a" * 60, "." * 30, "\0", "\ud800"]
FRAGMENTS = st.sampled_from(MARKDOWN + SPACE + PROSE + ODD) | st.text(max_size=12)
DOCUMENTS = st.lists(FRAGMENTS, min_size=1, max_size=60).map("".join).filter(str.strip)
STRATEGIES = st.sampled_from(["structure", "fixed"])


def assert_sound(text, chunks, *, tokenizer, max_tokens):
    """What holds for every chunk of every document, whatever the options."""
    seen = 0
    for position, each in enumerate(chunks):
        assert each.id == f"d#{position}"
        assert each.text == text[each.start : each.end] == each.text.strip() != ""
        assert count(tokenizer, each.text) <= max_tokens
        assert not text[seen : each.start].strip()
        seen = each.end
    assert not text[seen:].strip()
    assert all(a.start < b.start and a.end < b.end for a, b in pairwise(chunks))


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, st.integers(6, 60), st.integers(0, 5), STRATEGIES, st.sampled_from([BYTES, Prefixed()]))
def test_chunks_are_exact_spans_that_hold_all_text_and_no_more_than_the_limit(
    text, max_tokens, overlap, strategy, tokenizer
):
    options = {"max_tokens": max_tokens, "overlap": overlap, "strategy": strategy, "tokenizer": tokenizer}
    chunks = chunk(text, **options)
    assert_sound(text, chunks, tokenizer=tokenizer, max_tokens=max_tokens)
    assert chunks == chunk(text, **options)


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, st.integers(6, 60))
@example("\ud800\ud800\ud800。\ufe0f", 12)  # the limit falls into the last grapheme
def test_words_and_graphemes_are_only_split_if_they_fit_no_chunk(text, max_tokens):
    chunks = chunk(text, max_tokens=max_tokens, tokenizer=BYTES)
    graphemes = [*(match.span() for match in regex.finditer(r"\X", text))]
    words = [
        match.span() for match in regex.finditer(r"(?<!\S)[^\s\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}]\S*", text)
    ]
    for above, below in pairwise(chunks):
        cut = below.start
        if above.end < cut:
            continue
        torn = [text[start:end] for start, end in graphemes if start < cut < end]
        assert all(count(BYTES, each) > max_tokens for each in torn)
        behind_sentence = re.search(r"[\u3002\uff01\uff1f\u0964][\u300d\u201d]*$", text[:cut])
        torn = [text[start:end] for start, end in words if start < cut < end and not behind_sentence]
        assert all(max(count(BYTES, each), count(BYTES, f" {each}")) > max_tokens for each in torn)


def test_a_word_that_is_too_long_only_on_its_own_is_cut_between_graphemes():
    assert texts_of("x " + "e\u0301" * 10, max_tokens=20, tokenizer=Prefixed()) == ["x", "e\u0301" * 9, "e\u0301"]


HARD = {
    "Japanese": "私は東京に住んでいます。彼女は京都へ行きました。" * 60,
    "Japanese without stops": "私は東京に住んで" * 200,
    "families": FAMILY * 200,
    "flags": "🇩🇪" * 1000,
    "one grapheme": "e" + "\u0301" * 3000,
    "special tokens": "<|endoftext|>" * 300,
    "lone surrogates": "\ud800 and \udfff" * 300,
    "NULs": "\0" * 3000,
    "newlines of Windows": "A line. Another.\r\n\r\nA paragraph\rof two lines.\r\n" * 60,
    "byte-order mark": "\ufeff# Pump\n\n" + "Press both. " * 100,
    "a million spaces": "x" + " " * 1_000_000 + "y",
    "blank lines": "\n" * 100_000 + "end",
    "one word": "a" * 50_000,
    "full stops": "." * 20_000,
    "full stops and spaces": ". " * 10_000,
    "backticks": "`" * 20_000,
    "fences": "```\n" * 5001,
    "headings": "# h\n" * 5000,
    "underlined headings": "a\n---\n\n" * 2000,
    "cells": "|a" * 10_000,
    "hashes": "# " * 10_000,
    "wide stops": "。" * 5000 + "」" * 5000,
    "joiners": "\u200d" * 5000,
}


@pytest.mark.parametrize("strategy", ["structure", "fixed"])
@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_hard_texts_are_cut_soundly_and_soon(text, strategy):
    started = time.process_time()
    chunks = chunk(text, max_tokens=100, tokenizer=BYTES, strategy=strategy)
    assert time.process_time() - started < 5
    assert_sound(text, chunks, tokenizer=BYTES, max_tokens=100)
    assert not any("\ufffd" in each.text for each in chunks)


def test_time_grows_with_the_length_of_a_text_and_not_with_its_square():
    started = time.process_time()
    chunk("🇩🇪" * 30_000, max_tokens=100, tokenizer=BYTES)  # the square would take ten seconds
    assert time.process_time() - started < 5


@settings(deadline=None)
@given(st.text(st.sampled_from("ae\u0301\u200d👩👧🏽🇩🇪가\r\n"), max_size=300), st.integers(1, 20))
def test_graphemes_are_found_in_windows_as_in_the_whole_text(text, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedtune.corpus.graphemes.WINDOW", window)
        found = list(grapheme_starts(text, 0, len(text)))
    assert found == [match.start() for match in regex.finditer(r"\X", text)]
    assert WINDOW > 20


# Where the structure is cut


def test_a_short_document_is_one_chunk():
    text = f"\n# A\n\n{sentence(20)}\n\n# B\n\n{sentence(20)}\n"
    assert texts_of(text, max_tokens=44) == [text.strip()]


def test_sections_that_are_long_enough_are_chunks():
    sections = [f"# {name}\n\n{sentence(30)}\n\n{sentence(25)}" for name in "ABC"]
    assert texts_of("\n\n".join(sections), max_tokens=100) == sections


def test_small_sections_are_joined():
    sections = [f"## {name}\n\n{sentence(10)}" for name in "ABCDEFGH"]
    chunks = texts_of("\n\n".join(sections), max_tokens=40)
    assert all(20 <= len(each.split()) <= 40 and each.startswith("## ") for each in chunks)


@pytest.mark.parametrize(("marks", "sizes"), [(["#", "##", "#"], [2, 1]), (["#", "#", "##"], [1, 2])])
def test_a_heading_of_a_higher_level_is_the_better_place(marks, sizes):
    sections = [f"{mark} Head\n\n{sentence(35)}" for mark in marks]
    chunks = texts_of("\n\n".join(sections), max_tokens=80)
    assert [each.count("# Head") for each in chunks] == sizes


@pytest.mark.parametrize("glue", ["\n\n", "\n\n\n", "\n- ", "\n1. ", "\n> ", "\n\n## Head\n\n", "\n", "\r\n\r\n"])
def test_a_larger_border_is_preferred_to_the_end_of_a_sentence(glue):
    sentences = " ".join([sentence(7)] * 5)
    first, second = texts_of(f"{sentences}{glue}{sentences}", max_tokens=50)
    assert first == sentences
    assert second == f"{glue.strip()}{' ' if glue[-1] == ' ' else glue[-2:]}{sentences}".strip()


def test_what_a_colon_announces_goes_with_it():
    announced = f"{sentence(26)} Do this:\n\n{sentence(6)}"
    assert texts_of(f"{announced}\n\n{sentence(28)}", max_tokens=50)[0] == announced


@pytest.mark.parametrize("stop", ["。", "\uff01", "।", "。」", "\uff1f\uff09"])
def test_sentences_without_spaces_are_found(stop):
    above, below = "日本" * 15 + stop, "東京" * 16 + "。"
    assert texts_of(above + below, max_tokens=150, tokenizer=BYTES) == [above, below]


def test_a_line_in_the_middle_of_a_sentence_is_a_worse_place_than_its_end():
    lines = "\n".join(["word word word word word"] * 6)
    text = f"{lines} end. And {lines} end."
    assert texts_of(text, max_tokens=40) == [f"{lines} end.", f"And {lines} end."]


@pytest.mark.parametrize("abbreviation", ["e.g.", "i.e.", "U.S.", "1.", "v. 2.", "etc. and"])
def test_an_abbreviation_ends_no_sentence(abbreviation):
    text = f"{sentence(27)} Word {'word ' * 8}{abbreviation} More {sentence(25)}"
    assert texts_of(text, max_tokens=50)[0] == sentence(27)


@pytest.mark.parametrize("end", ["end.", "end!", "end?!", "end...", "(end.)", 'end."', "**end.**", "end…"])
def test_a_sentence_may_end_in_many_ways(end):
    text = f"{'word ' * 30}{end} More {sentence(28)}"
    assert texts_of(text, max_tokens=50)[0] == f"{'word ' * 30}{end}"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=25),
    st.sampled_from(["{} Head", "{} A longer heading\n\n{}# And another"]),
)
def test_no_chunk_ends_with_a_heading(sections, form):
    text = "\n\n".join(f"{form.replace('{}', '#' * level)}\n\n{sentence(size)}" for level, size in sections)
    for each in chunk(text, max_tokens=30):
        assert not each.text.split("\n")[-1].startswith("#")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 15)), min_size=1, max_size=12))
def test_code_that_fits_is_kept_whole(parts):
    blocks = ["```\n" + "x = 1. Then\n\n" * size + "```" for _, size in parts]
    text = "\n\n".join(f"{sentence(size)}\n\n{block}" for (size, _), block in zip(parts, blocks, strict=True))
    chunks = texts_of(text, max_tokens=64)
    assert all(each.count("```") % 2 == 0 for each in chunks)
    assert sum(each.count("```") for each in chunks) == 2 * len(blocks)


def test_code_that_does_not_fit_is_cut_between_lines():
    code = "\n".join(f"x{number} = call. Then {number}" for number in range(40))
    for each in texts_of(f"~~~\n{code}\n~~~", max_tokens=50):
        assert all(re.fullmatch(r"~~~|x\d+ = call\. Then \d+", line) for line in each.split("\n"))


def test_a_table_that_fits_is_kept_whole():
    table = "| a | b |\n|---|---|\n" + "| This one. Or | that. |\n" * 5
    text = f"{sentence(25)}\n\n{table}\n{sentence(20)}"
    assert any(table.strip() in each for each in texts_of(text, max_tokens=64))


@settings(deadline=None)
@given(st.lists(st.integers(1, 15), min_size=3, max_size=60))
def test_chunks_of_ordinary_paragraphs_are_about_half_full_or_more(sizes):
    chunks = texts_of("\n\n".join(sentence(size) for size in sizes), max_tokens=60)
    assert len(chunks) == 1 or all(22 <= len(each.split()) <= 60 for each in chunks)


# Headings


def test_headings_are_those_that_the_start_stands_under():
    text = (
        f"{sentence(30)}\n\n# A\n\n{sentence(30)}\n\n### C\n\n{sentence(30)}\n\n## B ##\n\n{sentence(30)}\n\n"
        f"```\n# comment\n```\n\n{sentence(30)}\n\nD\n=\n\nE #\n===\n\n{sentence(30)}\n\n    # code\n\nF\n---\n\n{sentence(30)}"
    )
    paths = [each.headings for each in chunk(text, max_tokens=40)]
    assert paths == [(), ("A",), ("A", "C"), ("A", "B"), ("A", "B"), ("E #",), ("E #", "F")]


def test_a_chunk_in_the_middle_of_a_section_has_its_headings_and_the_documents_context():
    document = Document("d", f"# Pump\n\n{sentence(90)}", "Manual", ("k",))
    chunks = chunk_document(document, max_tokens=40, tokenizer=Words())
    assert len(chunks) > 1
    assert {(each.headings, each.title, each.keywords, each.document_id) for each in chunks} == {
        (("Pump",), "Manual", ("k",), "d")
    }


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("# C# #", ["C#"]),
        ("#", [""]),
        ("#hash", []),
        ("####### seven", []),
        ("   # three", ["three"]),
        ("    # four", []),
        ("```\n# a\n```\n# b", ["b"]),
        ("````\n```\n# a\n````\n# b", ["b"]),
        ("~~~\n```\n# a\n~~~\n# b", ["b"]),
        ("```\n``` x\n# a\n```\n# b", ["b"]),
        ("```never closed\n# a", []),
        ("```inline``` code\n# a", ["a"]),
        ("- item\n---\n# a", ["a"]),
        ("one\ntwo\n---", []),
        ("one\n\n---", []),
        ("# a\r\nb\r\n===\r\n", ["a", "b"]),
        ("# " + "long " * 100, []),
    ],
)
def test_headings_are_found_as_markdown_has_them(text, headings):
    assert [heading.text for heading in outline(text).headings] == headings


# Overlap


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=30), st.integers(1, 25))
def test_overlap_repeats_whole_words_and_no_more_than_asked_for(sizes, overlap):
    text = "\n\n".join(sentence(size) for size in sizes)
    chunks = chunk(text, max_tokens=40, overlap=overlap)
    assert_sound(text, chunks, tokenizer=Words(), max_tokens=40)
    for above, below in pairwise(chunks):
        assert len(text[below.start : max(above.end, below.start)].split()) <= overlap
        assert below.start == 0 or text[below.start - 1].isspace()


def test_overlap_starts_at_a_sentence_if_there_is_one():
    first, second = chunk(f"{sentence(32)} {sentence(5, word='last')}\n\n{sentence(38)}", max_tokens=45, overlap=7)
    assert first.text == f"{sentence(32)} {sentence(5, word='last')}"
    assert second.text == f"{sentence(5, word='last')}\n\n{sentence(38)}"


def test_overlap_does_not_start_in_the_middle_of_code():
    code = "```\n" + "x = 1\n" * 10 + "```"
    chunks = texts_of(f"{code}\n\n{sentence(30)}", max_tokens=50, overlap=8)
    assert chunks == [code, sentence(30)]


def test_overlap_otherwise_starts_at_a_word():
    chunks = chunk(" ".join(f"w{number}" for number in range(100)), max_tokens=40, overlap=10)
    for above, below in pairwise(chunks):
        assert below.text.split()[:10] == above.text.split()[-10:]


def test_a_word_that_only_fits_without_overlap_is_not_cut():
    texts = texts_of(f"aaaa {'b' * 30} cccc {'d' * 35}", max_tokens=40, overlap=31, tokenizer=Characters())
    assert texts == ["aaaa", "b" * 30, "cccc", "d" * 35]


def test_overlap_does_not_reach_into_the_section_before():
    sections = [f"# {name}\n\n{sentence(30)}" for name in "ABC"]
    assert texts_of("\n\n".join(sections), max_tokens=50, overlap=10) == sections


# Fixed windows


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), st.data())
def test_fixed_windows_are_a_stride_apart(num_words, max_tokens, data):
    overlap = data.draw(st.integers(0, max_tokens - 1))
    words = [f"w{number}" for number in range(num_words)]
    windows = [
        each.split() for each in texts_of(" ".join(words), max_tokens=max_tokens, overlap=overlap, strategy="fixed")
    ]
    stride = max_tokens - overlap
    expected = [words[start : start + max_tokens] for start in range(0, num_words, stride)]
    last = next(position for position, window in enumerate(expected) if window[-1] == words[-1])
    assert windows == expected[: last + 1]


@pytest.mark.parametrize("strategy", ["structure", "fixed"])
@pytest.mark.parametrize("text", ["", "\n", " \t\n" * 1000])
def test_white_space_gives_no_chunk(text, strategy):
    assert chunk(text, max_tokens=10, strategy=strategy) == []
    assert chunk(text, max_tokens=10, strategy=strategy, tokenizer=BYTES) == []


def test_fixed_windows_end_where_tokens_end_even_in_words():
    assert texts_of("pump valve", max_tokens=3, strategy="fixed", tokenizer=BYTES) == ["pum", "p v", "alv", "e"]


# Arguments


def test_all_documents_are_chunked_in_order():
    documents = [Document("b", sentence(60)), Document("a", "Short.")]
    chunks = chunk_documents(documents, max_tokens=40, tokenizer=Words())
    assert [each.id for each in chunks] == ["b#0", "b#1", "a#0"]


def test_a_document_without_text_is_named_in_a_warning(caplog):
    documents = [Document("blank.md", " \n\t"), Document("a", "Short.")]
    assert len(chunk_documents(documents, tokenizer=Words())) == 1
    assert "'blank.md'" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"overlap": -1}, "overlap=-1 must be at least 0"),
        ({"overlap": 400}, "overlap=400 must be .* less than max_tokens=400"),
        ({"strategy": "semantic"}, "strategy='semantic' is unknown. Choose one of 'structure', 'fixed'"),
        ({"tokenizer": "model"}, "tokenizer=model"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        chunk_documents([Document("d", "text")], **{"tokenizer": Words(), **options})


def test_no_documents_are_an_error():
    with pytest.raises(ValueError, match="read_documents"):
        chunk_documents([], tokenizer=Words())


def test_two_documents_of_one_id_are_an_error():
    with pytest.raises(ValueError, match="Two documents have the id 'd'"):
        chunk_documents([Document("d", "a"), Document("d", "b")], tokenizer=Words())


@pytest.mark.parametrize("documents", [["text"], "text"])
def test_texts_are_refused_with_what_makes_documents_of_them(documents):
    with pytest.raises(TypeError, match=r"documents\[0\] is a str.*read_documents"):
        chunk_documents(documents, tokenizer=Words())


@pytest.mark.parametrize("strategy", ["structure", "fixed"])
def test_a_limit_that_one_character_exceeds_is_refused(strategy):
    with pytest.raises(ValueError, match="max_tokens=2 is less than the tokens of the single character at offset 4"):
        chunk("abc 日", max_tokens=2, tokenizer=BYTES, strategy=strategy)


@pytest.mark.parametrize("show", [True, False, None])
def test_progress_is_shown_on_request(show, capsys):
    chunk_documents([Document("d", "text")], tokenizer=Words(), show_progress_bar=show)
    assert capsys.readouterr() == ("", "")  # it takes less than a moment


def test_importing_the_corpus_loads_no_heavy_package():
    code = (
        "import sys, embedtune.corpus.chunking, embedtune.corpus.documents;"
        "print(*{'torch', 'transformers', 'datasets', 'tokenizers', 'tiktoken', 'selectolax', 'pptx', 'openpyxl', 'lxml', 'yaml', 'requests'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
