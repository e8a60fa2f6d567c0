"""Checks of a repository before its model is built: small files and the names of its tensors."""

from __future__ import annotations

import json
import logging
import re
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
from safetensors import SafetensorError
from transformers import AutoModel
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)


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


def check_family(name: str, config: dict[str, Any], family: str, *, recognised: bool) -> None:
    """Raise a ``ValueError`` if a family's loader is called for another model."""
    if not recognised:
        raise ValueError(
            f"{name!r} is not the original {family}: its config.json has model_type={config.get('model_type')!r} and "
            f"architectures={config.get('architectures')!r}. Use load_model, also for a {family} that you saved."
        )


def read_json(name: str, file: str, *, revision: str | None = None) -> dict[str, Any]:
    """Read a JSON file of a repository; an empty dictionary if it does not exist."""
    path = find_file(name, file, revision=revision)
    if path is None:
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {"items": content}


def read_licence(name: str, *, revision: str | None = None) -> str | None:
    """Return the licence in a repository's model card, which derived models inherit."""
    try:
        card = find_file(name, "README.md", revision=revision)
        return (metadata_load(card) or {}).get("license") if card else None
    except (ConnectionError, ValueError, yaml.YAMLError) as error:  # a model can be loaded without a card
        logger.info("The licence of %s is unknown: %s", name, error)
        return None


def require_transformers(minimum: str, *, reason: str) -> None:
    """Raise an ``ImportError`` if transformers is older than ``minimum``."""
    if Version(transformers_version) < Version(minimum):
        raise ImportError(
            f"transformers {transformers_version} is installed, and {reason}: pip install -U 'transformers>={minimum}'"
        )


def check_whole(folder: str) -> None:
    """Raise a ``ValueError`` if saving a model to the folder was interrupted: modules.json is written last."""
    if Path(folder, "config_sentence_transformers.json").is_file() and not Path(folder, "modules.json").is_file():
        raise ValueError(
            f"{folder!r} is incomplete: modules.json, which is saved last, is missing. Save the model again, or load an earlier "
            "checkpoint."
        )


def _modules(name: str, revision: str | None) -> list[dict[str, Any]]:
    modules: list[dict[str, Any]] = read_json(name, "modules.json", revision=revision).get("items", [])
    return modules


def check_modules(name: str, *, revision: str | None = None) -> None:
    """Raise a ``ValueError`` if a repository has its own Python modules."""
    types = [module["type"] for module in _modules(name, revision)]
    own = [name for name in types if not name.startswith("sentence_transformers.")]
    if own:
        raise ValueError(
            f"{name!r} needs its own code ({', '.join(own)}), which is not run. If you have read it, load the model yourself and "
            "pass it: load_model(SentenceTransformer(name, revision='<the commit that you have read>', trust_remote_code=True))."
        )


def check_weights(name: str, *, revision: str | None = None, allow_missing: str = r"(?!)") -> None:
    """Raise a ``ValueError`` unless the checkpoint has every tensor of the model. Only names are read.

    transformers initialises missing tensors at random and only logs it.

    Args:
        name: A folder, or a repository on the Hub.
        revision: Of the repository.
        allow_missing: A pattern of tensors that may be missing.
    """
    for folder in _transformer_folders(name, revision):
        _check_tensors(name, folder, revision, allow_missing)


def _transformer_folders(name: str, revision: str | None) -> list[str]:
    """Return the folders with transformer weights: the root, or those of a ``Router``'s routes."""
    routes = read_json(name, "router_config.json", revision=revision).get("types", {})
    places = {module["path"]: module["type"] for module in _modules(name, revision)} | routes
    folders = [place for place, kind in places.items() if kind.endswith(".Transformer")] or [""]
    return [place for place in folders if find_file(name, Path(place, "config.json").as_posix(), revision=revision)]


def _check_tensors(name: str, subfolder: str, revision: str | None, allow_missing: str) -> None:
    options = {"revision": revision, "subfolder": subfolder, "use_safetensors": True}
    try:
        with quiet_transformers():
            model, info = AutoModel.from_pretrained(name, device_map="meta", output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"A weights file of {name!r} is incomplete: {error}. Download or save it again.") from error
    missing = sorted(key for key in info["missing_keys"] if not re.search(allow_missing, key))
    children = {child for child, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    unexpected = sorted(k for k in info["unexpected_keys"] if k.removeprefix(prefix).partition(".")[0] in children)
    if missing or unexpected:
        raise ValueError(
            f"The weights of {name!r} do not fit {type(model).__name__}: {len(missing)} tensors are missing ({_few(missing)}) and "
            f"{len(unexpected)} are unknown ({_few(unexpected)}). Missing tensors would be initialised at random. Check that the "
            "folder is complete and config.json belongs to the weights."
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' reports about tensors, which `check_weights` covers."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
