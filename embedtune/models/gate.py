"""What a repository says about itself, checked before anything is built from it: classes, sizes, tokenizer, tensors.

No code of a repository is run, no pickle is read, and what cannot be true is refused before memory is taken.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from sentence_transformers.base.modules import Module
from sentence_transformers.util import import_from_string
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel

from embedtune.models.repository import find_file, quiet_transformers, read_json

_MOST_LAYERS = 1_000  # the deepest published models have about a hundred
_MOST = 2**31  # of anything that is counted in config.json
_COUNTED = re.compile(r"size|dim|num_|vocab|positions|layers|heads|rank|length|window", re.IGNORECASE)
_MOST_GROWTH = 16  # characters for each one that is read
_MOST_ADDED = 64  # special tokens around a text
_MOST_PADDING = 2**20  # tokens

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "adapter_model.bin")
_HEADS = r"^(lm_head|cls)\."  # of the language model that an embedding model was made from

_INSTEAD = (
    "Use a variant without code: a native one ('...-hf'), a merged one (jina-embeddings-v5-...-retrieval), or the revision of a "
    "conversion ('refs/pr/<number>', among the repository's pull requests). If you have read the code, load the model yourself "
    "and pass it: load_model(SentenceTransformer(name, revision='<the commit that you have read>', trust_remote_code=True))."
)


def check_repository(name: str, *, revision: str | None = None) -> None:
    """Raise a ``ValueError`` if a repository describes a model that cannot be, or that only its own code can build.

    Reads small files and, for the tokenizer, tokenizer.json.
    """
    check_whole(name)
    check_modules(name, revision=revision)
    for file in ("tokenizer_config.json", "sentence_bert_config.json"):
        read_json(name, file, revision=revision)
    prompts = read_json(name, "config_sentence_transformers.json", revision=revision).get("prompts") or {}
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise ValueError(
            f"config_sentence_transformers.json of {name!r} has prompts that are not texts: {prompts!r:.100}."
        )
    for folder in transformer_folders(name, revision):
        file = _in(folder, "config.json")
        config = read_json(name, file, revision=revision)
        _check_class(name, file, config)
        _check_tokenizer(name, _in(folder, "tokenizer.json"), config, revision)
    base = read_json(name, "adapter_config.json", revision=revision).get("base_model_name_or_path")
    if base is not None and not find_file(name, "config.json", revision=revision):
        check_repository(str(base))


def check_family(name: str, config: dict[str, Any], family: str, *, recognised: bool) -> None:
    """Raise a ``ValueError`` if a family's loader is called for another model, or for one of an impossible size."""
    if not recognised:
        raise ValueError(
            f"{name!r} is not the original {family}: its config.json has model_type={config.get('model_type')!r} and "
            f"architectures={config.get('architectures')!r}. Use load_model, also for a {family} that you saved."
        )
    _check_sizes(name, "config.json", config)


def check_whole(folder: str) -> None:
    """Raise a ``ValueError`` if saving a model to the folder was interrupted: modules.json is written last."""
    if Path(folder, "config_sentence_transformers.json").is_file() and not Path(folder, "modules.json").is_file():
        raise ValueError(
            f"{folder!r} is incomplete: modules.json, which is saved last, is missing. Save the model again, or load an earlier "
            "checkpoint."
        )


def _modules(name: str, revision: str | None) -> dict[str, str]:
    """Return the class of each module by its folder, a ``Router``'s routes included."""
    content = read_json(name, "modules.json", revision=revision)
    modules = content.get("items", [])
    if not isinstance(modules, list) or (content and not modules):
        modules = [None]
    if not all(isinstance(module, dict) and {"path", "type"} <= module.keys() for module in modules):
        raise ValueError(f"modules.json of {name!r} must be a list of modules with a path and a type.")
    routes = read_json(name, "router_config.json", revision=revision).get("types", {})
    return {str(module["path"]): str(module["type"]) for module in modules} | {
        str(k): str(v) for k, v in routes.items()
    }


def check_modules(name: str, *, revision: str | None = None) -> None:
    """Raise a ``ValueError`` if a repository has its own Python modules, or keeps weights of modules in pickles."""
    places = _modules(name, revision)
    own = [kind for kind in places.values() if not kind.startswith("sentence_transformers.")]
    if own:
        raise ValueError(f"{name!r} needs its own code ({', '.join(own)}), which is not run. {_INSTEAD}")
    for kind in places.values():
        if not _is_module(kind):
            raise ValueError(
                f"{name!r} names {kind!r} as a module, which is not a class of modules of sentence-transformers."
            )
    for place in places:
        if place.startswith("/") or ".." in PurePosixPath(place).parts:
            raise ValueError(f"modules.json of {name!r} leads out of the folder: {place!r}.")
        if place and read_json(name, _in(place, "config.json"), revision=revision):
            _refuse_pickles(name, place, revision)


def _is_module(kind: str) -> bool:
    """Return whether a dotted name leads to a module: it could lead to whatever a file imports, ``torch`` for instance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of places that modules had in older versions
        try:
            found = import_from_string(kind)
        except ImportError:
            return False
    return isinstance(found, type) and issubclass(found, Module)


def transformer_folders(name: str, revision: str | None) -> list[str]:
    """Return the folders with transformer weights: the root, or those of a ``Router``'s routes."""
    folders = [place for place, kind in _modules(name, revision).items() if kind.endswith(".Transformer")] or [""]
    found = [place for place in folders if find_file(name, _in(place, "config.json"), revision=revision)]
    if found != folders and not find_file(name, "adapter_config.json", revision=revision):
        missing = next(place for place in folders if place not in found)
        raise ValueError(
            f"{name!r} has no file {_in(missing, 'config.json')}, which describes its transformer. Download it again."
        )
    return found


def _in(folder: str, file: str) -> str:
    return PurePosixPath(folder, file).as_posix()


def _check_class(name: str, file: str, config: dict[str, Any]) -> None:
    """Raise a ``ValueError`` unless transformers has the class that the weights were saved from."""
    _check_sizes(name, file, config)
    kind, classes = config.get("model_type"), config.get("architectures") or [None]
    if kind is not None and kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{name!r} needs its own code: {file} says model_type={kind!r}, which transformers {transformers.__version__} does not "
            f"have. {_INSTEAD}"
        )
    if classes[0] is not None and declared_class(config) is None:
        raise ValueError(
            f"{name!r} was saved from another model: {file} says architectures={classes!r}, which transformers "
            f"{transformers.__version__} does not have. It would be loaded as a plain {kind!r}, with other embeddings. {_INSTEAD}"
        )


def declared_class(config: dict[str, Any]) -> type[PreTrainedModel] | None:
    """Return transformers' class with the first name under ``architectures``."""
    named = next(iter(config.get("architectures") or []), None)
    found = getattr(transformers, named, None) if isinstance(named, str) else None
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def _check_sizes(name: str, file: str, config: dict[str, Any]) -> None:
    """Raise a ``ValueError`` if a number in the configuration cannot be true."""
    for key, value in _numbers(config):
        most = _MOST_LAYERS if "layers" in key or "blocks" in key else _MOST
        if value > most or (value < 0 and "num_" in key):
            raise ValueError(f"{file} of {name!r} says {key}={value}, which no model has (at most {most}).")


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the counts in a configuration and in the configurations inside it."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool) and _COUNTED.search(key):
            yield key, value


def _check_tokenizer(name: str, file: str, config: dict[str, Any], revision: str | None) -> None:
    """Raise a ``ValueError`` if a tokenizer would grow without bound, or has tokens that its model has not."""
    tokenizer = read_json(name, file, revision=revision)
    path = find_file(name, file, revision=revision)
    try:
        _check_growth(name, file, tokenizer, config)
        if path is not None:
            Tokenizer.from_file(str(path))
    except ValueError:
        raise
    except Exception as err:  # the Rust side raises nothing more specific
        raise ValueError(
            f"{file} of {name!r} is not a tokenizer that the package tokenizers can load ({err}). Download it again."
        ) from err


def _check_growth(name: str, file: str, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    model = tokenizer.get("model") or {}
    vocab, rows = model.get("vocab") or (), (config.get("text_config") or config).get("vocab_size")
    if isinstance(rows, int) and len(vocab) > 2 * max(rows, 500):
        raise ValueError(f"{file} of {name!r} has {len(vocab)} tokens, but config.json says vocab_size={rows}.")
    growth = math.prod(
        _growth(step) for part in ("normalizer", "pre_tokenizer") for step in tokenizer_steps(tokenizer.get(part))
    )
    added = sum(len(step.get("single") or ()) for step in tokenizer_steps(tokenizer.get("post_processor")))
    padding = (tokenizer.get("padding") or {}).get("strategy")
    fixed = padding.get("Fixed", 0) if isinstance(padding, dict) else 0
    if growth > _MOST_GROWTH or added > _MOST_ADDED or fixed > _MOST_PADDING:
        raise ValueError(
            f"{file} of {name!r} makes texts grow: {growth:.0f} characters for one, {added} special tokens, padding to {fixed}."
        )


def tokenizer_steps(step: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a tokenizer's part, which may be a sequence."""
    if isinstance(step, dict):
        yield step
        for inner in ("normalizers", "pretokenizers", "processors"):
            for part in step.get(inner) or ():
                yield from tokenizer_steps(part)


def _growth(step: dict[str, Any]) -> float:
    """Return how many characters a ``Replace`` writes for each that it reads."""
    if step.get("type") != "Replace":
        return 1.0
    pattern = step.get("pattern") or {}
    return max(1.0, len(str(step.get("content", ""))) / max(1, len(str(pattern.get("String", "")))))


def check_weights(name: str, *, revision: str | None = None, allow_missing: str = r"(?!)") -> None:
    """Raise a ``ValueError`` unless the checkpoint has every tensor of the model, and no others. Only names are read.

    transformers initialises missing tensors at random, drops those that it does not know, and only logs it.

    Args:
        name: A folder, or a repository on the Hub.
        revision: Of the repository.
        allow_missing: A pattern of tensors that may be missing.
    """
    for folder in transformer_folders(name, revision):
        check_files(name, folder, revision)
        _check_tensors(name, folder, revision, allow_missing)


def check_files(name: str, folder: str, revision: str | None) -> list[Path]:
    """Return the files with weights; raise a ``ValueError`` unless they are whole, safetensors, and inside the repository."""
    paths = []
    index = _in(folder, "model.safetensors.index.json")
    shards = read_json(name, index, revision=revision).get("weight_map")
    files = sorted(set((shards or {"": "model.safetensors"}).values()), key=str)
    for file in files:
        if not re.fullmatch(r"[^/\\]+\.safetensors", str(file)):
            raise ValueError(f"{index} of {name!r} names {file!r}, which is not a file of safetensors beside it.")
        path = find_file(name, _in(folder, file), revision=revision)
        if path is None:
            _refuse_pickles(name, folder, revision)
            raise ValueError(f"{name!r} has no weights: {_in(folder, file)} is missing. Download or save it again.")
        paths.append(path)
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{_in(folder, file)} of {name!r} is incomplete: {error}. Download or save it again."
            ) from error
    return paths


def _refuse_pickles(name: str, folder: str, revision: str | None) -> None:
    """Raise a ``ValueError`` if weights are pickled, and there are none in safetensors."""
    safe = ("model.safetensors", "model.safetensors.index.json")
    if any(find_file(name, _in(folder, file), revision=revision) for file in safe):
        return
    pickles = [_in(folder, file) for file in _PICKLES if find_file(name, _in(folder, file), revision=revision)]
    if pickles:
        raise ValueError(
            f"{name!r} has its weights only in {pickles[0]}, a pickle, which can run code when it is read. Take a revision with "
            "safetensors (revision='refs/pr/<number>': the Hub's bot opens such pull requests), or convert it once where nothing "
            "can be harmed: SentenceTransformer(name, model_kwargs={'use_safetensors': False}).save_pretrained(folder)."
        )


def _check_tensors(name: str, folder: str, revision: str | None, allow_missing: str) -> None:
    model, info = _on_meta(name, folder, revision)
    missing = sorted(key for key in info["missing_keys"] if not re.search(allow_missing, key))
    unknown = sorted(info["unexpected_keys"] - _heads(name, folder, revision, info["unexpected_keys"]))
    if missing or unknown:
        raise ValueError(
            f"The weights of {name!r} do not fit {type(model).__name__}: {len(missing)} tensors are missing ({_few(missing)}) and "
            f"{len(unknown)} are unknown ({_few(unknown)}). Missing tensors would be initialised at random, unknown ones dropped: "
            "another model. Check that the folder is complete and config.json belongs to the weights."
        )


def _on_meta(name: str, folder: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """Build the model without weights, and return it with what transformers says about the checkpoint's tensors."""
    options: dict[str, Any] = {"revision": revision, "subfolder": folder, "use_safetensors": True}
    try:
        with quiet_transformers():
            built: tuple[Any, dict[str, Any]] = AutoModel.from_pretrained(
                name, device_map="meta", output_loading_info=True, trust_remote_code=False, **options
            )
    except OSError:  # of the Hub, or of the disk
        raise
    except Exception as error:  # configurations are checked where they are used, in many ways
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"transformers cannot build a model from {_in(folder, 'config.json')} and the weights of {name!r}: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return built


def _heads(name: str, folder: str, revision: str | None, unexpected: set[str]) -> set[str]:
    """Return the tensors that only the class has from which the weights were saved, such as a language model's head."""
    rest = {key for key in unexpected if not re.search(_HEADS, key)}
    config = read_json(name, _in(folder, "config.json"), revision=revision)
    saved_from = declared_class(config)
    if not rest or saved_from is None:
        return unexpected - rest
    settings = AutoConfig.from_pretrained(name, revision=revision, subfolder=folder, trust_remote_code=False)
    with quiet_transformers(), torch.device("meta"):
        whole: Any = saved_from._from_config(settings)
    prefix = f"{whole.base_model_prefix}."
    return (unexpected - rest) | {key for key in rest if key in whole.state_dict() and not key.startswith(prefix)}


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
