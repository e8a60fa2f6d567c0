"""How long it takes to read documents: malformed HTML and texts from 10 kB to 10 MB, and a folder of 200 mixed files.

    python benchmarks/reading.py

prints the processor seconds and the peak memory of the folder, the milliseconds for a page of a PDF, and a table of processor
seconds by length.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from mixed_folder import make, pdf, ruled

import embedtune as et
from embedtune.corpus.junk import without_junk
from embedtune.corpus.pdf_pages import read
from embedtune.corpus.webpages import read_page

PIECES = {
    "a page of paragraphs": "<p>Press both buttons and wait.</p>\n",
    "tags that never end": "<a href='",
    "nested elements": "<div>",
    "nested lists": "<ul><li>a",
    "inline elements that stay open": "<b id=1><p>a",
    "icons in icons": "<svg><title>a",
    "one tag of many attributes": " b1=1",
    "text without a space": "a1B",
}
LENGTHS = (10_000, 100_000, 1_000_000, 10_000_000)


def seconds(piece, length):
    text = ("<a" if piece.startswith(" ") else "") + piece * (length // len(piece))
    start = time.process_time()
    without_junk(read_page(text).text)
    return time.process_time() - start


def folder_of_mixed_files():
    folder = Path(tempfile.mkdtemp())
    make(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*.*") if file.is_file() and not file.is_symlink())
    start = sum(os.times()[:4])  # PDFs are read in processes of their own
    documents = et.read_documents(folder)
    read = sum(os.times()[:4]) - start
    chunks = et.chunk_documents(documents, max_tokens=200)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"200 mixed files of {size / 2**20:.1f} MB: {len(documents)} documents in {read:.1f} s, {len(chunks)} chunks, "
        f"peak memory {memory:.0f} MB",
        flush=True,
    )


def pages_of_pdfs(num_pages=100):
    """Print the processor milliseconds for a page of prose, and for one that has a table with lines around its cells as well."""
    page = ["Press both buttons of the pump for three seconds and wait for the lamp."] * 50
    cells = [[f"part {row}", f"S-{row}", f"{row * 3.5:.2f}", "in stock"] for row in range(9)]
    for name, drawing in (("prose", ""), ("prose and a table of 9 rows", ruled(cells, top=150, height=14))):
        data = pdf([page] * num_pages, drawing=drawing)
        start = time.process_time()
        read(data)
        print(f"a page of a PDF, {name}: {1000 * (time.process_time() - start) / num_pages:.1f} ms", flush=True)


def main():
    folder_of_mixed_files()
    pages_of_pdfs()
    print(f"{'':32}" + "".join(f"{length // 1000:>9,} kB" for length in LENGTHS))
    for name, piece in PIECES.items():
        print(f"{name:32}" + "".join(f"{seconds(piece, length):>10.2f} s" for length in LENGTHS), flush=True)


if __name__ == "__main__":
    main()
