"""Makes a folder as people have them: all formats that are read, in several encodings, some files broken on purpose."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import random
import re
import zipfile

from embedtune.sample import load_sample

DOCX = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Default Extension="xml" ContentType='
    '"application/xml"/><Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
    'wordprocessingml.document.main+xml"/><Override PartName="/word/styles.xml" ContentType="application/vnd.openxmlformats-'
    'officedocument.wordprocessingml.styles+xml"/></Types>',
    "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type='
    '"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/></Relationships>',
    "word/_rels/document.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship '
    'Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/styles" Target="styles.xml"/></Relationships>',
    "word/styles.xml": '<w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:style w:type="paragraph" '
    'w:styleId="berschrift1"><w:name w:val="heading 1"/></w:style></w:styles>',
}  # fmt: skip


ESCAPES = {40: r"\(", 41: r"\)", 92: r"\\"}  # in strings of a PDF


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def docx(paragraphs, rows=(), *, extra=""):
    """A Word file; the first paragraph is its heading. The style's id is German, as Word writes it there."""

    def paragraph(text, style=""):
        mark = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
        return f'<w:p>{mark}<w:r><w:t xml:space="preserve">{html.escape(text)}</w:t></w:r></w:p>'

    cells = "".join(f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in row)}</w:tr>" for row in rows)
    body = "".join(paragraph(text, "" if i else "berschrift1") for i, text in enumerate(paragraphs))
    table = f"<w:tbl>{cells}</w:tbl>" if rows else ""
    document = (
        f'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{body}{table}{extra}'
        "</w:body></w:document>"
    )
    return zipped({**DOCX, "word/document.xml": document})


def pdf(pages, *, title="", bookmarks=(), password=False, drawing=""):
    """A PDF with one line of text per line, bookmarks as pairs of a page from 0 and a title, and a drawing on each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R /Outlines 4 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>", ""]  # fmt: skip
    kids = []
    for lines in pages:
        shown = "".join(f"({line.translate(ESCAPES)}) Tj T*\n" for line in lines)
        content = f"BT /F1 9 Tf 12 TL 40 780 Td\n{shown}ET\n{drawing}"
        objects.append(f"<< /Length {len(content.encode('cp1252', 'replace'))} >>\nstream\n{content}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {len(objects)} 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(len(objects))
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>"
    first = len(objects) + 1
    last = first + len(bookmarks) - 1
    objects[3] = f"<< /First {first} 0 R /Last {last} 0 R /Count {len(bookmarks)} >>" if bookmarks else "<< >>"
    for number, (page, name) in enumerate(bookmarks):
        links = (f" /Prev {first + number - 1} 0 R" if number else "") + (
            f" /Next {first + number + 1} 0 R" if first + number < last else ""
        )
        objects.append(f"<< /Title ({name}) /Parent 4 0 R /Dest [{kids[page]} 0 R /Fit]{links} >>")
    objects.append(f"<< /Title ({title}) >>")
    trailer = f"/Root 1 0 R /Info {len(objects)} 0 R"
    if password:
        objects.append(f"<< /Filter /Standard /V 1 /R 2 /P -4 /O <{'ab' * 32}> /U <{'cd' * 32}> >>")
        trailer += f" /Encrypt {len(objects)} 0 R /ID [<{'12' * 16}> <{'12' * 16}>]"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + body.encode("cp1252", "replace") + b"\nendobj\n"
    table = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n" + "".join(
        f"{place:010} 00000 n \n" for place in places
    )
    end = f"trailer << /Size {len(objects) + 1} {trailer} >>\nstartxref\n{len(out)}\n%%EOF"
    return out + table.encode() + end.encode()


def ruled(rows, *, left=40, top=700, width=100, height=20, without=()):
    """The drawing of a table: lines around cells, and their texts, which may have several lines; ``without`` leaves out lines.

    A line to leave out is a place of a cell (row, column): the line at its right side.
    """
    parts = ["0.5 w"]
    for row, cells in enumerate(rows):
        for column, text in enumerate(cells):
            x, y = left + column * width, top - (row + 1) * height
            right = [] if (row, column) in without else [((x + width, y), (x + width, y + height))]
            lines = [((x, y), (x + width, y)), ((x, y + height), (x + width, y + height)), *right]
            lines += [] if column else [((x, y), (x, y + height))]
            parts += [f"{a} {b} m {c} {d} l S" for (a, b), (c, d) in lines]
            for number, line in enumerate(text.split("\n")):
                parts.append(
                    f"BT /F1 8 Tf 1 0 0 1 {x + 4} {y + height - 9 - 9 * number} Tm ({line.translate(ESCAPES)}) Tj ET"
                )
    return "\n".join(parts)


def pptx(slides, notes=""):
    """Slides, each a title and its lines; the last has a table and notes."""
    import pptx as library

    presentation = library.Presentation()
    for title, lines in slides:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = "\n".join(lines)
    table = slide.shapes.add_table(2, 2, 0, 0, 100, 100).table
    for place, text in enumerate(("part", "price", "valve", "4 crowns")):
        table.cell(place // 2, place % 2).text = text
    slide.notes_slide.notes_text_frame.text = notes
    buffer = io.BytesIO()
    presentation.save(buffer)
    return buffer.getvalue()


def xlsx(sheets):
    import openpyxl

    workbook = openpyxl.Workbook()
    workbook.remove(workbook.active)
    for name, rows in sheets.items():
        sheet = workbook.create_sheet(name)
        for row in rows:
            sheet.append(row)
    buffer = io.BytesIO()
    workbook.save(buffer)
    return buffer.getvalue()


def epub(title, chapters):
    files = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
        'full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>'
        f"{html.escape(title)}</dc:title></metadata><manifest>"
        + "".join(f'<item id="c{i}" href="text%20{i}.xhtml"/>' for i in range(len(chapters)))
        + "</manifest><spine>" + "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters))) + "</spine></package>",
    }  # fmt: skip
    for i, (heading, text) in enumerate(chapters):
        files[f"OEBPS/text {i}.xhtml"] = page(heading, text, head='<?xml version="1.0"?>')
    return zipped(files)


def page(heading, text, *, head="<!doctype html>", around="{}"):
    body = f"<h1>{html.escape(heading)}</h1>" + "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
    return f"{head}<html><head><title>{html.escape(heading)}</title></head><body>{around.format(body)}</body></html>"


def notebook(heading, text, code):
    cells = [("markdown", f"# {heading}\n\n{text}"), ("code", code)]
    return json.dumps(
        {"nbformat": 4, "cells": [{"cell_type": k, "source": s.splitlines(keepends=True)} for k, s in cells]}
    )


def table(rows, delimiter=","):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    return buffer.getvalue()


BROKEN = {
    "scan.pdf": lambda: pdf([[], [], []]),
    "secret.pdf": lambda: pdf([["Nobody reads this."]], password=True),
    "cut off.pdf": lambda: pdf([["Half a file."]])[:120],
    "not a zip.docx": lambda: b"PK\x03\x04 and then nothing",
    "old.docx": lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "locked.xlsx": lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
    "bomb.pptx": lambda: zipped({"ppt/slides/slide1.xml": bytes(130 * 2**20)}),
    "no book.epub": lambda: zipped({"mimetype": "application/epub+zip"}),
    "binary.txt": lambda: b"\x7fELF\0\0\0",
    "front.md": lambda: b"---\ntitle: [\n---\nText.",
    "empty.md": lambda: b"",
    "broken.ipynb": lambda: b'{"cells": 3}',
    "broken.jsonl": lambda: b'{"text": "This line is read."}\n{"text": \n[]\n',
    "legacy.doc": lambda: b"\xd0\xcf\x11\xe0",
}


def content(kind, number, title, text, picture):
    words = text.split()
    lines = [" ".join(words[i : i + 12]) for i in range(0, len(words), 12)]
    return {
        "md": lambda: f"# {title}\n\n{text}\n\n![picture](data:image/png;base64,{picture})\n",
        "txt": lambda: text.encode(["utf-8", "cp1252", "utf-16"][number % 3], "replace"),
        "html": lambda: page(title, text, around="<nav>Home</nav><main>{}</main><footer>We use cookies.</footer>"),
        "pdf": lambda: pdf(
            [
                ["Fennholt manual", *([title] if i == 1 else []), *lines[i:], *lines[:i], f"Page {i + 1}"]
                for i in range(5)
            ],
            bookmarks=[(1, title)],
        ),
        "docx": lambda: docx([title, text], [["part", "price"], ["valve", "4 crowns"]]),
        "pptx": lambda: pptx([(title, lines), ("More", ["Ask the desk."])], notes="Say this slowly."),
        "xlsx": lambda: xlsx({"Parts": [["part", "note"], ["valve", text]], "Empty": []}),
        "epub": lambda: epub(title, [(title, text), ("The end", "No more.")]),
        "csv": lambda: table(
            [["question", "answer"], ["What is said?", text], ["And then?", "Ask the desk."]], ";,"[number % 2]
        ),
        "ipynb": lambda: notebook(title, text, "print('pump')"),
        "rst": lambda: f"{title}\n{'=' * len(title)}\n\n{text}\n\nMore\n----\n\nAsk the desk.\n",
        "jsonl": lambda: json.dumps({"text": text, "title": title}) + "\n",
        "tsv": lambda: table([["part", "note"], ["valve", text]], "\t"),
    }[kind]()


def make(folder, *, num_files=200):
    """Write the files, and return a sentence that each readable one holds, by name."""
    passages = [
        (document.title, paragraph)
        for document in load_sample().documents
        for paragraph in document.text.split("\n\n")
        if len(paragraph) > 150 and not paragraph.startswith(("#", "|", "-"))
    ]
    rng = random.Random(0)
    picture = base64.b64encode(rng.randbytes(20_000)).decode()
    kinds = ["md", "txt", "html", "pdf", "docx", "pptx", "xlsx", "epub", "csv", "ipynb", "rst", "jsonl", "tsv"]
    expected = {}
    for number in range(num_files - len(BROKEN)):
        kind = kinds[number % len(kinds)]
        title, text = passages[number % len(passages)]
        title, text = f"{title} {number}", " ".join(text.replace("**", "").split())
        made = content(kind, number, title, text, picture)
        name = f"{['desk', 'workshop/manuals', 'sales'][number % 3]}/{number:03} {title.split()[0]}.{kind}"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(made.encode() if isinstance(made, str) else made)
        expected[name] = text
    for name, broken in BROKEN.items():
        (folder / name).write_bytes(broken())
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.txt")
    (folder / "outside.md").symlink_to("/etc/passwd")
    return expected


COMMON = {"and", "are", "for", "the", "this", "that", "with", "has", "have", "not", "from", "who", "what", "was"}


def written(request):
    """Two questions in words of the passage, as JSON in prose; now and then a reply that is none."""
    passage = re.sub(r"<[^<>]*>", " ", request)
    words = [word for word in re.findall(r"[A-Za-z]{4,}", passage) if word.lower() not in COMMON]
    if len(words) < 6 or len(passage) % 17 == 0:
        return "I am sorry, there is nothing to ask about this."
    at = len(passage) % max(1, len(words) - 6)
    some = " ".join(words[at : at + 4])
    return {
        "questions": [
            {"style": "natural", "question": f"What do I have to know about {some}?", "answer": " ".join(words[at : at + 6])},
            {"style": "keyword", "question": some.lower(), "answer": " ".join(words[at : at + 6])},
        ]
    }  # fmt: skip
