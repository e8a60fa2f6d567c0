"""Sentences of general knowledge and questions about them, to measure what a tuned model has forgotten."""

from __future__ import annotations

import json
from pathlib import Path

from embedtune.types import Chunk, Question

_FILE = Path(__file__).parent / "general" / "passages.jsonl"


def load_general() -> tuple[list[Chunk], list[Question]]:
    """Load passages on everyday subjects (kitchen, weather, body, animals, money, history, ...) and 100 questions.

    Each sentence is a chunk, so that other chunks are on the same subject as the relevant one; among whole passages even a
    small model finds everything. The texts were written for embedtune and are in the public domain (CC0 1.0).

    Returns:
        The sentences, with a document for each passage, and the questions, in the split ``"test"``.

    Example:
        >>> chunks, questions = load_general()
        >>> len({chunk.document_id for chunk in chunks}), len(chunks), len(questions)
        (82, 185, 100)
    """
    chunks, questions = [], []
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        start = 0
        for i, text in enumerate(row["sentences"]):
            chunks.append(Chunk(f"{row['id']}#{i}", row["id"], text, start, start + len(text)))
            start += len(text) + 1
        for i, asked in enumerate(row["questions"]):
            right = tuple(f"{row['id']}#{sentence}" for sentence in asked["answered_by"])
            questions.append(Question(f"{row['id']}/{i}", asked["question"], right, split="test"))
    return chunks, questions
