"""The prompt a model puts before a text, and the prompts of known models whose configuration has none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.types import Role

_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

# The first pattern found in the model's name gives its query prompt and document prompt. Source: the model cards.
FAMILIES: dict[str, tuple[str, str]] = {
    r"e5-mistral|e5-.*-instruct|gte-qwen|sfr-embedding-(mistral|2_r)|linq-embed-mistral": (
        f"Instruct: {_WEB_SEARCH}\nQuery: ",
        "",
    ),
    r"qwen3-embedding": (f"Instruct: {_WEB_SEARCH}\nQuery:", ""),
    r"embeddinggemma": ("task: search result | query: ", "title: none | text: "),
    r"(^|[-_/])e5-(small|base|large)": ("query: ", "passage: "),
    r"bge-(small|base|large)-en": ("Represent this sentence for searching relevant passages: ", ""),
    r"bge-(small|base|large)-zh": ("为这个句子生成表示以用于检索相关文章：", ""),  # noqa: RUF001
    r"nomic-embed-text|modernbert-embed": ("search_query: ", "search_document: "),
    r"mxbai-embed-large|uae-large-v1|snowflake-arctic-embed-(xs|s|m|l)$": (
        "Represent this sentence for searching relevant passages: ",
        "",
    ),
    r"snowflake-arctic-embed-(m-v1\.5|m-long)": ("Represent this sentence for searching relevant passages: ", ""),
    r"snowflake-arctic-embed-[ml]-v2": ("query: ", ""),
}

# The names that sentence-transformers tries, in its order.
_NAMES: dict[Role, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}


def fill_prompts(model: SentenceTransformer, name: str) -> None:
    """Set the prompts of a known model, unless its configuration has a prompt for queries or documents."""
    if any(model.prompts.get(key) for key in ("query", "document", "passage", "corpus")):
        return
    base = name.rstrip("/").replace("\\", "/").rpartition("/")[2]
    for pattern, (query, document) in FAMILIES.items():
        if re.search(pattern, base, flags=re.IGNORECASE):
            model.prompts |= {"query": query, "document": document}
            return


def prompt_of(model: SentenceTransformer, role: Role) -> str:
    """Return the prompt that ``encode_query`` or ``encode_document`` puts before a text."""
    default = model.prompts.get(model.default_prompt_name or "", "")
    return next((model.prompts[name] for name in _NAMES[role] if name in model.prompts), default) or ""
