from __future__ import annotations

import json
import logging
import os

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedtune.corpus.documents import read_documents
from embedtune.corpus.webpages import read_page
from embedtune.types import Document

SECRET = "the-text-of-a-document"


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read_one(folder, name, content, **options):
    (document,) = read_documents(write(folder, {name: content}) / name, **options)
    return document


# Folders and files


def test_a_folder_is_read_with_its_folders_in_the_order_of_the_paths(tmp_path):
    write(tmp_path, {"b.txt": "B", "a/z.md": "Z", "a/b.TXT": "AB", "a.txt": "A"})
    documents = read_documents(tmp_path)
    assert [document.id for document in documents] == ["a.txt", "a/b.TXT", "a/z.md", "b.txt"]
    assert read_documents(str(tmp_path)) == documents


def test_hidden_and_unknown_files_are_ignored_and_counted_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path, {"a.txt": "A", ".b.txt": "B", ".git/c.txt": "C", "d.zip": "D", "e.zip": "E", "README": "F"})
    assert [document.id for document in read_documents(tmp_path)] == ["a.txt"]
    assert "2 with .zip" in caplog.text
    assert "1 with no extension" in caplog.text


def test_a_loop_of_links_ends_and_links_to_files_of_the_folder_are_read(tmp_path, caplog):
    write(tmp_path, {"a/b.txt": "B"})
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "link.txt").symlink_to(tmp_path / "a" / "b.txt")
    assert [document.id for document in read_documents(tmp_path / "a")] == ["b.txt", "link.txt"]
    assert "loop is a link to a folder" in caplog.text


def test_a_folder_without_a_known_file_is_named_with_the_known_extensions(tmp_path):
    write(tmp_path, {"a.zip": "A"})
    with pytest.raises(ValueError, match=rf"{tmp_path}.*\.jsonl.*1 with \.zip"):
        read_documents(tmp_path)


@pytest.mark.parametrize("path", ["missing", "missing/folder/a.txt", "a long text. " * 1000, "nul\0"])
def test_a_string_is_a_path_and_has_to_exist(path):
    with pytest.raises(FileNotFoundError, match="pass texts as a list") as caught:
        read_documents(path)
    assert len(str(caught.value)) < 300


def test_a_single_file_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.zip.*\.txt"):
        read_one(tmp_path, "a.zip", "A")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="not a regular file"):
        read_documents(tmp_path)


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match=r"a\.txt cannot be read: No such file"):
        read_documents(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return iter(())

    monkeypatch.setattr(os, "walk", refuse)
    with pytest.raises(ValueError, match=rf"{tmp_path} cannot be listed: Permission denied"):
        read_documents(tmp_path)


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_text_comes_back_whatever_its_encoding(tmp_path, encoding):
    assert read_one(tmp_path, "a.txt", "é\nü".encode(encoding), encoding=encoding).text == "é\nü"


def test_a_byte_order_mark_is_left_out(tmp_path):
    assert read_one(tmp_path, "a.txt", "\ufeffé").text == "é"
    assert read_one(tmp_path, "b.md", "\ufeff---\ntitle: T\n---\né").title == "T"
    assert read_one(tmp_path, "c.jsonl", '\ufeff{"text": "é"}').text == "é"


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_newlines_are_normalised(tmp_path, name):
    content = "one\r\ntwo\rthree\n" if name != "a.html" else "<pre>one\r\ntwo\rthree\n</pre>"
    assert "one\ntwo\nthree\n" in read_one(tmp_path, name, content).text


@pytest.mark.parametrize(
    ("content", "text", "encoding"),
    [
        ("caf\xe9".encode("latin-1"), "caf\xe9", "cp1252"),
        ("\u201cT\xfcr\u201d \u2013 5 \u20ac".encode("cp1252"), "\u201cT\xfcr\u201d \u2013 5 \u20ac", "cp1252"),
        ("Насос останавливается, если нажать обе кнопки и подождать десять секунд.".encode("cp1251"), None, "cp1251"),
        ('<meta charset="cp1250">Zażółć'.encode("cp1250"), None, "cp1250"),
        ("ポンプを再起動するには、両方のボタンを十秒間押し続けてください。".encode("shift_jis"), None, ""),
    ],
)
def test_a_file_in_another_encoding_is_read_in_the_one_it_is_likely_in_and_named(
    tmp_path, content, text, encoding, caplog
):
    write(tmp_path, {"a.txt": content, "b.txt": SECRET})
    documents = read_documents(tmp_path, on_error="raise")
    assert documents[0].text == (text or content.decode(encoding or "shift_jis"))
    assert f"a.txt is not utf-8 and was read as {encoding}" in caplog.text
    assert "b.txt" not in caplog.text


def test_a_byte_order_mark_says_the_encoding(tmp_path, caplog):
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        assert read_one(tmp_path, "a.txt", "caf\xe9 中".encode(encoding)).text == "caf\xe9 中"
    assert not caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text".encode("utf-16-le"), "a.txt is binary or not utf-8: NUL at character 1"),
        (b"\x7fELF\0\0", "a.txt is binary or not utf-8: NUL at character 4"),
        (bytes(range(256)), "a.txt is not utf-8: byte 0x80 at offset 128"),
    ],
)
def test_a_binary_file_is_named_with_the_place_and_the_remedy(tmp_path, content, message):
    write(tmp_path, {"a.txt": content, "b.txt": SECRET})
    with pytest.raises(ValueError, match=message) as caught:
        read_documents(tmp_path, on_error="raise")
    assert "encoding=" in str(caught.value)


def test_what_is_left_out_is_logged_by_name_without_its_text(tmp_path, caplog):
    bad = {
        "bad.txt": f"{SECRET} \0".encode("latin-1"),
        "bad.md": f"---\ntitle: [{SECRET}\n---\n",
        "bad.jsonl": f'{{"text": ["{SECRET}"]}}\n{{"text": "{SECRET}\n{{"text": "good"}}\n"{SECRET}"',
    }
    write(tmp_path, {**bad, "good.txt": "good"})
    assert [document.id for document in read_documents(tmp_path)] == ["bad.jsonl:3", "good.txt"]
    for name in ["bad.txt", "bad.md", "bad.jsonl, line 1", "bad.jsonl, line 2", "bad.jsonl, line 4"]:
        assert name in caplog.text
    assert SECRET not in caplog.text


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)no document.*1 binary:.*a\.txt is binary"):
        read_documents(write(tmp_path, {"a.txt": b"a\0"}))


def test_an_empty_file_is_named_and_left_out(tmp_path, caplog):
    empty = {"a.txt": "", "b.md": " \n", "c.html": "<p></p>", "d.jsonl": "\n", "e.md": "---\ntitle: T\n---\n"}
    write(tmp_path, {**empty, "f.txt": "F"})
    assert [document.id for document in read_documents(tmp_path)] == ["f.txt"]
    assert all(name in caplog.text for name in empty)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"on_error": "skip"}, "on_error='skip'"), ({"encoding": "utf-9"}, "encoding='utf-9'")],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        read_documents(["A"], **options)


# Markdown


def test_front_matter_gives_the_title_and_the_keywords_and_is_no_text(tmp_path):
    content = "---\ntitle: 'The pump:  use'\nkeywords: [pump, 2024, yes]\nother: x\n---\n\n# Heading\n\nBody"
    document = read_one(tmp_path, "a.md", content)
    assert document == Document("a.md", "\n# Heading\n\nBody", "The pump: use", ("pump", "2024", "yes"))


@pytest.mark.parametrize(
    "above",
    [
        "# Safety first",
        "Warning: hot surface",
        "Opening hours: Monday: 9 to 5",
        "**Important:** read this first.",
        "@home is the default.",
        "[" * 400,
    ],
)
def test_text_between_two_rules_is_kept(tmp_path, above):
    content = f"---\n{above}\n---\n\nPress both buttons."
    assert read_one(tmp_path, "a.md", content).text == content


@pytest.mark.parametrize("fields", ["title: null", "title:", "layout: page\nsidebar_position: 3", "Title: ~"])
def test_front_matter_without_a_title_leaves_it_to_the_heading(tmp_path, fields):
    document = read_one(tmp_path, "a.md", f"---\n{fields}\n---\n# Pump\nPress.")
    assert (document.title, document.text) == ("Pump", "# Pump\nPress.")


def test_keywords_may_be_separated_by_commas(tmp_path):
    assert read_one(tmp_path, "a.md", "---\nkeywords: pump,  reset ,\n...\nBody").keywords == ("pump", "reset")


def test_the_title_is_otherwise_the_first_heading_of_level_one(tmp_path):
    content = "```\n# comment\n```\n\n## Second\n\n# First\n\n# Other"
    assert read_one(tmp_path, "a.md", content).title == "First"
    assert read_one(tmp_path, "b.md", "no heading").title == ""
    assert read_one(tmp_path, "c.txt", "# no Markdown").title == ""


@pytest.mark.parametrize(
    "content", ["---\n\nText.\n\n---\n\nMore.", "--- title: x", "---\ntitle: x", "text\n---\na: b\n---"]
)
def test_rules_are_not_taken_for_front_matter(tmp_path, content):
    assert read_one(tmp_path, "a.md", content).text == content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("title: [", r"a\.md has front matter.*not valid YAML at line 3"),
        ("title: [a, b]", r"a\.md: 'title' is a list; a string"),
        ("keywords: {a: b}", r"a\.md: 'keywords' is a dict; a list"),
        ("title: " + "[" * 400, r"a\.md has front matter"),
    ],
)
def test_broken_front_matter_is_named(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        read_one(tmp_path, "a.md", f"---\n{fields}\n---\nBody")


def test_front_matter_makes_no_objects(tmp_path):
    document = read_one(tmp_path, "a.md", "---\ntitle: !!python/object/apply:os.getcwd []\n---\nBody")
    assert document.title == ""


# HTML

HTML = """<!doctype html><html><head><title> Pump
 manual</title><meta name="Keywords" content="pump, reset"><style>p {}</style></head><body>
<nav><a>Home</a></nav><!-- hidden --><h1>The <em>pump</em></h1><p>Press
 <b>both</b> buttons.<br>Wait.</p><script>x()</script>
<div>Loose<p>inner</p>tail</div><ul><li><p>red</p></li><li>green<ul><li>dark</li></ul></li></ul>
<h2>Code</h2><pre><code>if x:
    y()
</code></pre><table><tr><th>a</th><th>b</th></tr><tr><td><p>1</p></td><td>2 &amp; 3</td></tr></table>
<p hidden>no</p></body></html>"""


def test_html_becomes_markdown_with_its_structure(tmp_path):
    document = read_one(tmp_path, "a.html", HTML)
    assert document.title == "Pump manual"
    assert document.keywords == ("pump", "reset")
    assert document.text.split("\n\n") == [
        "# The pump",
        "Press both buttons.\nWait.",
        "Loose",
        "inner",
        "tail",
        "- red\n- green\n- dark",
        "## Code",
        "```\nif x:\n    y()\n```",
        "| a | b |\n| 1 | 2 & 3 |",
    ]


def test_html_without_a_title_has_the_title_of_its_first_heading(tmp_path):
    assert read_one(tmp_path, "a.htm", "<h1>Pump</h1><p>Text").title == "Pump"


@pytest.mark.parametrize("markup", ["index.html", "https://example.org", "<?xml version='1.0'?><html><p>x</p></html>"])
def test_unusual_html_is_read_without_warnings(markup):
    assert read_page(markup).text


def test_deeply_nested_html_is_read():
    assert read_page("<div><b>" * 5000 + "deep").text == "deep"


def test_a_code_block_with_a_fence_in_it_gets_another_fence():
    assert read_page("<pre>```\ncode\n```</pre>").text == "~~~\n```\ncode\n```\n~~~"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<p>", "</p>", "<li>", "<pre>", "</pre>", "<td>", "<h2>", "<br>", "\n", "wx", "yz "])))
def test_no_visible_text_of_html_is_lost_and_none_is_made_up(parts):
    text = read_page("".join(parts)).text
    assert [c for c in text if c in "wxyz"] == [c for part in parts if part[0] in "wy" for c in part.strip()]
    assert not set(text) - set("wxyz`#-| \n")


# JSON lines


def test_json_lines_are_documents(tmp_path):
    lines = ['{"text": "A\\nB", "id": "first", "title": "T", "keywords": ["k"]}', "", '{"text": "C", "more": 1}']
    write(tmp_path, {"faq/a.jsonl": "\r\n".join(lines)})
    assert read_documents(tmp_path) == [
        Document("first", "A\nB", "T", ("k",)),
        Document("faq/a.jsonl:3", "C"),
    ]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    assert read_one(tmp_path, "a.jsonl", '{"text": "A\u2028B\x85C"}').text == "A\u2028B\x85C"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 12}', "'text' is 12 (int); a string"),
        ('{"text": null}', "'text' is None; a string"),
        ('{"text": ["x"]}', "'text' is a list; a string"),
        ('{"text": " "}', "'text' is empty"),
        ('{"body": "x", "n": 1}', "no column 'text'. It has 'body', 'n'; choose one of them with text_column="),
        ('{"text": "x", "title": 3}', "'title' is 3 (int); a string"),
        ('{"text": "x", "id": true}', "'id' is True (bool); a string"),
        ('{"text": "x", "keywords": [1]}', "'keywords' is 1 (int); a string"),
        ('{"text": "x", "keywords": 7}', "'keywords' is 7 (int); a list of strings"),
        ('{"text": "x\\ud800y"}', "'text' has half a character, U+D800, at offset 1"),
        ('["x"]', "line 3 is a list; an object"),
        ('"x"', "line 3 is a str; an object"),
        ('{"text": "x",}', "line 3, column 14: this is not JSON"),
        ("[" * 100_000, "line 3"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_field(tmp_path, line, message):
    content = f'{{"text": "A"}}\n\n{line}\n{{"text": "B"}}'
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3") as caught:
        read_one(tmp_path, "a.jsonl", content, on_error="raise")
    assert message in str(caught.value)
    documents = read_documents(tmp_path)
    assert [document.text for document in documents] == ["A", "B"]


# Strings, datasets and other rows


def test_strings_are_numbered_documents():
    assert read_documents(text for text in ["A", "B\r\nB"]) == [Document("0", "A"), Document("1", "B\nB")]


def test_a_dataset_is_read_by_its_columns():
    dataset = datasets.Dataset.from_dict(
        {"body": ["A", "B"], "_id": [7, 8], "name": ["T", None], "tags": [["x", "y "], None], "title": ["no", "no"]}
    )
    columns = {"text_column": "body", "id_column": "_id", "title_column": "name", "keywords_column": "tags"}
    expected = [Document("7", "A", "T", ("x", "y")), Document("8", "B")]
    assert read_documents(dataset, **columns) == expected
    assert read_documents(dataset.to_iterable_dataset(), **columns) == expected
    assert read_documents(dataset.with_format("numpy"), **columns) == expected


def test_optional_columns_are_used_where_they_are():
    rows = [{"text": "A", "id": "x", "title": "T", "keywords": "k"}, {"text": "B"}]
    assert read_documents(rows) == [Document("x", "A", "T", ("k",)), Document("1", "B")]


@pytest.mark.parametrize("parameter", ["text_column", "id_column", "title_column", "keywords_column"])
def test_a_column_that_was_asked_for_has_to_be_there(parameter):
    with pytest.raises(ValueError, match=rf"row 0 has no column 'absent'\. It has 'text'; .*{parameter}="):
        read_documents([{"text": "A"}], **{parameter: "absent"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["A", None], "row 1 is None"),
        (["A", 3.5], r"row 1 is 3\.5 \(float\)"),
        (["A", b"B"], "row 1 is a bytes"),
        (["A", " \n"], "row 1: 'text' is empty"),
        (["A", "\udfff"], r"row 1: 'text' has half a character, U\+DFFF, at offset 0"),
        ([{"text": "A"}, {"text": None}], "row 1: 'text' is None"),
    ],
)
def test_a_bad_row_is_named_with_its_number_and_column(rows, message, caplog):
    with pytest.raises(ValueError, match=message):
        read_documents(rows, on_error="raise")
    assert [document.text for document in read_documents(rows)] == ["A"]
    assert "row 1" in caplog.text


def test_a_missing_id_in_a_column_that_was_asked_for_is_an_error():
    with pytest.raises(ValueError, match="row 1: 'key' is None"):
        read_documents([{"text": "A", "key": 1}, {"text": "B", "key": None}], id_column="key", on_error="raise")


@pytest.mark.parametrize("source", [None, 3, b"bytes", {"train": ["A"]}, datasets.DatasetDict()])
def test_a_source_of_another_kind_is_refused(source):
    with pytest.raises(TypeError, match=rf"{type(source).__name__}.*dataset\['train'\]"):
        read_documents(source)


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no document"):
        read_documents([])


def test_two_documents_of_one_id_are_an_error(tmp_path):
    rows = [{"text": "A", "id": "x"}, {"text": "B", "id": "x"}]
    with pytest.raises(ValueError, match="2 documents have the id 'x'"):
        read_documents(rows)
    lines = "\n".join(json.dumps(row) for row in rows)
    with pytest.raises(ValueError, match="2 documents have the id 'x'"):
        read_documents(write(tmp_path, {"a.jsonl": lines}))


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1))
def test_any_text_that_a_file_can_hold_comes_back_with_nothing_but_its_newlines_changed(texts):
    documents = read_documents(texts)
    assert [document.text for document in documents] == ["\n".join(t.replace("\r\n", "\r").split("\r")) for t in texts]
