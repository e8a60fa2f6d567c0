"""The one exception that the standard library has no name for."""

from __future__ import annotations


class OptionalDependencyError(ImportError):
    """A package that an optional feature needs is not installed.

    Args:
        package: The missing package's name on the package index.
        extra: The extra of embedtune that installs it.
        purpose: What it is needed for, as the middle of a sentence.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: pip install 'embedtune[{extra}]'")
