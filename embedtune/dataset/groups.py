"""Near-duplicate chunks, and the groups of documents that must stay in one split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedtune.near_duplicates import Spans, first_members, near_duplicate_passages

if TYPE_CHECKING:
    from embedtune.types import Chunk

_FEW_DOCUMENTS = 3  # a copy, a revision, a paragraph that is quoted; what more documents share may be boilerplate
_SAME_DOCUMENT = 0.8  # share of the text


def duplicate_groups(chunks: Sequence[Chunk]) -> list[str]:
    """Return for each chunk the id of its first near-duplicate, or its own id, see `near_duplicate_passages`.

    Overlapping neighbours do not count: they share text by construction, and a whole document would become one group.
    """
    number: dict[str, int] = {}
    documents = [number.setdefault(chunk.document_id, len(number)) for chunk in chunks]
    spans = Spans(*np.array([documents, [c.start for c in chunks], [c.end for c in chunks]], dtype=np.int64))
    pairs = near_duplicate_passages([chunk.text for chunk in chunks], spans)
    return [chunks[first].id for first in first_members(len(chunks), pairs)]


def document_groups(chunks: Sequence[Chunk], duplicates: Sequence[str]) -> dict[str, str]:
    """Map each document to its group, named after the group's smallest document id.

    Training on one document of a group reveals the others. Two or three documents that share a near-duplicate chunk are
    one group. A chunk that more documents share, a legal notice or a menu, says nothing about them: they are one group if
    four fifths of the text of each is in chunks that the other has as well.

    Args:
        chunks: The chunks of all documents.
        duplicates: What `duplicate_groups` returned for them.
    """
    documents = sorted({chunk.document_id for chunk in chunks})
    position = {document: i for i, document in enumerate(documents)}
    parts: list[dict[str, int]] = [{} for _ in documents]  # the characters of each document, by content
    holders: dict[str, dict[int, None]] = defaultdict(dict)
    for chunk, content in zip(chunks, duplicates, strict=True):
        document = position[chunk.document_id]
        parts[document][content] = parts[document].get(content, 0) + len(chunk.text)
        holders[content][document] = None
    few = [(next(iter(held)), one) for held in holders.values() if len(held) <= _FEW_DOCUMENTS for one in held]
    pairs = [*few, *_mostly_equal(parts, {content: len(held) for content, held in holders.items()})]
    firsts = first_members(len(documents), np.array(pairs, dtype=np.int64))
    return {document: documents[first] for document, first in zip(documents, firsts, strict=True)}


def home_of_chunks(chunks: Iterable[str], group_of: Mapping[str, str], content_of: Mapping[str, str]) -> dict[str, str]:
    """Map each chunk to the one that it is asked about with: the copy in the smallest document group.

    A chunk that many documents share, such as a legal notice, does not make them one group. Its questions are in one place
    nevertheless: with those about the document of the first copy.
    """
    chunks = sorted(chunks, key=lambda chunk: (group_of[chunk], chunk))
    first: dict[str, str] = {}
    # A copy in the document group of the first one is its own home.
    return {
        chunk: chunk if group_of[home := first.setdefault(content_of[chunk], chunk)] == group_of[chunk] else home
        for chunk in chunks
    }


def _mostly_equal(parts: Sequence[Mapping[str, int]], num_documents: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield pairs that connect the documents of which four fifths are the same.

    Two such documents share one of their rarest contents, those that make up just more than the fifth in which they may
    differ, so only documents that share one of these are compared ("prefix filtering", Chaudhuri et al. 2006). Of
    documents that are equal only the first is compared with others.
    """
    compared: dict[str, list[int]] = defaultdict(list)
    for document, part in enumerate(parts):
        rarest = _rarest(part, num_documents)
        others = dict.fromkeys(other for content in rarest for other in compared[content])
        same = next(
            (other for other in others if _is_mostly(part, parts[other]) and _is_mostly(parts[other], part)), None
        )
        if same is not None:
            yield same, document
            continue
        for content in rarest:
            compared[content].append(document)


def _rarest(part: Mapping[str, int], num_documents: Mapping[str, int]) -> list[str]:
    """Return the contents of a document that others have, from the rarest to where they exceed a fifth of its text."""
    left = (1 - _SAME_DOCUMENT) * sum(part.values())
    rarest = []
    for content in sorted(part, key=lambda content: (num_documents[content], content)):
        if left < 0:
            break
        left -= part[content]
        if num_documents[content] > 1:
            rarest.append(content)
    return rarest


def _is_mostly(part: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Return whether four fifths of a document's text are in another document."""
    return sum(size for content, size in part.items() if content in other) >= _SAME_DOCUMENT * sum(part.values())
