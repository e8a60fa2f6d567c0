"""What a column of a training table holds: its name says it, and nothing else does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from embedtune.types import Role

View = Literal["pairs", "triplets", "labelled_pairs"]

VIEW_ROLES: dict[View, tuple[Role, ...]] = {
    "pairs": ("query", "document"),
    "triplets": ("document", "query", "query"),
    "labelled_pairs": ("document", "query"),
}
"""What the text columns of each view hold, in their order."""

LABEL_COLUMNS = ("label", "labels", "score", "scores")
"""Columns that sentence-transformers reads as numbers."""

_ROLES: dict[Role, re.Pattern[str]] = {
    "query": re.compile(r"anchor|query|(other_)?question"),
    "document": re.compile(r"positive|negative(_\d+)?|candidate|chunk|document|passage|context|answer"),
}


def role_of(column: str) -> Role | None:
    """Return whether a column of this name holds questions or chunks, or None if the name does not say.

    Example:
        >>> role_of("anchor"), role_of("negative_2"), role_of("sentence1")
        ('query', 'document', None)
    """
    return next((role for role, names in _ROLES.items() if names.fullmatch(column)), None)
