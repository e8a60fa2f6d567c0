"""Prompts of well-known families whose repositories do not say theirs in a form that sentence-transformers applies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset.views import Role

_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

# The first pattern that occurs in the name decides: query prompt, document prompt. Sources: the models' cards.
FAMILIES: dict[str, tuple[str, str]] = {
    r"e5-mistral|e5-.*-instruct|gte-qwen": (f"Instruct: {_WEB_SEARCH}\nQuery: ", ""),
    r"qwen3-embedding": (f"Instruct: {_WEB_SEARCH}\nQuery:", ""),
    r"embeddinggemma": ("task: search result | query: ", "title: none | text: "),
    r"(^|[-_/])e5-(small|base|large)": ("query: ", "passage: "),
    r"bge-(small|base|large)-en": ("Represent this sentence for searching relevant passages: ", ""),
    r"bge-(small|base|large)-zh": ("为这个句子生成表示以用于检索相关文章：", ""),  # noqa: RUF001
    r"nomic-embed-text": ("search_query: ", "search_document: "),
    r"mxbai-embed-large|snowflake-arctic-embed-(xs|s|m|l)$": (
        "Represent this sentence for searching relevant passages: ",
        "",
    ),
    r"snowflake-arctic-embed-(m-v1\.5|m-long)": ("Represent this sentence for searching relevant passages: ", ""),
    r"snowflake-arctic-embed-[ml]-v2": ("query: ", ""),
}

# The names under which sentence-transformers looks for a prompt, in its order.
_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}

_INSTRUCTION = re.compile(r"Instruct: .*(?=\nQuery:)", flags=re.DOTALL)


def fill_prompts(model: SentenceTransformer, name: str) -> None:
    """Set the prompts of a known family, unless the model's own configuration has prompts for queries or documents."""
    if any(model.prompts.get(key) for key in ("query", "document", "passage", "corpus")):
        return
    base = name.rstrip("/").replace("\\", "/").rpartition("/")[2]
    for pattern, (query, document) in FAMILIES.items():
        if re.search(pattern, base, flags=re.IGNORECASE):
            model.prompts |= {"query": query, "document": document}
            return


def set_task(model: SentenceTransformer, task: str) -> None:
    r"""Put a task into a query prompt of the form ``Instruct: {task}\nQuery:``.

    Raises:
        ValueError: If the model's query prompt has no such form.
    """
    prompt = model.prompts.get("query") or ""
    if not _INSTRUCTION.search(prompt):
        raise ValueError(
            f"task={task!r}: this model's query prompt, {prompt!r}, has no instruction to put it into. Leave task out, or set "
            "model.prompts['query'] yourself."
        )
    model.prompts["query"] = _INSTRUCTION.sub(lambda _: f"Instruct: {task}", prompt)


def prompt_of(model: SentenceTransformer, role: Role) -> str:
    """Return the prompt that ``encode_query`` or ``encode_document`` puts before a text."""
    default = model.prompts.get(model.default_prompt_name or "", "")
    return next((model.prompts[name] for name in _NAMES[role] if name in model.prompts), default) or ""
