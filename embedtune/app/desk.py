"""What the page does, without the page: ask, say what was right, label misses, and improve."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune import folder
from embedtune.models.load import load_model
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.index import ChunkIndex, build_index
from embedtune.retrieval.retriever import Retriever
from embedtune.serving.feedback import FeedbackLog
from embedtune.serving.suggest import suggest_chunk

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.evaluation.verdict import Verdict
    from embedtune.improvement.rounds import Round
    from embedtune.retrieval.hits import Hit
    from embedtune.serving.feedback import LoggedQuestion

_DEPTH = 10  # that many are searched and logged
_NUM_CANDIDATES = 20
_NUM_EXAMPLES = 3
_NUM_NEEDED = 35  # 30% of them judge, and improve() asks for 10 that do
_SOMEBODY = "person"

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A question, what was found for it, and what a person has said about it.

    Attributes:
        number: Its number in the feedback log; None if the log could not be written.
        text: The question.
        hits: What the tuned retriever found, best first.
        base: What the base model found, best first; empty if there is none to compare with.
        thumbs_up: Whether the person liked it; None if not said.
        named: The chunks that answer it; empty if no chunk does; None if not said.
        problem: Why the log could not be written, or an empty string.
    """

    number: int | None
    text: str
    hits: tuple[Hit, ...]
    base: tuple[Hit, ...] = ()
    thumbs_up: bool | None = None
    named: tuple[Hit, ...] | None = None
    problem: str = ""

    def is_named(self, hit: Hit) -> bool:
        """Return whether a person said that this chunk answers the question."""
        return hit.id in {one.id for one in self.named or ()}

    def base_rank(self, hit: Hit) -> int | None:
        """Return the rank from 1 that the base model gave a chunk; None if it is not among what it found."""
        return next((rank for rank, one in enumerate(self.base, 1) if one.id == hit.id), None)


class Desk:
    """A tuned retriever, the base model beside it, and the feedback log.

    Args:
        path: The folder of `tune`, or a saved retriever.
        base: The model to compare with, its name or folder; by default the one that ``embedtune tune`` was given.
        feedback: The feedback log; by default ``feedback.sqlite`` in the folder.
        data: The dataset to improve with; by default ``data`` in the folder.

    Attributes:
        path: The folder.
        retriever: The retriever that serves; an accepted round of improvement replaces it.
        base: The same chunks by the vectors of the base model, or None.
        log: The feedback log.
        data: Where the dataset is.
        verdict: The evidence of ``embedtune tune``, or None.

    Raises:
        FileNotFoundError: If ``path`` has no retriever.
    """

    def __init__(
        self, path: Path, *, base: str | None = None, feedback: Path | None = None, data: Path | None = None
    ) -> None:
        self.path = path
        self.retriever: Retriever = folder.load_retriever(path)
        name = base or _model_of(path)
        self.base: Retriever | None = _by_vectors(name, self.retriever, path / folder.BASE) if name else None
        self.log: FeedbackLog = FeedbackLog(feedback or path / folder.LOG)
        self.data: Path = data or path / folder.DATA
        self.verdict: Verdict | None = folder.load_verdict(path) if folder.has_verdict(path) else None
        self._improving = threading.Lock()

    def examples(self) -> list[str]:
        """Return a few short questions that the tuned retriever answers and the base model does not."""
        if self.verdict is None:
            return []
        per_query = self.verdict.after.per_query
        texts = dict(zip(per_query["query-id"][:], per_query["query"][:], strict=True))
        fixed = [texts[query] for query in self.verdict.fixed[self.verdict.k]]
        return sorted(fixed, key=len)[:_NUM_EXAMPLES]

    def ask(self, question: str) -> Asked:
        """Search with both, and record the question. A log that cannot be written costs no answer."""
        hits = self.retriever.search(question, k=_DEPTH)
        base = self.base.search(question, k=_DEPTH) if self.base is not None else []
        number, problem = None, ""
        try:
            number = self.log.record(question, hits, model=self.retriever.learned.model_fingerprint)
        except OSError as err:
            problem = str(err)
            logger.warning("The question was not logged: %s", err)
        return Asked(number, question, tuple(hits), tuple(base), problem=problem)

    def rate(self, asked: Asked, *, thumbs_up: bool) -> Asked:
        """Record whether what was found answers the question."""
        if asked.number is not None:
            self.log.rate(asked.number, thumbs_up=thumbs_up)
        return replace(asked, thumbs_up=thumbs_up)

    def name(self, asked: Asked, hit: Hit) -> Asked:
        """Record that a chunk answers the question, each on its own if several do."""
        named = asked.named or ()
        return asked if asked.is_named(hit) else self._named(asked, (*named, hit))

    def name_none(self, asked: Asked) -> Asked:
        """Record that no chunk answers the question; it takes back what was named."""
        return self._named(asked, ())

    def _named(self, asked: Asked, named: tuple[Hit, ...]) -> Asked:
        if asked.number is not None:
            self.log.name_chunks(asked.number, named, by=_SOMEBODY)
        return replace(asked, named=named)

    def open_misses(self) -> list[LoggedQuestion]:
        """Return the questions that were not answered and have no label, the newest first."""
        return [miss for miss in reversed(self.log.misses()) if miss.named is None]

    def candidates(self, miss: LoggedQuestion) -> Asked:
        """Return what a wider search finds for a miss, for a person to choose from."""
        found = suggest_chunk(miss.text, self.retriever, k=_NUM_CANDIDATES).candidates
        return Asked(miss.number, miss.text, found, thumbs_up=miss.thumbs_up)

    def obstacle(self) -> str:
        """Return why the retriever cannot be improved here, or an empty string."""
        if not self.data.is_dir():
            return (
                f"There is no dataset in {self.data}. Start the page with --data and the folder of the dataset that the retriever "
                "was tuned on."
            )
        return ""

    def counts(self) -> dict[str, int]:
        """Return how much feedback there is."""
        return {
            "questions asked": len(self.log),
            f"with a known answer (it takes about {_NUM_NEEDED})": len(self.log.to_questions()),
            "misses to label": len(self.open_misses()),
        }

    def improve(self) -> Round:
        """Train on the feedback, and serve the new retriever if it passes every check.

        Raises:
            ValueError: If there is too little feedback, or an improvement is running.
        """
        if not self._improving.acquire(blocking=False):
            raise ValueError("An improvement is running already. Wait until it has finished.")
        try:
            if obstacle := self.obstacle():
                raise ValueError(obstacle)
            round_ = folder.improved(self.path, self.log.path, self.data, epochs=None, seed=0)
            if round_.accepted:
                self.retriever = folder.load_retriever(self.path)
            return round_
        finally:
            self._improving.release()


def _model_of(path: Path) -> str:
    """Return the model that a folder of ``embedtune tune`` started from, if the folder says so."""
    return str(folder.read_command(path)["model"]) if (path / folder.COMMAND).exists() else ""


def _by_vectors(name: str, like: Retriever, place: Path) -> Retriever:
    """Return a retriever of the same chunks by the vectors of another model alone, which are kept for the next time."""
    model = load_model(name)
    index = _kept(place, model, like)
    if index is None:
        index = build_index(ModelEncoder(model, like.batch_size), like.index.chunks)
        try:
            index.save(place)
        except OSError as err:
            logger.warning("The vectors of %s are not kept: %s", name, err)
    return Retriever(model, index, word_weight=0, context=like.context, batch_size=like.batch_size)


def _kept(place: Path, model: SentenceTransformer, like: Retriever) -> ChunkIndex | None:
    """Return the index of an earlier time, if it is of this model and these chunks."""
    if not place.exists():
        return None
    try:
        index = ChunkIndex.load(place)
    except (OSError, ValueError) as err:
        logger.warning("The vectors in %s are made again: %s", place, err)
        return None
    wanted = model_fingerprint(model, side="document"), like.index.corpus_fingerprint
    return index if (index.model_fingerprint, index.corpus_fingerprint) == wanted else None
