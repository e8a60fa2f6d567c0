"""Reads PDF, Word, PowerPoint, Excel and EPUB, by libraries of the extra ``documents``."""

from __future__ import annotations

import io
import json
import os
import posixpath
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from embedtune.corpus import pdf_pages, pdf_tables
from embedtune.corpus.formats import Content, first_heading, page_of_html
from embedtune.corpus.problems import UnreadableError, one_line

EXTENSIONS = (".pdf", ".docx", ".pptx", ".xlsx", ".epub")

MAX_UNPACKED = 1024 * 2**20  # bytes of all files in an archive
MAX_MARKUP = 128 * 2**20  # bytes of its XML, of which a tree takes about ten times as much memory
MAX_FILES = 20_000
MAX_CELLS = 5_000_000  # of a workbook
PDF_SECONDS, PDF_SECONDS_PER_MB = 60 + pdf_tables.SECONDS, 5
MAX_CHARACTERS = 128 * 2**20  # of the tables of a workbook, in which cells can share a long text

_SMALL, _HEAD = 2**20, 1024  # bytes
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # old formats of Office, and new ones with a password
_PASSWORD = "protected by a password"
_NEEDS_EXTRA = "that need pip install 'embedtune[documents]'"


def read_office(data: bytes, file: Path) -> Content:
    """Return the content of a file in one of the `EXTENSIONS`.

    Raises:
        UnreadableError: If it is broken, protected by a password, has no text, or unpacks to too much; or if the extra is not
            installed.
    """
    shown, extension = one_line(file), file.suffix.lower()
    if extension == ".pdf":
        return _pdf(data, shown)
    if data.startswith(_OLE):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise UnreadableError(_PASSWORD, f"{shown} is protected by a password. Remove it in Office.")
        raise UnreadableError(
            "in a format that is not read", f"{shown} is in a format of Office before 2007. Save it as {extension}."
        )
    read: dict[str, Callable[[bytes, str], Content]] = {".docx": _docx, ".pptx": _pptx, ".xlsx": _xlsx, ".epub": _epub}
    with _broken(shown):
        _require_sizes(data, shown)
        return read[extension](data, shown)


@contextmanager
def _broken(shown: str) -> Iterator[None]:
    """Name the file that a library cannot read: each raises errors of its own, and of the XML below."""
    try:
        yield
    except (UnreadableError, MemoryError):
        raise
    except ImportError as err:
        raise UnreadableError(
            _NEEDS_EXTRA,
            f"{shown} needs {err.name}: pip install 'embedtune[documents]'",
        ) from err
    except Exception as err:
        raise UnreadableError(
            "broken", f"{shown} cannot be read ({type(err).__name__}). Open and save it again."
        ) from err


def _require_sizes(data: bytes, shown: str) -> None:
    """Refuse an archive by what it says that it unpacks to; reading stops where a file is larger than it says."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = archive.infolist()
        large = [one for one in files[:MAX_FILES] if one.file_size > _SMALL]
        markup = sum(one.file_size for one in files) - sum(one.file_size for one in large if _is_media(archive, one))
    total = sum(one.file_size for one in files)
    if len(files) > MAX_FILES or total > MAX_UNPACKED or markup > MAX_MARKUP:
        raise UnreadableError(
            "too large",
            f"{shown} unpacks to {len(files):,} files and {total / 2**20:,.0f} MB, {markup / 2**20:,.0f} MB of them text; at "
            f"most {MAX_FILES:,}, {MAX_UNPACKED / 2**20:,.0f} and {MAX_MARKUP / 2**20:,.0f} are read. Split it.",
        )


def _is_media(archive: zipfile.ZipFile, one: zipfile.ZipInfo) -> bool:
    """Return whether a file is no XML, by its first bytes: a part of a document may have any name."""
    with archive.open(one) as file:
        head = file.read(_HEAD).lstrip(b"\xef\xbb\xbf\xff\xfe\0\t\n\r ")
    return bool(head) and not head.startswith(b"<")


def _pdf(data: bytes, shown: str) -> Content:
    found = _pages_of_pdf(data, shown)
    pages = found["pages"]
    if not any(page.strip() for page in pages):
        raise UnreadableError(
            "without text, as scanned pages are",
            f"{shown} has {len(pages)} pages but no text. Run OCR over it, for instance ocrmypdf.",
        )
    pages = without_repeated_lines(pages)
    for number, level, heading in found["bookmarks"]:
        if number is not None and number < len(pages):
            pages[number] = _with_heading(pages[number], heading, level)
    title = re.sub(r"^Microsoft \w+ - ", "", found["title"] or "").strip("\0 ") or first_heading("\n".join(pages))
    return Content(tuple(pages), title.encode("utf-8", "replace").decode(), has_page_numbers=True)


def _pages_of_pdf(data: bytes, shown: str) -> dict[str, Any]:
    """Read a PDF in a process of its own, see `pdf_pages`."""
    if find_spec("pypdfium2") is None:
        raise UnreadableError(_NEEDS_EXTRA, f"{shown} needs pypdfium2: pip install 'embedtune[documents]'")
    seconds = PDF_SECONDS + PDF_SECONDS_PER_MB * len(data) / 2**20
    try:
        ended = subprocess.run(
            [sys.executable, pdf_pages.__file__],
            input=data,
            capture_output=True,
            timeout=seconds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise UnreadableError(
            "too large", f"{shown} was not read in {seconds:.0f} seconds. Print it anew as PDF."
        ) from err
    found: dict[str, Any] = json.loads(ended.stdout) if not ended.returncode else {"problem": "crash"}
    problem = found.get("problem")
    if problem == "password":
        raise UnreadableError(_PASSWORD, f"{shown} is protected by a password. Save it without one.")
    if problem == "pages":
        raise UnreadableError(
            "too large", f"{shown} has {found['num_pages']:,} pages, more than {pdf_pages.MAX_PAGES:,}. Split it."
        )
    if problem in ("memory", "text"):
        raise UnreadableError("too large", f"{shown} unpacks to too much. Print it anew as PDF, or split it.")
    if problem:
        raise UnreadableError(
            "broken", f"{shown} cannot be read ({found.get('error', 'crash')}). Open and save it again."
        )
    return found


def _with_heading(page: str, heading: str, level: int) -> str:
    """Mark the line of a page that a bookmark names as a heading."""
    wanted = " ".join(heading.split()).casefold()
    lines = page.split("\n")
    for number, line in enumerate(lines):
        if wanted and " ".join(line.split()).casefold() == wanted:
            lines[number] = f"\n{'#' * min(level, 6)} {line.strip()}\n"
            break
    return "\n".join(lines)


def without_repeated_lines(pages: Iterable[str], *, depth: int = 2) -> list[str]:
    r"""Take out headers and footers: lines among the first or last of a page that at least half of the pages have.

    Numbers may differ, as those of pages do. Documents of fewer than four pages, and those that have nothing
    else, are kept whole.

    Example:
        >>> without_repeated_lines([f"Acme manual\n{word}\nPage {i}" for i, word in enumerate(["red", "blue", "green", "grey"])])
        ['red', 'blue', 'green', 'grey']
    """
    split = [page.strip().split("\n") for page in pages]
    if len(split) < 4:
        return ["\n".join(lines) for lines in split]

    def edges(lines: list[str]) -> list[int]:
        return sorted({*range(min(depth, len(lines))), *range(max(0, len(lines) - depth), len(lines))})

    def key(line: str) -> str:
        return re.sub(r"\d+", "0", " ".join(line.split()))

    counts = Counter(one for lines in split for one in {key(lines[place]) for place in edges(lines)})
    repeated = {line for line, count in counts.items() if line and count >= max(3, len(split) / 2)}
    kept = []
    for lines in split:
        gone = {place for place in edges(lines) if key(lines[place]) in repeated}
        kept.append("\n".join(line for place, line in enumerate(lines) if place not in gone))
    return kept if any(page.strip() for page in kept) else ["\n".join(lines) for lines in split]


def _docx(data: bytes, shown: str) -> Content:
    import mammoth

    styles = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh"
    html = mammoth.convert_to_html(
        io.BytesIO(data),
        style_map=styles,
        convert_image=mammoth.images.img_element(lambda _: {}),
        external_file_access=False,
    ).value
    return _with_text(page_of_html(html, shown), shown)


def _pptx(data: bytes, shown: str) -> Content:
    from pptx import Presentation

    presentation = Presentation(io.BytesIO(data))
    slides = tuple("\n\n".join(filter(None, _slide(slide))) for slide in presentation.slides)
    title = presentation.core_properties.title or ""
    first = next((text.lstrip("# ").split("\n")[0] for text in slides if text.startswith("## ")), "")
    return _with_text(
        Content(slides, "" if title == "PowerPoint Presentation" else title or first, has_page_numbers=True), shown
    )


def _slide(slide: Any) -> Iterator[str]:
    """Yield the title, the texts and tables, and the notes of a slide."""
    title = slide.shapes.title
    if title is not None and title.has_text_frame and title.text_frame.text.strip():
        yield f"## {' '.join(title.text_frame.text.split())}"
    shapes = list(slide.shapes)[::-1]
    while shapes:
        shape = shapes.pop()
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if hasattr(shape, "shapes"):  # a group
            shapes += list(shape.shapes)[::-1]
        elif getattr(shape, "has_table", False) and shape.has_table:
            yield _table([cell.text for cell in row.cells] for row in shape.table.rows)
        elif shape.has_text_frame:
            lines = [paragraph.text.replace("\v", "\n").strip() for paragraph in shape.text_frame.paragraphs]
            yield "\n".join(filter(None, lines))
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        yield slide.notes_slide.notes_text_frame.text.replace("\v", "\n").strip()


def _xlsx(data: bytes, shown: str) -> Content:
    import openpyxl

    workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    left, characters = MAX_CELLS, MAX_CHARACTERS
    parts = []
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # what the file says of its size may be wrong
        rows: list[list[str]] = []
        for cells in sheet.iter_rows(values_only=True):
            row = ["" if value is None else str(value) for value in cells]
            left -= len(cells) + 1
            characters -= sum(map(len, row))
            if left < 0 or characters < 0:
                raise UnreadableError(
                    "too large",
                    f"{shown} has more than {MAX_CELLS:,} cells or {MAX_CHARACTERS:,} characters. Split it, or read it as a "
                    "DataFrame.",
                )
            while row and not row[-1].strip():
                row.pop()
            rows += [row] if row else []
        if rows:
            parts.append(f"## {sheet.title}\n\n{_table(rows)}")
    workbook.close()
    return _with_text(Content(("\n\n".join(parts),), workbook.properties.title or ""), shown)


def _table(rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in row)} |" for row in rows)


def _epub(data: bytes, shown: str) -> Content:
    """Read the chapters of a book in their order."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, recover=True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "META-INF/encryption.xml" in archive.namelist() and "META-INF/rights.xml" in archive.namelist():
            raise UnreadableError(_PASSWORD, f"{shown} is protected by digital rights management.")
        container = etree.fromstring(archive.read("META-INF/container.xml"), parser)
        package = container.xpath("string(//*[local-name()='rootfile']/@full-path)")
        book = etree.fromstring(archive.read(package), parser)
        path_of = {item.get("id"): item.get("href") for item in book.xpath("//*[local-name()='manifest']/*[@href]")}
        spine = [
            path_of[item.get("idref")]
            for item in book.xpath("//*[local-name()='itemref']")
            if item.get("idref") in path_of
        ]
        names = [posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(path))) for path in spine]
        chapters = [
            page_of_html(archive.read(name).decode("utf-8", "replace"), shown)
            for name in dict.fromkeys(names)  # a chapter may be listed a million times
            if name in archive.namelist()
        ]
        title = " ".join(book.xpath("string(//*[local-name()='title'])").split())
    text = "\n\n".join(chapter.pages[0] for chapter in chapters if chapter.pages[0].strip())
    return _with_text(Content((text,), title or first_heading(text)), shown)


def _with_text(content: Content, shown: str) -> Content:
    if not any(page.strip() for page in content.pages):
        raise UnreadableError("without text", f"{shown} has no text. If it holds pictures of text, run OCR over them.")
    return content
