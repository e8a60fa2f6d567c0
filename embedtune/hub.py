"""Uploads to the Hub: private by default, listed by a dry run, one commit for the whole folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError


@dataclass(frozen=True)
class Publication:
    """What was uploaded or, after a dry run, would be. Prints every file and the whole card.

    Attributes:
        repo_id: The repository on the Hub.
        private: Whether the repository is private.
        files: The size of each file in bytes.
        card: The text of ``README.md``.
        revision: The commit hash; None after a dry run.
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

    __repr__ = __str__


def list_files(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file in a folder, by its POSIX path, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def check_access(api: HfApi, repo_id: str, *, repo_type: str, private: bool) -> None:
    """Raise a ``ValueError`` if a public repository exists and ``private`` is True."""
    try:
        info = api.repo_info(repo_id, repo_type=repo_type)
    except RepositoryNotFoundError:
        return
    if private and not info.private:  # uploading would not make it private
        raise ValueError(
            f"{repo_id} is public. Choose another repository, or pass private=False to publish for everyone."
        )


def upload_folder(
    api: HfApi,
    repo_id: str,
    folder: Path,
    *,
    repo_type: str,
    private: bool,
    message: str,
    delete_patterns: Sequence[str],
) -> str:
    """Upload a folder in one commit and return the commit's hash.

    Readers see the old files or the new ones. After a failure call it again: large files that arrived are not sent twice.
    ``HfApi.upload_folder`` splits a folder into several commits when there are many files or a commit fails.

    Args:
        api: With the user's token.
        repo_id: Created if it does not exist.
        folder: All its files are uploaded.
        repo_type: ``"model"`` or ``"dataset"``.
        private: Of a new repository. An existing public one is refused if True.
        message: Of the commit.
        delete_patterns: Delete matching files of an older upload in the same commit, unless they are replaced.
    """
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    check_access(api, repo_id, repo_type=repo_type, private=private)
    files = list_files(folder)
    older = set(api.list_repo_files(repo_id, repo_type=repo_type)) - files.keys()
    stale = sorted(file for file in older if any(fnmatch(file, pattern) for pattern in delete_patterns))
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(file, folder / file) for file in files),
            *(CommitOperationDelete(file) for file in stale),
        ],
        commit_message=message,
        repo_type=repo_type,
    )
    return str(commit.oid)
