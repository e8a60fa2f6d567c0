"""Times the grouping of made-up corpora in which documents share much: ``python benchmarks/grouping.py sheets 4000``."""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import time
from collections.abc import Iterator

import embedtune as et
from embedtune.dataset.groups import document_groups, duplicate_groups

RNG = random.Random(0)
VOCABULARY = [f"word{i}" for i in range(30_000)]
FREQUENCIES = list(itertools.accumulate(1 / (i + 1) for i in range(30_000)))  # as in natural text, by Zipf's law
FOOTER = "Copyright Example Ltd. All rights reserved. Errors and changes excepted. Call the hotline for support."


def words(number: int) -> str:
    """Return random words, common ones more often."""
    return " ".join(RNG.choices(VOCABULARY, cum_weights=FREQUENCIES, k=number))


def sheet(number: int) -> str:
    """Return one of many product sheets that a template makes."""
    return (
        f"Product sheet of the pump model PX-{number}. The pump moves {RNG.randint(10, 999)} litres an hour at a pressure of "
        f"{RNG.randint(1, 40)} bar and weighs {RNG.randint(2, 90)} kilograms. Before installation, read the safety "
        "instructions and make sure that the mains are disconnected. The housing is made of stainless steel and must be "
        "cleaned once a month with a soft cloth. Contact the service desk for spare parts, and name the serial number that is "
        "printed on the back of the device. The warranty covers two years from the day of purchase."
    )


def corpus(kind: str, num_chunks: int) -> Iterator[et.Chunk]:
    """Yield chunks: a document for each sheet, two chunks a document with a footer, or ten of text."""
    per_document = {"sheets": 1, "footers": 2, "text": 10}[kind]
    for document in range(num_chunks // per_document):
        start = 0
        for part in range(per_document):
            text = sheet(document) if kind == "sheets" else FOOTER if kind == "footers" and part else words(150)
            yield et.Chunk(f"{document}#{part}", str(document), text, start, start + len(text))
            start += len(text) + 1


def main() -> None:
    """Print a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["sheets", "footers", "text"])
    parser.add_argument("num_chunks", type=int)
    args = parser.parse_args()
    chunks = list(corpus(args.kind, args.num_chunks))
    start = time.process_time()
    contents = duplicate_groups(chunks)
    documents = document_groups(chunks, contents)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"| {args.kind}, {len(chunks):,} chunks of {len(documents):,} documents | {len(set(contents)):,} | "
        f"{len(set(documents.values())):,} | {seconds:.1f} s | {peak:.0f} MB |"
    )


if __name__ == "__main__":
    main()
