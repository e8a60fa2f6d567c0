"""The small files of a repository: a folder or a name on the Hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from packaging.version import Version
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

logger: logging.Logger = logging.getLogger(__name__)

_LARGEST_JSON = 2**28  # bytes; the largest published tokenizers have a tenth of it


def find_file(name: str, file: str, *, revision: str | None = None) -> Path | None:
    """Return the local path of a file of a folder or a repository on the Hub; None if the file does not exist.

    Raises:
        FileNotFoundError: If the folder, repository or revision does not exist.
        ConnectionError: If the Hub cannot be reached and the file is not in the cache.
    """
    if Path(name).is_dir():
        path = Path(name, file)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"revision={revision!r} does not exist in {name!r}. See https://huggingface.co/{name}/commits/main for its branches, "
            "tags and commits."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a local folder nor a repository on the Hub that you may read. Check the spelling; for a "
            "private or gated repository, log in with `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"{name!r} is neither a local folder nor in the download cache, and the Hub cannot be reached (or HF_HUB_OFFLINE is "
            f"set). Run `hf download {name}` on a machine with access, then copy the cache or pass the folder."
        ) from error
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise ConnectionError(f"The Hub did not return {file} of {name!r}: {error}") from error


def resolve_name(model: object) -> str:
    """Return a folder or a name on the Hub as ``SentenceTransformer`` accepts it.

    Raises:
        TypeError: If it is neither.
        FileNotFoundError: If it is a path that does not exist, or a folder without a model.
    """
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"model is a {type(model).__name__}. Pass a name on the Hub, a folder or, to load_model, a SentenceTransformer."
        )
    name = str(model)
    if Path(name).is_dir():
        _check_folder(Path(name))
        return name
    looks_like_a_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if looks_like_a_path or Path(name).is_file():
        raise FileNotFoundError(
            f"There is no folder {name!r}. Pass the folder of a saved model, a name on the Hub ('org/name'), or 'minilm'."
        )
    return name if "/" in name else f"sentence-transformers/{name}"  # as SentenceTransformer completes it


def _check_folder(folder: Path) -> None:
    signs = ("modules.json", "config.json", "adapter_config.json")
    if any((folder / sign).is_file() for sign in signs):
        return
    models = sorted({path.parent.name for sign in signs for path in folder.glob(f"*/{sign}")})
    raise FileNotFoundError(
        f"The folder {str(folder)!r} contains no model: neither modules.json nor config.json. Pass the folder of a saved model."
        + (f" Its subfolders contain models: {', '.join(models)}." if models else "")
    )


def read_json(name: str, file: str, *, revision: str | None = None) -> dict[str, Any]:
    """Read a JSON file of a repository; an empty dictionary if it does not exist.

    Raises:
        ValueError: If it is not JSON, or too large or too deep to be read.
    """
    path = find_file(name, file, revision=revision)
    if path is None:
        return {}
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{file} of {name!r} has {path.stat().st_size:,} bytes, more than any model needs.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON ({error})"
        raise ValueError(f"{file} of {name!r} {reason}. Download it again, or take another repository.") from error
    return content if isinstance(content, dict) else {"items": content}


def read_licence(name: str, *, revision: str | None = None) -> str | list[str] | None:
    """Return the licence in a repository's model card, or its licences, which derived models inherit."""
    try:
        card = find_file(name, "README.md", revision=revision)
        licence = (metadata_load(card) or {}).get("license") if card else None
    except (
        ConnectionError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # models can be loaded without a card
        logger.info("The licence of %s is unknown: %s", name, type(error).__name__)
        return None
    several = isinstance(licence, list) and all(isinstance(part, str) for part in licence)
    return licence if several or isinstance(licence, str) else None


def require_transformers(minimum: str, *, reason: str) -> None:
    """Raise an ``ImportError`` if transformers is older than ``minimum``."""
    if Version(transformers_version) < Version(minimum):
        raise ImportError(
            f"transformers {transformers_version} is installed, and {reason}: pip install -U 'transformers>={minimum}'"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' reports about tensors, which `check_weights` covers, and its bars for loading and writing files."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
