"""Describes a dataset in its card: counts and origins of the questions, never a text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedtune.dataset.tables import RetrievalTables

_SPLITS = {
    "document": "by document: near-duplicate documents are in the same split, and no document that a `test` or `dev` "
    "question is about was trained on",
    "question": "by question: the chunks that the `test` questions are about were trained on, with other questions; results on "
    "unseen documents are lower",
    "given": "as given with the questions; documents may be in several splits",
}


def question_origins(data: RetrievalTables) -> list[str]:
    """Return the number of questions by model and version of the prompt, one line each, the largest first."""
    queries = data.queries
    columns = [
        queries[name][:] if name in queries.column_names else [""] * len(queries)
        for name in ("model", "prompt_version")
    ]
    counts = Counter(zip(*columns, strict=True))
    return [
        f"{count:,} "
        + (f"by `{model}`" if model else "of unknown origin (written by hand, or imported)")
        + (f", prompt version `{version}`" if version else "")
        for (model, version), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def describe_dataset(data: RetrievalTables) -> str:
    """Return in Markdown how the questions were made and split."""
    lines = [f"{len(data.queries):,} questions about {len(data.corpus):,} chunks:", ""]
    lines += [f"- {origin}" for origin in question_origins(data)]
    lines += ["", f"Split {_SPLITS.get(data.split_by, data.split_by)}.", "", "```", repr(data), "```"]
    if "test_seen" in data.splits:
        lines += ["", "`test_seen` has new questions about chunks that are trained on."]
    if data.context:
        lines += [
            "",
            f"Each chunk's text starts with its {' and '.join(data.context)}. Add the same when you embed chunks.",
        ]
    return "\n".join(lines)


def dataset_card(data: RetrievalTables) -> str:
    """Return the card; its header lets ``datasets.load_dataset(repo, "corpus" | "queries" | "default")`` find the files."""
    files = {
        "corpus": [("corpus", "corpus.parquet")],
        "queries": [("queries", "queries.parquet")],
        "default": [(split, f"qrels/{split}.parquet") for split in data.qrels],
    }
    lines = ["---", "task_categories:", "- text-retrieval", "tags:", "- embedtune", "configs:"]
    for config, splits in files.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits:
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "\n".join(lines) + _BODY.format(description=describe_dataset(data))


_BODY = """
---

# Questions and chunks

`corpus` has every chunk, `queries` every question, and the default configuration the relevant chunks of each question, by
split, in the layout of BEIR.

```python
from datasets import load_dataset

corpus = load_dataset("<this repository>", "corpus", split="corpus")
queries = load_dataset("<this repository>", "queries", split="queries")
judgements = load_dataset("<this repository>")  # "query-id", "corpus-id", "score", "chunk_hash"
```

{description}
"""
