from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import threading
import time
import zipfile
import zlib

import pandas
import pytest
from mixed_folder import BROKEN, docx, epub, make, notebook, pdf, pptx, ruled, table, xlsx, zipped

import embedtune as et
from embedtune.corpus import files, office, pdf_pages, pdf_tables
from embedtune.corpus.chunking import chunk_documents, questions_of
from embedtune.corpus.documents import read_documents


def read_one(folder, name, content, **options):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (document,) = read_documents(folder / name, **{"on_error": "raise"} | options)
    return document


# A folder as people have them


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return folder, make(folder)


def test_two_hundred_mixed_files_become_chunks_without_a_hand_on_them(mixed, caplog):
    folder, expected = mixed
    caplog.set_level(logging.WARNING)
    documents = read_documents(folder)
    chunks = chunk_documents(documents, max_tokens=200)
    text_of = {}
    for document in documents:
        path = document.id.rpartition(":")[0] or document.id
        text_of[path] = f"{text_of.get(path, '')} {' '.join(document.text.split())}"
    for name, text in expected.items():
        assert all(word in text_of[name] for word in text.encode("cp1252", "replace").decode("cp1252").split()), name
    for name in {*BROKEN, "pipe.txt", "outside.md"}:
        assert f"{folder / name}" in caplog.text, name
        assert name == "broken.jsonl" or name not in text_of
    assert len(caplog.records) <= 3
    assert "root:" not in " ".join(text_of.values())
    assert not [chunk for chunk in chunks if "base64" in chunk.text or len(max(chunk.text.split(), key=len)) > 100]
    assert not [chunk for chunk in chunks if "cookies" in chunk.text or "Fennholt manual" in chunk.text]
    by_id = {document.id: document.text for document in documents}
    assert all(by_id[chunk.document_id][chunk.start : chunk.end] == chunk.text for chunk in chunks)


def test_what_is_left_out_is_said_once_by_kind(mixed, caplog):
    read_documents(mixed[0])
    kinds = [
        "2 protected by a password",
        "1 without text, as scanned",
        "1 links that lead out",
        "1 pipes",
        "1 too large",
        "broken",
    ]
    for kind in kinds:
        assert caplog.text.count(kind) == 1 or kind == "broken", kind
    assert "question_column='question'" in caplog.text


# Each format


def test_a_pdf_keeps_its_pages_and_bookmarks_and_loses_its_headers(tmp_path):
    names = ["alpha", "beta", "gamma", "delta", "epsilon"]
    pages = [
        ["ACME pump", f"Part {name}", f"Word {name} stands.", f"Page {i} of 5"] for i, name in enumerate(names, start=1)
    ]
    document = read_one(
        tmp_path, "a.pdf", pdf(pages, title="Pump manual", bookmarks=[(1, "Part beta"), (3, "Part delta")])
    )
    assert document.title == "Pump manual"
    assert "ACME" not in document.text
    assert "of 5" not in document.text
    for name, start in zip(names, document.page_starts, strict=True):
        assert document.text.index(f"Word {name}") == document.text.index("Word", start)
    chunks = chunk_documents([document], max_tokens=8)
    assert {chunk.page for chunk in chunks if "gamma" in chunk.text} == {3}
    assert {chunk.headings for chunk in chunks if "delta" in chunk.text} == {("Part delta",)}


PRICES = [["part", "price", "note"], ["red valve", "4", "fits the small pump\nand the large one"], ["hose", "", "new"]]
ROWS = ["| part | price | note |", "| red valve | 4 | fits the small pump and the large one |", "| hose |  | new |"]


def test_rows_of_a_ruled_table_in_a_pdf_are_lines_with_their_cells_apart(tmp_path):
    page = ["All prices are in crowns.", *[""] * 12, "Ask for more."]
    document = read_one(tmp_path, "a.pdf", pdf([page, ["The end."]], drawing=ruled(PRICES, top=760)))
    first, second = document.text[: document.page_starts[1]], document.text[document.page_starts[1] :]
    assert [line for line in first.split("\n") if line] == ["All prices are in crowns.", "Ask for more.", *ROWS]
    assert "\n".join(ROWS) in first
    assert "\n".join(ROWS) in second


def test_two_tables_of_a_page_stay_where_they_are_and_a_cell_may_span_columns(tmp_path):
    below = ruled([["day", "open"], ["closed on Sundays", ""]], top=600, without=[(1, 0)])
    document = read_one(tmp_path, "a.pdf", pdf([["Prices"]], drawing=ruled(PRICES, top=760) + "\n" + below))
    assert [line for line in document.text.split("\n") if line] == [
        "Prices",
        *ROWS,
        "| day | open |",
        "| closed on Sundays |  |",
    ]


@pytest.mark.parametrize(
    "drawing",
    [
        ruled([["a frame around a text"]]),  # one cell
        "\n".join(f"{i % 500} {i // 9} m {i % 500 + 9} {i // 9 + 9} l S" for i in range(5000)),  # a drawing
        "40 700 m 500 700 l S",  # a line under a headline
    ],
)
def test_lines_that_are_no_table_leave_the_text_of_a_page_as_it_is(drawing):
    plain = pdf_pages.read(pdf([["one two", "three"]]))["pages"]
    assert pdf_pages.read(pdf([["one two", "three"]], drawing=drawing))["pages"][0].startswith(plain[0])


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (["Seal 1", "S-1", "7", "8"], "Seal 1 S-1 7 8"),
        (["red valve", "4", "fits"], "red valve 4 fits"),
        (["4", "valve", "5"], "4 valve 5"),
    ],
)
def test_single_digits_in_a_row_without_lines_stay_in_the_row_and_apart(cells, line):
    drawing = re.sub(r"\S+ \S+ m .* l S\n", "", ruled([cells], top=700) + "\n")
    assert " m " not in drawing
    (page,) = pdf_pages.read(pdf([["All prices are in crowns."]], drawing=drawing))["pages"]
    assert " ".join(page.split()).endswith(line)
    assert line.partition(" ")[2] in page


def test_text_beside_the_page_is_not_read():
    drawing = "BT /F1 8 Tf 1 0 0 1 40 900 Tm (printer) Tj ET"
    (page,) = pdf_pages.read(pdf([["Press both buttons."]], drawing=drawing))["pages"]
    assert page.strip() == "Press both buttons."
    (page,) = pdf_pages.read(pdf([["Press both buttons."]], drawing=f"{drawing}\n{ruled(PRICES)}"))["pages"]
    assert "printer" not in page
    assert ROWS[1] in page


@pytest.mark.parametrize("box", [b"[0 -50 595 842]", b"[-100 0 595 842]", b"[30 20 595 842]"])
def test_a_page_whose_corner_is_not_at_zero_has_the_text_of_its_table_once(box):
    (page,) = pdf_pages.read(pdf([["Prices"]], drawing=ruled(PRICES, top=760)).replace(b"[0 0 595 842]", box))["pages"]
    assert sorted(page.replace("|", " ").split()) == sorted(" ".join(["Prices", *ROWS]).replace("|", " ").split())


@pytest.mark.parametrize("shift", [0, 0.3])
def test_bold_cells_whose_letters_are_drawn_twice_are_read_once(shift):
    once = ruled(PRICES, top=760).split("\n")
    moved = ruled(PRICES, left=40 + shift, top=760).split("\n")
    twice = "\n".join(f"{line}\n{other}" for line, other in zip(once, moved, strict=True))
    (page,) = pdf_pages.read(pdf([["Prices"]], drawing=twice))["pages"]
    assert "\n".join(ROWS) in page


def test_the_lines_of_squared_paper_cut_no_words():
    squares = "\n".join(f"0 {i * 14} m 595 {i * 14} l S {i * 14} 0 m {i * 14} 842 l S" for i in range(60))
    (page,) = pdf_pages.read(pdf([["Press both buttons and wait."] * 3], drawing=squares))["pages"]
    assert page.split("\n")[:3] == ["Press both buttons and wait."] * 3


def test_a_table_that_cannot_be_read_or_would_lose_text_is_plain_text(monkeypatch):
    data = pdf([["Prices"]], drawing=ruled(PRICES, top=760))
    plain = {"part", "price", "note", "red", "valve", "4", "hose", "new", "Prices"}

    def broken(page):
        raise RecursionError

    def lossy(page, tables=pdf_tables._tables):
        return [(box, [row[:2] for row in rows]) for box, rows in tables(page)]

    def slow(page):
        time.sleep(5)

    monkeypatch.setattr(pdf_tables, "SECONDS", 0.2)
    for reads in (broken, lossy, slow):
        monkeypatch.setattr(pdf_tables, "_tables", reads)
        (page,) = pdf_pages.read(data)["pages"]
        assert "|" not in page
        assert plain <= set(page.split())


def test_pages_that_repeat_by_chance_are_kept_in_short_documents():
    assert office.without_repeated_lines(["same\na", "same\nb", "same\nc"]) == ["same\na", "same\nb", "same\nc"]
    long = office.without_repeated_lines(["head\na", "head\nb", "c", "d", "e", "f"])
    assert long == ["head\na", "head\nb", "c", "d", "e", "f"]
    assert office.without_repeated_lines(["all the same"] * 9) == ["all the same"] * 9


def test_a_page_number_reaches_the_hit(tmp_path, tiny_model):
    document = read_one(tmp_path, "a.pdf", pdf([["the pump is red"], ["the door is blue"]]))
    chunks = chunk_documents([document], max_tokens=5)
    retriever = et.Retriever.from_chunks(tiny_model, chunks, show_progress_bar=False)
    retriever.save(tmp_path / "saved")
    hits = et.Retriever.load(tmp_path / "saved", model=tiny_model).search("which door is blue", k=2)
    assert {hit.page for hit in hits if "door" in hit.text} == {2}


def test_word_keeps_headings_and_tables_whatever_language_its_styles_have(tmp_path):
    document = read_one(tmp_path, "a.docx", docx(["Pump", "Press <both>."], [["a", "b"], ["1", "2"]]))
    assert (document.title, document.text) == ("Pump", "# Pump\n\nPress <both>.\n\n| a | b |\n| 1 | 2 |")


def test_slides_keep_titles_tables_notes_and_numbers(tmp_path):
    document = read_one(tmp_path, "a.pptx", pptx([("One", ["x", "y"]), ("Two", ["z"])], notes="Spoken."))
    assert document.title == "One"
    assert document.text == "## One\n\nx\ny\n\n## Two\n\nz\n\n| part | price |\n| valve | 4 crowns |\n\nSpoken."
    assert [document.text[start : start + 6] for start in document.page_starts] == ["## One", "## Two"]


def test_a_workbook_keeps_its_sheets_as_tables(tmp_path):
    document = read_one(
        tmp_path, "a.xlsx", xlsx({"Parts": [["part", "price"], ["valve", 4.5], [], [None, "x"]], "No": []})
    )
    assert document.text == "## Parts\n\n| part | price |\n| valve | 4.5 |\n|  | x |"


def test_a_book_is_read_in_the_order_of_its_chapters(tmp_path):
    document = read_one(tmp_path, "a.epub", epub("Pumps & doors", [("B", "first"), ("A", "second")]))
    assert (document.title, document.text) == ("Pumps & doors", "# B\n\nfirst\n\n# A\n\nsecond")


def test_a_notebook_gives_its_texts_and_code(tmp_path):
    document = read_one(tmp_path, "a.ipynb", notebook("Pump", "Press both.", "x = 1\ny = 2"))
    assert (document.title, document.text) == ("Pump", "# Pump\n\nPress both.\n\n```\nx = 1\ny = 2\n```")


def test_headings_of_restructuredtext_become_those_of_markdown(tmp_path):
    content = "====\nPump\n====\n\nText::\n\n    code\n\nReset\n-----\n\nPress.\n\nLater\n^^^^^\nx\n\nEnd\n---\n"
    document = read_one(tmp_path, "a.rst", content)
    assert document.title == "Pump"
    assert [line for line in document.text.split("\n") if line] == [
        "# Pump", "Text::", "    code", "## Reset", "Press.", "### Later", "x", "## End",
    ]  # fmt: skip


# Tables


def test_rows_of_a_table_are_documents(tmp_path):
    rows = [["id", "text", "title"], ["a", 'two "quoted", lines\nhere', "T"], ["", "x", ""]]
    for name, separator in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        (tmp_path / name).write_text(table(rows, separator))
        first, second = read_documents(tmp_path / name, on_error="raise")
        assert (first.id, first.text, first.title) == ("a", 'two "quoted", lines\nhere', "T")
        assert (second.id, second.text, second.title) == (f"{name}:2", "x", "")


def test_without_a_text_column_a_row_is_all_its_columns_or_those_that_are_chosen(tmp_path):
    (tmp_path / "a.csv").write_text(table([["part", "price", "note"], ["valve", "4", ""], ["door", "5", "old"]]))
    assert [d.text for d in read_documents(tmp_path / "a.csv")] == [
        "part: valve\nprice: 4",
        "part: door\nprice: 5\nnote: old",
    ]
    chosen = read_documents(tmp_path / "a.csv", text_column=["note", "part"])
    assert [d.text for d in chosen] == ["part: valve", "note: old\npart: door"]


def test_questions_of_a_faq_are_offered_and_kept_out_of_the_text(tmp_path, caplog):
    (tmp_path / "faq.csv").write_text(table([["Question", "Answer"], ["How?", "Press both."], ["", "Turn it."]]))
    assert "Question: How?" in read_documents(tmp_path / "faq.csv")[0].text
    assert "question_column='Question'" in caplog.text
    documents = read_documents(tmp_path / "faq.csv", question_column="Question")
    assert [document.text for document in documents] == ["Answer: Press both.", "Answer: Turn it."]
    chunks = chunk_documents(documents)
    (question,) = questions_of(documents, chunks)
    assert (question.text, question.chunk_ids) == ("How?", (chunks[0].id,))
    assert questions_of(documents, chunk_documents(documents, max_tokens=2)) == []
    assert "cut into several chunks" in caplog.text


def test_a_row_with_too_many_columns_is_left_out_alone(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("text,id\nA,1\nB,2,3\nC,4\n")
    assert [document.text for document in read_documents(tmp_path)] == ["A", "C"]
    assert "row 2 has 3 columns, but the first row names 2" in caplog.text


def test_rows_above_a_field_that_is_too_long_are_kept(tmp_path, caplog):
    (tmp_path / "a.csv").write_text(f"text\nA\n{'b' * 200_000}\n")
    assert [document.text for document in read_documents(tmp_path)] == ["A"]
    assert "row 2" in caplog.text


def test_a_data_frame_is_read_by_its_columns():
    frame = pandas.DataFrame(
        {"text": ["Press.", None, "Turn."], "id": ["a", "b", "c"], "title": ["T", "U", float("nan")]}
    )
    assert [(d.id, d.text, d.title) for d in read_documents(frame)] == [("a", "Press.", "T"), ("c", "Turn.", "")]
    frame = pandas.DataFrame({"part": ["valve"], "price": [4]})
    assert [d.text for d in read_documents(frame)] == ["part: valve\nprice: 4"]


# Paths


def test_a_list_of_paths_is_read_as_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.md").write_text("A")
    (tmp_path / "b" / "c.txt").write_text("C")
    for paths in ([tmp_path / "a.md", tmp_path / "b"], [str(tmp_path / "a.md"), str(tmp_path / "b" / "c.txt")]):
        assert [(d.id, d.text) for d in read_documents(paths)] == [("a.md", "A"), ("b/c.txt", "C")]
    with pytest.raises(FileNotFoundError, match=r"no\.md"):
        read_documents([tmp_path / "no.md"])
    assert [d.text for d in read_documents([str(tmp_path / "a.md"), "a text"])] == [str(tmp_path / "a.md"), "a text"]


def test_nothing_outside_the_folder_is_read(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.md").write_text("secret")
    (tmp_path / "in" / "a.md").write_text("A")
    (tmp_path / "in" / "link.md").symlink_to("../secret.md")
    (tmp_path / "in" / "device.txt").symlink_to("/dev/zero")
    assert [document.text for document in read_documents(tmp_path / "in")] == ["A"]
    assert "2 links that lead out of the folder" in caplog.text


def test_a_file_that_becomes_a_link_while_it_is_read_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.md").write_text("secret")
    file = tmp_path / "in" / "a.md"
    file.write_text("A")
    resolve = type(file).resolve

    def swapped(path, strict=False):
        target = resolve(path, strict=strict)
        if path == file:
            file.unlink()
            file.symlink_to(tmp_path / "secret.md")
        return target

    monkeypatch.setattr(type(file), "resolve", swapped)
    with pytest.raises(ValueError, match="cannot be read"):
        files.read_bytes(file, inside=tmp_path / "in")


def test_names_of_files_do_not_forge_lines_of_the_log(tmp_path, caplog):
    (tmp_path / "a\nERROR root: forged\x1b[2J.txt").write_bytes(b"a\0")
    (tmp_path / "b.txt").write_text("B")
    (tmp_path / "c\nERROR.txt").write_text(" ")
    read_documents(tmp_path)
    assert "\x1b" not in caplog.text
    assert not [line for line in caplog.text.splitlines() if line.startswith("ERROR")]


def test_a_name_in_latin_1_is_read_and_named(tmp_path, caplog):
    import os

    try:
        name = os.fsdecode(os.fsencode(tmp_path) + b"/Stra\xdfe.md")
        with open(name, "w") as file:  # noqa: PTH123
            file.write("Text")
    except OSError:
        pytest.skip("this file system has no such names")
    assert [document.id for document in read_documents(tmp_path)] == ["Straße.md"]
    assert "Straße.md is not UTF-8" in caplog.text


# What is hostile


def unzipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def bomb(kind):
    """A small PDF with a page of 200 MB, packed twice, or with forms that show forms, ten times each."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Count 1 /Kids [3 0 R] >>"]
    fonts = "/Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources << {fonts} /XObject << /X 5 0 R >> >> >>"
    shown = b"BT /F1 9 Tf 1 0 0 1 40 700 Tm (ab) Tj ET\n"
    if kind == "content":
        streams = [("/Filter [/FlateDecode /FlateDecode]", zlib.compress(zlib.compress(shown * 5_000_000)))]
    else:
        streams = [("", b"/X Do")]
        for i in range(6, 16):
            form = (
                f"/Type /XObject /Subtype /Form /BBox [0 0 595 842] /Resources << {fonts} /XObject << /X {i} 0 R >> >>"
            )
            streams.append((form, shown if i == 15 else b"/X Do " * 10))
    bodies = [*(one.encode() for one in [*objects, page])]
    bodies += [
        b"<< %s /Length %d >>\nstream\n%s\nendstream" % (head.encode(), len(data), data) for head, data in streams
    ]
    return (
        b"%PDF-1.4\n"
        + b"".join(b"%d 0 obj\n%s\nendobj\n" % one for one in enumerate(bodies, 1))
        + b"trailer << /Root 1 0 R >>"
    )


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"a\.docx unpacks to 1 files and 200 MB"):
        read_one(tmp_path, "a.docx", zipped({"word/document.xml": bytes(200 * 2**20)}))


def test_text_in_an_archive_is_counted_whatever_its_name_is(tmp_path):
    (tmp_path / "a.docx").write_bytes(zipped({"word/document.png": b"<a>" + bytes(129 * 2**20)}))
    with pytest.raises(ValueError, match=r"a.docx unpacks to 1 files and 129 MB, 129 MB of them text"):
        et.read_documents(tmp_path, on_error="raise")
    (tmp_path / "a.docx").write_bytes(zipped({"word/media/picture.png": b"\x89PNG" + bytes(129 * 2**20)}))
    with pytest.raises(ValueError, match=r"a.docx cannot be read"):  # nothing but a picture, and not too large
        et.read_documents(tmp_path, on_error="raise")


def test_a_long_text_that_a_million_cells_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(office, "MAX_CHARACTERS", 100_000)
    (tmp_path / "a.xlsx").write_bytes(xlsx({"Sheet": [["x" * 1_000] * 10] * 11}))
    with pytest.raises(ValueError, match=r"a.xlsx has more than 5,000,000 cells or 100,000 characters"):
        et.read_documents(tmp_path, on_error="raise")


def test_a_chapter_that_is_listed_a_thousand_times_is_read_once(tmp_path):
    files = unzipped(epub("Book", [("One", "First."), ("Two", "Second.")]))
    files["OEBPS/book.opf"] = files["OEBPS/book.opf"].replace(b"<spine>", b"<spine>" + b'<itemref idref="c0"/>' * 1_000)
    (tmp_path / "a.epub").write_bytes(zipped(files))
    (document,) = et.read_documents(tmp_path)
    assert document.text == "# One\n\nFirst.\n\n# Two\n\nSecond."


@pytest.mark.parametrize("kind", ["content", "forms"])
def test_a_pdf_that_unpacks_to_too_much_is_refused_in_time_and_the_others_are_read(tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setattr(office, "PDF_SECONDS", 3)
    (tmp_path / "bomb.pdf").write_bytes(bomb(kind))
    (tmp_path / "good.pdf").write_bytes(pdf([["Press both buttons."]]))
    assert (tmp_path / "bomb.pdf").stat().st_size < 400_000
    assert [document.id for document in et.read_documents(tmp_path)] == ["good.pdf"]
    assert "bomb.pdf was not read in 3 seconds" in caplog.text or "bomb.pdf unpacks to too much" in caplog.text


def test_a_crash_of_the_program_that_reads_pdfs_costs_one_file(tmp_path, monkeypatch, caplog):
    crashing = tmp_path / "crash.py"
    crashing.write_text("import os; os.abort()")
    monkeypatch.setattr(office.pdf_pages, "__file__", str(crashing))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.pdf").write_bytes(pdf([["Press both buttons."]]))
    (tmp_path / "folder/b.md").write_text("Turn the key.")
    assert [document.id for document in et.read_documents(tmp_path / "folder")] == ["b.md"]
    assert "a.pdf cannot be read (crash)" in caplog.text


def test_an_archive_that_lies_about_its_size_is_broken_and_costs_no_memory(tmp_path):
    import struct

    honest = zipped({"word/document.xml": bytes(150 * 2**20)})
    lying = honest.replace(struct.pack("<L", 150 * 2**20), struct.pack("<L", 1000))
    with pytest.raises(ValueError, match=r"a\.docx cannot be read"):
        read_one(tmp_path, "a.docx", lying)


def test_a_sheet_that_claims_a_million_rows_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(office, "MAX_CELLS", 100_000)
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(xlsx({"S": [["valve"]]}))) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    sheet = parts["xl/worksheets/sheet1.xml"]
    parts["xl/worksheets/sheet1.xml"] = sheet.replace(b'ref="A1"', b'ref="A1:XFD1048576"')
    assert read_one(tmp_path, "a.xlsx", zipped(parts)).text == "## S\n\n| valve |"
    parts["xl/worksheets/sheet1.xml"] = sheet.replace(b'r="A1"', b'r="A999999999"').replace(
        b'<row r="1"', b'<row r="999999999"'
    )
    with pytest.raises(ValueError, match="more than 100,000 cells"):
        read_one(tmp_path, "a.xlsx", zipped(parts))


def test_entities_of_xml_are_not_expanded(tmp_path):
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "boom">{entities}<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    body = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>&{};</w:t></w:r></w:p></w:body></w:document>'  # fmt: skip
    for name in ("a11", "f"):
        with pytest.raises(ValueError, match=r"a\.docx"):
            read_one(tmp_path, "a.docx", zipped({"word/document.xml": bomb + body.replace("{}", name)}))


def test_without_the_extra_the_remedy_is_named():
    code = (
        "import sys; sys.modules['pypdfium2'] = None\n"
        "from embedtune.corpus.office import read_office; from pathlib import Path\n"
        "try: read_office(b'%PDF', Path('a.pdf'))\n"
        "except ValueError as err: print(err)\n"
        "print({'pypdfium2', 'mammoth', 'pptx', 'openpyxl', 'lxml', 'selectolax'} & {name for name, m in sys.modules.items() if m})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["a.pdf needs pypdfium2: pip install 'embedtune[documents]'", "set()"]


def test_threads_may_read_pdfs_at_once(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf([["the pump is red"]] * 20))
    found = []
    threads = [threading.Thread(target=lambda: found.append(read_documents(tmp_path)[0].text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
