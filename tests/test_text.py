"""Words, equal questions and text that cannot be stored."""

from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from embedtune.text import plain, printable, same_question, storable, storage_problem, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Größe: 3,5 mm", ["grösse", "3", "5", "mm"]),
        ("ПРИВЕТ, мир!", ["привет", "мир"]),
        ("东京 C3PO", ["东", "京", "c3po"]),
        ("東京タワーへgo", ["東", "京", "タ", "ワ", "ー", "へ", "go"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("مُحَمَّد", ["مُحَمَّد"]),
        ("ทั้งสอง", ["ทั้", "ง", "ส", "อ", "ง"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("İade I\u0307ade i\u0307ade", ["iade", "iade", "iade"]),
        ("Not\u00adaus\u00adschalter", ["notausschalter"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("Ｃ３ ﬁt snake_case", ["c3", "fit", "snake_case"]),
        ("e\u0301tage", ["\u00e9tage"]),
        ("?! --", []),
    ],
)
def test_a_word_keeps_its_marks_and_loses_its_soft_hyphens(text, expected):
    assert words(text) == expected


@given(st.text())
def test_words_hold_no_character_that_separates_words_and_do_not_depend_on_the_normal_form(text):
    found = words(text)
    assert all(regex.fullmatch(r"[\p{L}\p{N}\p{M}_]+", word) for word in found)
    for form in ("NFC", "NFD"):
        assert words(unicodedata.normalize(form, text)) == found


@given(st.text(alphabet="abcß09_ éüЖ.,-+"))
def test_the_quick_way_for_simple_text_finds_the_same_words(text):
    marked = words(f"{text} \u0915\u093f")  # a mark sends the whole text the other way
    assert [*words(text), "\u0915\u093f"] == marked


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Where is it?", "where  IS it"),
        ("Où est-ce ?", "où est-ce"),
        ("¿Dónde está?", "dónde está"),
        ("“Where” is it, and why?!", "where is it and why"),
        ('"Where is it?"', "where is it."),
        ("泵怎么重启？", "泵怎么重启"),
        ("泵，怎么重启？", "泵怎么重启"),
        ("按ON，怎么办", "按ON怎么办"),
        ("यह क्या है।", "यह क्या है"),
        ("ما هو؟", "ما هو"),
        ("pressure <5 bar", "pressure < 5 bar"),
        ("don’t I?", "don't I"),
        ("below −5 °C", "below -5 °C"),
        ("cafe\u0301?", "Café"),
        ("İade?", "iade"),
        ("Not\u00adaus?", "Notaus"),
    ],
)
def test_questions_that_differ_only_in_case_spaces_and_punctuation_are_the_same(first, second):
    assert same_question(first) == same_question(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I call it from C++?", "How do I call it from C#?"),
        ("What is C?", "What is C++?"),
        ("from Berlin to Munich?", "from Munich to Berlin?"),
        ("Berlin -> Munich", "Munich -> Berlin"),
        ("Berlin->Munich", "Berlin<-Munich"),
        ("at a pressure > 5 bar?", "at a pressure < 5 bar?"),
        ("<5", ">5"),
        ("above +5 °C?", "above -5 °C?"),
        ("A+?", "A-?"),
        ("A+", "A"),
        ("What is node.js?", "What is .node js?"),
        ("What is .NET?", "What is net?"),
        ("3,5 mm?", "35 mm?"),
        ("a 5' board", 'a 5" board'),
        ('a 5" board', "a 5 board"),
        ("a 5' board", "a 5 board"),
        ("we'll", "well"),
        ("a != b", "a = b"),
        ("$5", "€5"),
        ("दिन क्या है?", "दान क्या है?"),
        ("x^2", "x 2"),
    ],
)
def test_signs_order_and_vowel_signs_make_another_question(first, second):
    assert same_question(first) != same_question(second)


@given(st.text())
def test_keys_and_plain_text_are_fixed_points(text):
    assert plain(plain(text)) == plain(text)
    assert words(plain(text)) == words(text)


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_text_is_storable_exactly_where_utf_8_takes_it(text):
    lost = text.encode(errors="ignore").decode() != text
    assert bool(storage_problem(text)) == lost
    assert (storable(text) != text) == lost
    storable(text).encode()
    assert len(storable(text)) == len(text)


def test_the_first_half_character_is_named():
    assert storage_problem("5 \ud83d and \ud800") == "half a character, U+D83D, at offset 2"


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_text_to_print_commands_no_terminal_and_can_always_be_written(text):
    shown = printable(text)
    shown.encode()
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert printable(shown) == shown
    assert shown == text or any(unicodedata.category(c) in ("Cc", "Cs") for c in text)


def test_joiners_and_spaces_of_real_text_are_printed_as_they_are():
    text = "می\u200cخواهم 5\u00a0mm \U0001f469\u200d\U0001f52c\tNot\u00adaus\n"
    assert printable(text) == text
