"""What other BEIR-shaped tables have and ours do not: titles beside the texts, and grades."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from datasets import Value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset

logger = logging.getLogger(__name__)


def with_titles_in_texts(corpus: Dataset) -> Dataset:
    r"""Put each title on a line before its text, as `Chunk.text_with` does, and name the column ``document_title``.

    Raises:
        ValueError: If a title is not a string.

    Example:
        >>> from datasets import Dataset
        >>> corpus = Dataset.from_dict({"_id": ["a"], "title": ["Pump"], "text": ["Press both buttons."]})
        >>> with_titles_in_texts(corpus)[0]
        {'_id': 'a', 'text': 'Pump\nPress both buttons.', 'document_title': 'Pump'}
    """
    titles = [title or "" for title in corpus["title"][:]]
    if wrong := [row for row, title in enumerate(titles) if not isinstance(title, str)]:
        raise ValueError(f"corpus has the title {titles[wrong[0]]!r} in row {wrong[0]}. Give a string, or none.")
    texts = ["\n".join(filter(None, pair)) for pair in zip(titles, corpus["text"][:], strict=True)]
    rest = corpus.remove_columns([name for name in ("title", "document_title") if name in corpus.column_names])
    order = rest.column_names
    table = rest.remove_columns("text").add_column("text", texts, feature=Value("string")).select_columns(order)
    return table.add_column("document_title", titles, feature=Value("string"))


def warn_of_grades(qrels: Mapping[str, Dataset]) -> None:
    """Say that grades of relevance are read as yes or no."""
    for split, table in qrels.items():
        grades = sorted({score for score in table["score"][:] if score > 0})
        if len(grades) > 1:
            logger.warning(
                "qrels[%r] has grades of relevance from %g to %g. Every grade above 0 counts as relevant: nDCG is binary, and "
                "not comparable with an nDCG of graded gains.",
                split,
                grades[0],
                grades[-1],
            )
