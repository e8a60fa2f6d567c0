"""Static models (model2vec, ``StaticEmbedding``): a vector for each token, and their mean for a text. No transformer."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from safetensors import safe_open

from embedtune.models.repository import find_file, read_json

if TYPE_CHECKING:
    from pathlib import Path

KIND = "StaticEmbedding"

_TABLES = ("embedding.weight", "embeddings")  # of sentence-transformers and of model2vec
_WITH_THEM = {"mapping", "weights"}  # of a model2vec whose vocabulary is quantized


def check_static(name: str, folder: str, path: Path, *, revision: str | None) -> None:
    """Raise a ``ValueError`` unless the file of weights has a row for each token of the tokenizer, and nothing unknown.

    sentence-transformers checks neither, and a token without a row ends in an index error at the first text that has it.

    Args:
        name: A folder, or a repository on the Hub.
        folder: Of the module, in it.
        path: The file of weights.
        revision: Of the repository.
    """
    file = PurePosixPath(folder, "tokenizer.json").as_posix()
    if find_file(name, file, revision=revision) is None:
        raise ValueError(f"{name!r} has no file {file}, which its static embedding needs. Download it again.")
    with safe_open(path, framework="pt") as weights:
        shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118  # no mapping
    table = next((key for key in _TABLES if key in shapes), None)
    unknown = sorted(shapes.keys() - {table} - _WITH_THEM)
    if table is None or unknown or len(shapes[table]) != 2:
        raise ValueError(
            f"The weights of {name!r} are {shapes}, and a static embedding has one table, named {_TABLES[0]!r} or {_TABLES[1]!r}. "
            "Download or save it again."
        )
    num_rows = shapes.get("mapping", shapes[table])[0]
    tokenizer = read_json(name, file, revision=revision)
    last = max(_ids(tokenizer), default=-1)
    if last >= num_rows:
        raise ValueError(
            f"{file} of {name!r} has a token with the id {last}, and its static embedding has vectors for {num_rows}. They belong "
            "to different models: download both again."
        )


def _ids(tokenizer: dict[str, object]) -> list[int]:
    """Return the ids of all tokens."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = (
        list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab))) if isinstance(vocab, list) else []
    )
    ids += [one.get("id") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    return [one for one in ids if isinstance(one, int)]
