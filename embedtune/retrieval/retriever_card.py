"""What the card of a retriever says: how to use the whole of it, the model alone, and how its score is computed."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from embedtune.retrieval.words import K1, B

if TYPE_CHECKING:
    from embedtune.retrieval.learned import Saved

_BEGIN, _END = "<!-- embedtune: retriever -->", "<!-- embedtune: end of retriever -->"


def retriever_section(name: str, saved: Saved, *, has_chunks: bool) -> str:
    """Return the section of a card, with marks around it.

    Args:
        name: The folder or repository that it is loaded from.
        saved: What is saved beside the model.
        has_chunks: Whether the chunks are saved, too.
    """
    parts = [
        _BEGIN,
        "## How to search with it",
        "This is a retriever: a SentenceTransformer, and what was learned about the words of questions. With "
        "[embedtune](https://pypi.org/project/embedtune/), which adds the two:",
        _whole(name, saved, has_chunks=has_chunks),
        "The model alone, with sentence-transformers (vectors only, which is not what an evaluation of the retriever measured):",
        _code(
            "from sentence_transformers import SentenceTransformer\n\n"
            f"model = SentenceTransformer({name!r})\n"
            'model.encode_query(["How do I restart it?"])'
        ),
        "### The score",
        _score(saved.word_weight),
        *_reranker(saved),
        _formula(),
        "### What the words say about the questions",
        _privacy(saved),
        _END,
    ]
    return "\n\n".join(parts)


def with_section(card: str, section: str) -> str:
    """Return a card with the section in the place of an older one, or else before the first heading below the title."""
    if _BEGIN in card and _END in card:
        return card[: card.index(_BEGIN)] + section + card[card.index(_END) + len(_END) :]
    heading = re.search(r"^## ", card, flags=re.MULTILINE)
    place = heading.start() if heading else len(card)
    return card[:place] + section + "\n\n" + card[place:]


def without_section(card: str) -> str:
    """Return a card without the section."""
    return re.sub(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", "", card, flags=re.DOTALL)


def _whole(name: str, saved: Saved, *, has_chunks: bool) -> str:
    load = f"retriever = et.Retriever.load({name!r}{'' if has_chunks else ', chunks=chunks'})"
    code = _code(f'import embedtune as et\n\n{load}\nretriever.search("How do I restart it?", k=5)')
    if has_chunks:
        return code
    context = " and ".join(saved.context) or "nothing"
    return (
        f"{code}\n\nThe chunks were not published. `chunks` are your own, such as `et.chunk_documents(...)` returns them; what is "
        f"put before their texts: {context}."
    )


def _score(word_weight: float) -> str:
    if word_weight == 0:
        return "`score = similarity`: the words do not count, as was best for the training questions."
    if math.isinf(word_weight):
        return "`score = words`: the words alone count, as was best for the training questions."
    return f"`score = similarity + {word_weight:.6g} * words`"


def _reranker(saved: Saved) -> list[str]:
    if saved.reranker is None:
        return []
    return [
        f"The first {saved.rerank_depth} chunks by this score are then read by a cross-encoder together with the question, and its "
        "score orders them. It is in the folder `reranker`, and loads by itself with `CrossEncoder`."
    ]


def _formula() -> str:
    return f"""`similarity` is the model's, of the vectors of question and chunk. `words` is the share of the question's weight that the
chunk holds, from 0 to 1. Over the distinct tokens `t` of the question it is

```
sum(weight[t] * idf[t] * tf[t]) / sum(weight[t] * idf[t])

tf[t]     = n / (n + {K1} * (1 - {B} + {B} * length / mean length))   n: how often t is in the chunk
idf[t]    = ln(1 + (N - d + 0.5) / (d + 0.5))                   d of N chunks contain t
weight[t] = ln(1 + (Q - q + 0.5) / (q + 0.5)) / ln(2 * Q + 2)     q of Q training questions contain t
```

so an engine with dense and sparse vectors can serve it: the sparse vector of a chunk holds `idf * tf`, that of a question
`weight / sum(weight * idf)`, and their dot product is `words`. Tokens are words, their parts of five characters and pairs of
neighbouring words (`embedtune.retrieval.tokens.hashed_tokens`); lengths count tokens."""


def _privacy(saved: Saved) -> str:
    weights = saved.words.weights
    if weights is None:
        return "Nothing was learned from questions: every weight is 1."
    return (
        f"`retriever_words.safetensors` holds {len(weights.hashes):,} 64-bit hashes of tokens, and how many of the "
        f"{weights.num_questions:,} training questions contain each: no text. The hash has no key, so hashes hide nothing from "
        "somebody who guesses: whoever hashes a dictionary learns which of its words were asked about, and how often, and which "
        "of them were neighbours. Names and numbers that nobody guesses stay unknown."
    )


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
