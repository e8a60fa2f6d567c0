"""Rounds of improvement on disk: each with its data, model and evaluations, and one small file that says which one serves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedtune.bounds import whole
from embedtune.dataset import RetrievalDataset
from embedtune.models.load import load_model
from embedtune.storage import abandoned, claimed, reading, replace_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RECORD, POINTER = "round.json", "current.json"

Status = Literal["start", "accepted", "rejected"]


@dataclass(frozen=True)
class Check:
    """One check of a new model.

    Attributes:
        name: What was checked.
        passed: Whether the model passed.
        detail: The figures, in a sentence.
    """

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Candidate:
    """A model that was judged in a round.

    Attributes:
        name: ``"tuned"``, or ``"merged"`` with the weight of the tuned model.
        checks: The result of each check.
    """

    name: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether it passed all checks."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, repr=False)
class Round:
    """A round of improvement, or the initial model. Printing it shows the report.

    Attributes:
        path: Its folder: ``model``, ``data`` and the evaluations.
        number: Its number; 0 is the initial model.
        parent: The round whose model it started from; None for the initial model.
        status: ``"start"``, ``"accepted"`` or ``"rejected"``.
        candidates: The models that were judged, in order; the last one is saved in ``model``.
        counts: The number of questions by use.
        model_fingerprint: Fingerprint of the model in ``model``.
        test_hash: Hash of the locked test (see `hash_of_test`).
        created: When it was finished, in UTC.
        settings: The arguments of the round.
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
        """Whether its model passed every check."""
        return self.status == "accepted"

    @property
    def model_path(self) -> Path:
        """The folder of its model, a plain SentenceTransformer, and of what was learned about words: see `reindex`."""
        return self.path / "model"

    def load_model(self, **options: Any) -> SentenceTransformer:
        """Load its model, with the arguments of `load_model`."""
        return load_model(self.model_path, **options)

    def load_data(self) -> RetrievalDataset:
        """Load the data that it was trained and evaluated on."""
        return RetrievalDataset.load_from_disk(self.path / "data")

    def __repr__(self) -> str:
        lines = [f"Round {self.number}: {self.status}" + (f" (from {self.parent})" if self.parent is not None else "")]
        lines += [f"  {label:<44} {number:>6}" for label, number in self.counts.items()]
        for candidate in self.candidates:
            lines += [f"{candidate.name}: {'passed' if candidate.passed else 'failed'}"]
            lines += [f"  {'+' if check.passed else '-'} {check.name}: {check.detail}" for check in candidate.checks]
        return "\n".join(lines)

    def save(self) -> None:
        """Write the record, as the last step: a round without it is unfinished, and the next one removes it."""
        content = asdict(self) | {"path": None}
        replace_file(self.path / RECORD, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Round:
        """Read what `save` wrote."""
        with reading(path / RECORD, remedy="Copy it from a backup, or remove the folder of this round."):
            content = json.loads((path / RECORD).read_text(encoding="utf-8"))
            candidates = tuple(
                Candidate(one["name"], tuple(Check(**check) for check in one["checks"]))
                for one in content["candidates"]
            )
            return cls(**content | {"path": path, "candidates": candidates})


class Rounds:
    """All rounds in a folder, and which of them serves.

    Switching models replaces one small file, so readers see the old or the new model, and after a crash the old one serves.

    Args:
        output_dir: The ``output_dir`` of `improve`.

    Example:
        >>> import tempfile
        >>> Rounds(tempfile.mkdtemp()).all()
        []
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir: Path = Path(output_dir)

    def __repr__(self) -> str:
        rounds = self.all()
        serving = self.current.number if rounds and (self.output_dir / POINTER).exists() else None
        lines = [f"  {one.number} {one.status}{', serves' if one.number == serving else ''}" for one in rounds]
        return "\n".join([f"Rounds in {self.output_dir}: {len(rounds)}", *lines])

    def __getitem__(self, number: int) -> Round:
        path = self._path(whole("number", number, at_least=0))
        if not (path / RECORD).exists():
            raise ValueError(
                f"{self.output_dir} has no finished round {number}. Choose one of {[r.number for r in self.all()]}."
            )
        return Round.load(path)

    def all(self) -> list[Round]:
        """Return every finished round in order, the initial model first; interrupted rounds are left out."""
        return [Round.load(record.parent) for record in sorted(self.output_dir.glob(f"[0-9]*/{RECORD}"))]

    @property
    def current(self) -> Round:
        """The round whose model serves.

        Raises:
            FileNotFoundError: If there is none yet.
        """
        pointer = self.output_dir / POINTER
        if not pointer.exists():
            raise FileNotFoundError(
                f"{self.output_dir} has no rounds yet. Create the first one with improve(..., output_dir=...)."
            )
        with reading(pointer, remedy="Write it anew with Rounds.switch_to(number)."):
            number = whole("round", json.loads(pointer.read_text(encoding="utf-8"))["round"], at_least=0)
        return self[number]

    def switch_to(self, number: int) -> Round:
        """Let the model of another round serve from now on, and return that round.

        Raises:
            ValueError: If there is no such round, or it was rejected.
        """
        chosen = self[number]
        if chosen.status == "rejected":
            raise ValueError(f"Round {number} was rejected, so its model must not serve. Print the round to see why.")
        replace_file(self.output_dir / POINTER, json.dumps({"round": number}) + "\n")
        return chosen

    def roll_back(self) -> Round:
        """Let the parent of the current model serve again, and return its round.

        Raises:
            ValueError: If the current model is the initial one.
        """
        parent = self.current.parent
        if parent is None:
            raise ValueError("The initial model serves already, so there is no round to roll back to.")
        return self.switch_to(parent)

    @contextmanager
    def new_round(self) -> Iterator[tuple[int, Path]]:
        """Yield the number and the folder of the next round, which no other process gets; remove interrupted rounds.

        Their models never served, so nothing of them is needed.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with claimed(self._created) as path:
            for other in self._folders():
                with abandoned(other) as is_abandoned:
                    if is_abandoned and not (other / RECORD).exists():
                        shutil.rmtree(other, ignore_errors=True)
            yield int(path.name), path

    def _created(self) -> Path:
        number = max((int(path.name) for path in self._folders()), default=-1) + 1
        while True:
            try:
                self._path(number).mkdir()
            except FileExistsError:
                number += 1
            else:
                return self._path(number)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.output_dir.glob("[0-9]*") if path.name.isdecimal())

    def _path(self, number: int) -> Path:
        return self.output_dir / f"{number:04}"
