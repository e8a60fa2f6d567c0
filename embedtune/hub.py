"""Uploading to the Hub: what goes there is listed first, private unless told otherwise, and committed as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Publication:
    """What was uploaded or, in a dry run, would be. Printing it lists every file and shows the whole card.

    Attributes:
        repo_id: The repository on the Hub.
        private: Whether only its owners may read it.
        files: The size in bytes of each file.
        card: The text of ``README.md``.
        revision: The commit, 40 hexadecimal digits; None in a dry run.
    """

    repo_id: str
    private: bool
    files: Mapping[str, int]
    card: str
    revision: str | None = None

    def __str__(self) -> str:
        access = "private" if self.private else "PUBLIC"
        state = f"revision {self.revision}" if self.revision else "dry run: nothing was uploaded"
        width = max(map(len, self.files))
        lines = [f"  {name:<{width}}  {size:>14,} bytes" for name, size in self.files.items()]
        return "\n".join([f"{self.repo_id} ({access}), {state}", *lines, "", "README.md:", "", self.card])


def list_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file below a folder, by its path with slashes, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def check_access(api: HfApi, repo_id: str, *, repo_type: str, private: bool) -> None:
    """Raise a ``ValueError`` if a repository that exists is public, and publishing was not asked for."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    if private and not info.private:  # it would stay as public as it was
        raise ValueError(f"{repo_id} is public. Choose another repository, or publish for everyone with private=False.")


def upload_folder(
    api: HfApi,
    repo_id: str,
    folder: Path,
    *,
    repo_type: str,
    private: bool,
    message: str,
    replaces: Callable[[str], bool],
) -> str:
    """Upload a folder in one commit and return its revision.

    Readers see the old content or the new one. After a failure call it again: large files that arrived are not sent twice.

    Args:
        api: With the user's token.
        repo_id: Created if it does not exist.
        folder: Everything in it is uploaded.
        repo_type: ``"model"`` or ``"dataset"``.
        private: Of a new repository; one that is public already is refused.
        message: Of the commit.
        replaces: Which files of an older upload are deleted, where the new one does not have them.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    check_access(api, repo_id, repo_type=repo_type, private=private)
    files = list_files(folder)
    there: Iterable[str] = api.list_repo_files(repo_id, repo_type=repo_type)
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(file, folder / file) for file in files),
            *(CommitOperationDelete(file) for file in there if file not in files and replaces(file)),
        ],
        commit_message=message,
        repo_type=repo_type,
    )
    return str(commit.oid)
