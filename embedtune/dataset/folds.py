"""Folds of questions for cross-validation: questions about one document are in one fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from embedtune.dataset.groups import home_of_chunks

if TYPE_CHECKING:
    from embedtune.dataset.tables import RetrievalTables


def groups_of_chunks(data: RetrievalTables) -> dict[str, str]:
    """Return the document group of each chunk: documents with near-duplicate chunks are one group.

    A dataset that does not know its documents has each chunk as a group of its own.
    """
    name = next((name for name in ("document_group", "document_id") if name in data.corpus.column_names), "_id")
    return dict(zip(data.corpus["_id"][:], data.corpus[name][:], strict=True))


def contents_of_chunks(data: RetrievalTables) -> dict[str, str]:
    """Return the content of each chunk, which its near-duplicates share; in a dataset that does not know them, its text."""
    name = "duplicate_group" if "duplicate_group" in data.corpus.column_names else "text"
    return dict(zip(data.corpus["_id"][:], data.corpus[name][:], strict=True))


def document_of_questions(data: RetrievalTables, relevant: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the document group of each question, named after its smallest document.

    Groups that share a question are one, so that no question has relevant chunks on two sides. Questions about copies of one
    chunk in several groups belong to the first of these, see `home_of_chunks`.

    Args:
        data: The dataset.
        relevant: The relevant chunks of each question.
    """
    group_of = groups_of_chunks(data)
    asked = {chunk for chunks in relevant.values() for chunk in chunks}
    home = home_of_chunks(asked, group_of, contents_of_chunks(data))
    names = sorted({group_of[chunk] for chunk in home.values()})
    position = {name: i for i, name in enumerate(names)}
    place = {chunk: position[group_of[home[chunk]]] for chunk in asked}
    edges = [(place[chunks[0]], place[chunk]) for chunks in relevant.values() for chunk in chunks]
    rows, columns = np.array(edges).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(len(names), len(names)))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return {query: names[first[labels[place[chunks[0]]]]] for query, chunks in relevant.items()}


def assign_folds(group_of: Mapping[str, str], num_folds: int, *, seed: int) -> dict[str, int]:
    """Return the fold of each question, from 0: groups in random order, each to the fold with the fewest questions so far.

    There are at most as many folds as groups.

    Example:
        >>> assign_folds({"q1": "a", "q2": "a", "q3": "b", "q4": "c"}, 2, seed=0)
        {'q1': 0, 'q2': 0, 'q3': 1, 'q4': 1}
    """
    queries = sorted(group_of)
    names, group, sizes = np.unique([group_of[query] for query in queries], return_inverse=True, return_counts=True)
    filled = np.zeros(min(num_folds, len(names)))
    fold_of = np.zeros(len(names), dtype=np.int64)
    # The largest first: then the folds are most nearly equal. Random among equals.
    for name in sorted(np.random.default_rng(seed).permutation(len(names)), key=lambda one: -sizes[one]):
        fold_of[name] = np.argmin(filled)
        filled[fold_of[name]] += sizes[name]
    return dict(zip(queries, fold_of[group].tolist(), strict=True))
