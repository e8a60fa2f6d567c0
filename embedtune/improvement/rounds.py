"""Rounds of improvement on disk: each with its data, model and verdict, and one small file that says which one serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedtune.dataset import RetrievalDataset
from embedtune.models.load import load_model
from embedtune.storage import replace_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RECORD, POINTER = "round.json", "current.json"

Status = Literal["start", "accepted", "rejected"]


@dataclass(frozen=True)
class Check:
    """One thing that a new model has to show.

    Attributes:
        name: What was looked at.
        passed: Whether it holds.
        detail: The figures, in a sentence.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Candidate:
    """A model that was tried in a round.

    Attributes:
        name: ``"tuned"``, or ``"merged"`` with the weight that the tuned model has in it.
        checks: What it showed, one of which failed unless it was accepted.
    """

    name: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether it showed everything."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, repr=False)
class Round:
    """A round of improvement, or the model that the first one began with. Printing it shows the report.

    Attributes:
        path: Its folder: ``model``, ``data`` and the evaluations.
        number: Its number, counted from 0, the start.
        parent: The round whose model it began with; None for the start.
        status: ``"start"``, ``"accepted"`` or ``"rejected"``.
        candidates: The models that were tried, in order; the last one lies in ``model``.
        counts: How many questions went where.
        model_fingerprint: Of the model in ``model``.
        test_hash: Of the locked test, see `hash_of_test`.
        created: When it was finished, in UTC.
        settings: What it was run with.
    """

    path: Path
    number: int
    parent: int | None
    status: Status
    model_fingerprint: str
    test_hash: str
    created: str
    candidates: tuple[Candidate, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether its model is better than its parent's by every check."""
        return self.status == "accepted"

    @property
    def model_path(self) -> Path:
        """The folder of its model, a plain SentenceTransformer."""
        return self.path / "model"

    def load_model(self, **options: Any) -> SentenceTransformer:
        """Load its model, with the options of `load_model`."""
        return load_model(self.model_path, **options)

    def load_data(self) -> RetrievalDataset:
        """Load what it was trained on and measured with."""
        return RetrievalDataset.load_from_disk(self.path / "data")

    def __repr__(self) -> str:
        lines = [f"Round {self.number}: {self.status}" + (f" (from {self.parent})" if self.parent is not None else "")]
        lines += [f"  {label:<44} {number:>6}" for label, number in self.counts.items()]
        for candidate in self.candidates:
            lines += [f"{candidate.name}: {'passed' if candidate.passed else 'refused'}"]
            lines += [f"  {'+' if check.passed else '-'} {check.name}: {check.detail}" for check in candidate.checks]
        return "\n".join(lines)

    def save(self) -> None:
        """Write the record, last of all: a round without it is not finished, and counts for nothing."""
        content = asdict(self) | {"path": None}
        replace_file(self.path / RECORD, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Round:
        """Read what `save` wrote."""
        content = json.loads((path / RECORD).read_text(encoding="utf-8"))
        candidates = tuple(
            Candidate(one["name"], tuple(Check(**check) for check in one["checks"])) for one in content["candidates"]
        )
        return cls(**content | {"path": path, "candidates": candidates})


class Rounds:
    """All rounds in a folder, and which of them serves.

    The switch from one model to another is the replacement of one small file, so a reader sees the old one or the new one,
    and a crash at any time leaves the old one.

    Args:
        folder: The folder that `improve` works in.

    Example:
        >>> import tempfile
        >>> Rounds(tempfile.mkdtemp()).all()
        []
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path = Path(folder)

    def __getitem__(self, number: int) -> Round:
        path = self._path(number)
        if not (path / RECORD).exists():
            raise ValueError(f"{self.folder} has no finished round {number}, only {[r.number for r in self.all()]}.")
        return Round.load(path)

    def all(self) -> list[Round]:
        """Return every finished round, the start first; one that was interrupted is left out."""
        return [Round.load(record.parent) for record in sorted(self.folder.glob(f"[0-9]*/{RECORD}"))]

    @property
    def current(self) -> Round:
        """The round whose model serves.

        Raises:
            FileNotFoundError: If there is none yet.
        """
        pointer = self.folder / POINTER
        if not pointer.exists():
            raise FileNotFoundError(f"No model serves from {self.folder} yet: improve(..., folder=...) sets it up.")
        return self[json.loads(pointer.read_text(encoding="utf-8"))["round"]]

    def switch_to(self, number: int) -> Round:
        """Let the model of another round serve from now on, and return that round.

        Raises:
            ValueError: If there is no such round, or it was rejected.
        """
        chosen = self[number]
        if chosen.status == "rejected":
            raise ValueError(f"Round {number} was rejected, so its model does not serve. Its report says why.")
        replace_file(self.folder / POINTER, json.dumps({"round": number}) + "\n")
        return chosen

    def roll_back(self) -> Round:
        """Let the model that the current one was made from serve again, and return its round.

        Raises:
            ValueError: If the current model is the one that everything began with.
        """
        parent = self.current.parent
        if parent is None:
            raise ValueError("The model that everything began with serves already. There is nothing to go back to.")
        return self.switch_to(parent)

    def new_folder(self) -> tuple[int, Path]:
        """Make the folder of the next round, which no other process can make as well."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.name) for path in self.folder.glob("[0-9]*")), default=-1) + 1
        while True:
            try:
                self._path(number).mkdir()
            except FileExistsError:
                number += 1
            else:
                return number, self._path(number)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04}"
