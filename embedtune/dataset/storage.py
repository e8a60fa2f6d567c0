"""Saves datasets to disk and the Hub, in BEIR's layout, as Parquet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet
from datasets import Dataset

from embedtune.dataset.card import dataset_card
from embedtune.dataset.tables import check_split_names
from embedtune.hub import Publication, list_files, upload_folder
from embedtune.storage import read_folder, reading, replaced_folder, temporary_folder

if TYPE_CHECKING:
    from embedtune.dataset.tables import RetrievalTables

SETTINGS = "embedtune.json"

_REMEDY = "Copy the whole folder again, or save the dataset again."


def save(data: RetrievalTables, path: str | Path) -> None:
    """Write the dataset to a folder, replacing an older one once the new one is complete."""
    target = Path(path)
    if target.exists() and not (target / SETTINGS).exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} exists and is not a saved dataset, so it is not replaced. Choose another path."
        )
    with replaced_folder(target) as folder:
        _write(data, folder)


def load(path: str | Path) -> dict[str, Any]:
    """Read what `save` wrote, as the arguments of ``RetrievalDataset``."""
    return read_folder(path, _load)


def _load(folder: Path) -> dict[str, Any]:
    if not (folder / "corpus.parquet").exists():
        raise FileNotFoundError(
            f"{folder} is not a saved dataset: it has no corpus.parquet. Pass a folder of save_to_disk."
        )
    with reading(folder / SETTINGS, remedy=_REMEDY):
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings = {name: settings[name] for name in ("splits", "split_by", "context", "cost_usd")}
        check_split_names(settings["splits"])  # before a file is opened that could be anywhere
    return {
        "corpus": _read(folder / "corpus.parquet"),
        "queries": _read(folder / "queries.parquet"),
        "qrels": {split: _read(folder / "qrels" / f"{split}.parquet") for split in settings["splits"]},
        "split_by": settings["split_by"],
        "context": tuple(settings["context"]),
        "cost_usd": settings["cost_usd"],
    }


def push(
    data: RetrievalTables, repo_id: str, *, private: bool, dry_run: bool, token: str | None, message: str
) -> Publication:
    """Upload the dataset in one commit."""
    from huggingface_hub import HfApi

    with temporary_folder("push") as folder:
        _write(data, folder)
        card = (folder / "README.md").read_text(encoding="utf-8")
        publication = Publication(repo_id, private, list_files(folder), card)
        if dry_run:
            return publication
        revision = upload_folder(
            HfApi(token=token),
            repo_id,
            folder,
            repo_type="dataset",
            private=private,
            message=message,
            delete_patterns=["qrels/*"],  # load_dataset would find a split that no longer exists
        )
    return replace(publication, revision=revision)


def download(repo_id: str, *, revision: str | None, token: str | None) -> str:
    """Download a pushed dataset and return the folder."""
    from huggingface_hub import snapshot_download

    return snapshot_download(repo_id, repo_type="dataset", revision=revision, token=token)


def _write(data: RetrievalTables, folder: Path) -> None:
    (folder / "qrels").mkdir()
    _write_table(data.corpus, folder / "corpus.parquet")
    _write_table(data.queries, folder / "queries.parquet")
    for split, judgements in data.qrels.items():
        _write_table(judgements, folder / "qrels" / f"{split}.parquet")
    settings = {
        "split_by": data.split_by,
        "context": list(data.context),
        "splits": list(data.qrels),
        "cost_usd": data.cost_usd,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(dataset_card(data), encoding="utf-8")


def _write_table(table: Dataset, path: Path) -> None:
    # Not Dataset.to_parquet: it draws a progress bar for each of these small files.
    pyarrow.parquet.write_table(table.with_format("arrow")[:], path)


def _read(path: Path) -> Dataset:
    # Not Dataset.from_parquet: it would leave a second copy in the user's cache folder.
    with reading(path, remedy=_REMEDY):
        return Dataset(pyarrow.parquet.read_table(path))
