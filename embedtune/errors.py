"""A missing optional package, and a mistake that many functions refuse."""

from __future__ import annotations

from pathlib import Path


class OptionalDependencyError(ImportError):
    """A package that an optional feature needs is not installed.

    Args:
        package: The missing package's name on the package index.
        extra: The extra of embedtune that installs it.
        purpose: What it is needed for, as the middle of a sentence.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install 'embedtune[{extra}]'")


def refuse_name(model: object) -> None:
    """Raise a ``TypeError`` if a model is a name or a folder instead of a loaded model."""
    if isinstance(model, (str, Path)):
        raise TypeError(f"model is the name {str(model)!r}. Load it first: load_model({str(model)!r}).")
