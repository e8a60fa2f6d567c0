"""Reads a PDF from standard input and writes its pages as JSON. A program of its own, so that no PDF can harm another process.

A few hundred bytes of PDF can unpack to gigabytes, or call a form that calls forms; and PDFium is written in C++. Here the
operating system bounds its memory, the caller its time, and a crash is the end of one file.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

MAX_PAGES = 20_000
MAX_CHARACTERS = 128 * 2**20
MAX_MEMORY = 4 * 2**30  # bytes, where the operating system can limit them


def main() -> None:
    """Write the pages, bookmarks and title of a PDF, or what is wrong with it."""
    data = sys.stdin.buffer.read()
    _limit_memory()
    try:
        found = read(data)
    except MemoryError:
        found = {"problem": "memory"}
    except Exception as err:
        found = {"problem": "password" if "password" in str(err).lower() else "broken", "error": type(err).__name__}
    sys.stdout.buffer.write(json.dumps(found).encode())


def read(data: bytes) -> dict[str, Any]:
    """Return the text of each page, the bookmarks as triples of a page from 0, a level and a title, and the title."""
    import pypdfium2

    from embedtune.corpus.pdf_tables import page_text, pages_with_tables

    pdf = pypdfium2.PdfDocument(data)
    if len(pdf) > MAX_PAGES:
        return {"problem": "pages", "num_pages": len(pdf)}
    pages: list[str] = []
    left = MAX_CHARACTERS
    for number in range(len(pdf)):
        page = pdf[number]
        pages.append(_plain(page_text(page)))
        page.close()
        left -= len(pages[-1])
        if left < 0:
            return {"problem": "text"}
    for number, text in pages_with_tables(data, pdf).items():
        pages[number] = _plain(text) or pages[number]
    bookmarks = [(one.get_dest(), one.level, one.get_title()) for one in pdf.get_toc(max_depth=6)]
    return {
        "pages": pages,
        "bookmarks": [(to.get_index(), level + 1, text) for to, level, text in bookmarks if to is not None],
        "title": pdf.get_metadata_dict().get("Title", ""),
    }


def _plain(text: str) -> str:
    text = re.sub("[\ufffe\x02]\\s*", "", text)  # a word that was divided at the end of a line
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").encode("utf-8", "replace").decode()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MAX_MEMORY if most == resource.RLIM_INFINITY else min(MAX_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    main()
