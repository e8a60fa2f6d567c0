"""The example of a model card with its published scores, to compare a loaded model with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_DOCUMENTS = [
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. But, as you "
    "can see from this chart, you'll need to increase that if you're expecting or training for a marathon. Check out the chart "
    "below to see how much protein you should be eating each day.",
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. : 2  the "
    "highest level. : 3  a meeting or series of meetings between the leaders of two or more governments.",
]
_QUERIES = ["how much protein should a female eat", "summit define"]

# 100 times the cosine similarities of two queries (rows) and two documents.
_SCORES = {"Alibaba-NLP/gte-Qwen2-1.5B-instruct": [[70.00666809, 8.18486786], [14.62420654, 77.71405792]]}


class Reference(NamedTuple):
    """An example's texts and scores, of shape ``(num_queries, num_documents)``."""

    queries: list[str]
    documents: list[str]
    scores: npt.NDArray[np.float64]


def reference_scores(base_model: str) -> Reference:
    """Return the example of a model card.

    Raises:
        ValueError: If no scores are known for the model.
    """
    if base_model not in _SCORES:
        raise ValueError(
            f"card=True: no published scores are known for {base_model!r}, only for {sorted(_SCORES)}. Pass card=False."
        )
    return Reference(_QUERIES, _DOCUMENTS, np.array(_SCORES[base_model]))
