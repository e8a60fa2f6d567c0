"""Sets tables on the pages of a PDF: each row is a line, and its cells stay apart."""

from __future__ import annotations

import io
import signal
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

SECONDS = 20  # for all pages of a file; later tables stay plain text
MAX_PATHS = 4_000  # of a page: a drawing has more, a table has hundreds

_MOST_CUT = 0.25  # of the words in a table; the two libraries differ in some spaces and hyphens
_LEAST_HEIGHT = 5  # points of a line or box that can bound a cell

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in points from the lower left."""


def page_text(page: Any) -> str:
    """Return the text of a page, each line of it on a line.

    PDFium starts a new line at a character that was placed alone, as single digits in tables are. Where it stands to the right of
    what is before it, the line goes on.
    """
    textpage = page.get_textpage()
    bounded: str = textpage.get_text_bounded()
    text: str = textpage.get_text_range()
    if "".join(text.split()) != "".join(bounded.split()):
        return _with_tables(page, ())  # without what is beside the page, as printers' marks are
    return _joined(textpage, text) if len(text) == textpage.count_chars() else text


def _joined(textpage: Any, text: str) -> str:
    """Replace the ends of lines that are none by spaces."""
    pieces = text.split("\r\n")
    joined = pieces[:1]
    place = len(pieces[0])
    for piece in pieces[1:]:
        before, after = _box_of(textpage, place - 1), _box_of(textpage, place + 2)
        joined += [" " if before and after and _goes_on(before, after) else "\r\n", piece]
        place += 2 + len(piece)
    return "".join(joined)


def _goes_on(before: Box, after: Box) -> bool:
    """Return whether a character is on the line of another, to its right."""
    height = min(before[3] - before[1], after[3] - after[1])
    return after[0] >= before[2] and abs(before[1] + before[3] - after[1] - after[3]) < 0.3 * height


def pages_with_tables(data: bytes, pdf: Any) -> dict[int, str]:
    """Return the text of each page that has a ruled table, by its number from 0.

    What takes too long, or pdfplumber cannot read, is left to the caller's own text.

    Args:
        data: The file.
        pdf: The same file, as pypdfium2 opened it.
    """
    found: dict[int, str] = {}
    try:
        with _at_most(SECONDS) as left:
            ruled = [number for number in range(len(pdf)) if left() > 0 and _is_ruled(pdf, number)]
            for number, text in _with_tables_on(data, pdf, ruled):
                found[number] = text
                if left() < 0:
                    break
    except Exception:  # of pdfplumber, or of the alarm: the text is there already, less well set
        return found
    return found


def _with_tables_on(data: bytes, pdf: Any, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    if not numbers:
        return
    import pdfplumber

    with pdfplumber.open(io.BytesIO(data)) as plumbed:
        for number in numbers:
            tables = _tables(
                plumbed.pages[number].dedupe_chars()
            )  # bold letters may be drawn twice; PDFium reads them once
            plumbed.pages[number].close()
            yield number, _with_tables(pdf[number], tables) if tables else ""


def _is_ruled(pdf: Any, number: int) -> bool:
    """Return whether a page has lines that can be those of a table."""
    import pypdfium2.raw as pdfium

    page = pdf[number]
    paths = list(islice(page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_PATH], max_depth=3), MAX_PATHS + 1))
    heights = [top - bottom for _, bottom, _, top in (path.get_bounds() for path in paths)]
    is_ruled = len(paths) <= MAX_PATHS and max(heights, default=0) > _LEAST_HEIGHT
    # pdfplumber misplaces tables on pages that are turned, or whose lower edge is not at 0.
    is_ruled = is_ruled and not page.get_rotation() and not page.get_mediabox()[1]
    page.close()
    return is_ruled


def _tables(page: Any) -> list[tuple[Box, list[list[str]]]]:
    """Return the place and the cells of each table with at least two rows and two columns that hold text."""
    character = next(iter(page.chars), None)
    if character is None:
        return []
    height = character["y1"] + character["top"]  # pdfplumber measures from the top
    found = []
    for table in page.find_tables():
        rows = [[" ".join((cell or "").split()) for cell in row] for row in table.extract()]
        rows = [row for row in rows if any(row)]
        num_columns = sum(any(column) for column in zip(*rows, strict=True))
        if len(rows) >= 2 and num_columns >= 2:
            left, top, right, bottom = table.bbox
            found.append(((left, height - bottom, right, height - top), rows))
    return found


def _with_tables(page: Any, tables: Sequence[tuple[Box, list[list[str]]]]) -> str:
    """Return the text of a page with each table in the place of its text; empty if a table would lose a part of it."""
    textpage = page.get_textpage()
    parts: list[str] = []
    inside = [""] * len(tables)
    for start, count, place in _runs(textpage, page.get_bbox(), [box for box, _ in tables]):
        text = textpage.get_text_range(start, count)
        if place is None:
            parts.append(text)
        elif place >= 0:
            if not inside[place]:
                parts.append("\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in tables[place][1]) + "\n\n")
            inside[place] += text
    in_cells = [" ".join(cell for row in rows for cell in row) for _, rows in tables]
    is_whole = all(
        _signs(text) <= _signs(cells) and not _cuts_words(text, cells)
        for text, cells in zip(inside, in_cells, strict=True)
    )
    return "".join(parts) if is_whole else ""


def _cuts_words(text: str, cells: str) -> bool:
    """Return whether lines run through the words of a text, as those of squared paper do."""
    pieces, words = cells.split(), frozenset(text.split())
    return sum(piece not in words for piece in pieces) > _MOST_CUT * len(pieces)


def _signs(text: str) -> Counter[str]:
    """Count the letters and digits of a text; the two libraries differ in ligatures and hyphens."""
    return Counter(filter(str.isalnum, unicodedata.normalize("NFKC", text)))


def _runs(textpage: Any, page: Box, boxes: Sequence[Box]) -> Iterator[tuple[int, int, int | None]]:
    """Yield runs of characters: the start, the length, and the number of the box they are in.

    It is None if they are in no box, and -1 if they are beside the page.
    """
    start, current = 0, None
    number = textpage.count_chars()
    for index in range(number):
        box = _box_of(textpage, index)
        if box is None:  # a space or a break that PDFium adds
            continue
        place = next((n for n, one in enumerate(boxes) if _is_in(box, one)), None if _is_in(box, page) else -1)
        if place == current:
            continue
        if index > start:
            yield start, index - start, current
        start, current = index, place
    if number > start:
        yield start, number - start, current


def _is_in(box: Box, other: Box) -> bool:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return other[0] <= x <= other[2] and other[1] <= y <= other[3]


def _box_of(textpage: Any, index: int) -> Box | None:
    """Return the place of a character, or None if it has none."""
    import pypdfium2.raw as pdfium

    box = pdfium.FS_RECTF()  # with the font's whole height, and the width that the character takes
    if not pdfium.FPDFText_GetLooseCharBox(textpage, index, box) or box.right <= box.left:
        return None
    return box.left, box.bottom, box.right, box.top


@contextmanager
def _at_most(seconds: float) -> Iterator[Any]:
    """Raise in the block after some seconds where there are alarms; yields a function of the seconds that are left."""
    end = time.monotonic() + seconds

    def stop(*_: object) -> None:
        raise TimeoutError

    alarms = hasattr(signal, "setitimer")
    before = signal.signal(signal.SIGALRM, stop) if alarms else None
    if alarms:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield lambda: end - time.monotonic()
    finally:
        if alarms:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
