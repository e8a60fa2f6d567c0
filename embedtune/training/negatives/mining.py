"""Hard negatives: chunks that the model ranks high although they are not relevant."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import numpy as np
from sentence_transformers.util import mine_hard_negatives as mine

from embedtune.bounds import finite, share, whole
from embedtune.dataset.views import Contents, chunks_for_training, table
from embedtune.training.arguments import LossName

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from typing_extensions import Unpack

    from embedtune.dataset import RetrievalDataset

logger: logging.Logger = logging.getLogger(__name__)

# The lowest rank of a negative. If the relevant chunk ranks even lower, all candidates are hard.
_RANGE_MAX = 200

Found = Mapping[str, Sequence[str]]
"""The negatives of each question, as texts, hardest first."""


class ScoreFilters(TypedDict, total=False):
    """Arguments that say which candidates are hard enough and not too hard, as in sentence-transformers."""

    range_min: int
    range_max: int
    max_score: float
    min_score: float
    absolute_margin: float


class MiningOptions(ScoreFilters, total=False):
    """Arguments that are passed on to sentence-transformers' ``mine_hard_negatives``."""

    cross_encoder: CrossEncoder
    batch_size: int
    use_faiss: bool
    use_multi_process: bool | list[str]


def mine_hard_negatives(
    model: SentenceTransformer,
    data: RetrievalDataset,
    *,
    split: str = "train",
    loss: LossName = "in-batch",
    num_negatives: int = 1,
    relative_margin: float | None = 0.05,
    seed: int = 0,
    **options: Unpack[MiningOptions],
) -> Dataset:
    """Find hard negatives for each question, and return rows to train on.

    sentence-transformers' function of this name searches and filters by score. This one also uses what the dataset knows: a
    negative is never a chunk that is relevant to the question, a near-duplicate of one, a neighbour that overlaps one, or a
    chunk relevant to the same question elsewhere in the table. It never comes from a document held out for another split
    either, because a document that training has pushed away is not unseen any more. A question with too few candidates
    gets random chunks that are not relevant, so that no question is lost.

    Args:
        model: The model that ranks the chunks, usually the one to train. Its vectors are never cached.
        data: Questions and chunks.
        split: The split whose questions are used.
        loss: The loss that will read the rows. ``"in-batch"``: a question (``anchor``), its chunk (``positive``),
            negatives (``negative``, or ``negative_1``, ...) and a ``label`` of ids, by which the loss does not use a negative
            against the questions that it answers. ``"triplet"``: the same without a label and with one negative per row, for
            `TripletMarginLoss`. ``"cosine"``: a question, a chunk (``candidate``) and a ``label`` of 1 or -1, for
            `CosineEmbeddingLoss`. The anchor is always a question.
        num_negatives: Negatives per question and relevant chunk.
        relative_margin: Leave out candidates that score above 95% (for 0.05) of the relevant chunk's score, because they
            are probably relevant ("NV-Retriever", Moreira et al. 2024, https://arxiv.org/abs/2407.15831). None keeps all,
            and then several of the hardest negatives are usually relevant.
        seed: Seed of the random negatives.
        **options: Further filters and settings of ``sentence_transformers.util.mine_hard_negatives``: ``range_min``,
            ``range_max`` (200), ``max_score``, ``min_score``, ``absolute_margin``, ``cross_encoder``, ``batch_size``,
            ``use_faiss``, ``use_multi_process``.

    Returns:
        Rows that `EmbeddingTrainer` takes as ``train_dataset``, and plain sentence-transformers as well.

    Raises:
        TypeError: If an option is not one of these.
        ValueError: If the split or the loss is unknown, or all chunks are relevant to a question.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs(
        ...     [("Press both buttons.", ["How do I restart?"]), ("Turn the key left.", ["Which way does the key turn?"])],
        ...     test_size=0,
        ...     dev_size=0,
        ... )
        >>> rows = mine_hard_negatives(et.load_model("minilm", device="cpu"), data)
        >>> rows.column_names
        ['anchor', 'positive', 'negative', 'label']
    """
    check_loss(loss)
    miner = Miner(data, split, num_negatives, relative_margin, seed, options)
    return rows_for(loss, miner, miner.candidates(model))


def check_loss(loss: LossName) -> None:
    """Raise a ``ValueError`` unless a loss has rows with negatives."""
    if loss not in _ROWS:
        raise ValueError(f"loss={loss!r} is not one of {get_args(LossName)}.")


def rows_for(loss: LossName, miner: Miner, candidates: Mapping[str, Sequence[str]]) -> Dataset:
    """Return rows for a loss with the first of each question's candidates that may be its negatives."""
    return _ROWS[loss](miner.pairs, miner.mine(candidates), miner.content_of)


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in ("range_min", "range_max", "batch_size"):
            whole(name, value, at_least=0 if name == "range_min" else 1)
        elif name in ("max_score", "min_score", "absolute_margin") and value is not None:
            finite(name, value, at_least=0 if name == "absolute_margin" else None)


@dataclass(frozen=True)
class Miner:
    """The settings of `mine_hard_negatives`, and what does not depend on the model.

    Attributes:
        data: Questions and chunks.
        split: The split whose questions are used.
        num_negatives: Negatives per question.
        relative_margin: As in `mine_hard_negatives`.
        seed: Seed of the random negatives.
        options: Passed on to sentence-transformers, which takes more than these.
        others: Texts from elsewhere that may become negatives: none is like a chunk of the data.
    """

    data: RetrievalDataset
    split: str
    num_negatives: int
    relative_margin: float | None
    seed: int
    options: ScoreFilters
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(self.options.keys() - MiningOptions.__annotations__.keys()):
            raise TypeError(
                f"mine_hard_negatives does not take {unknown}, only {sorted(MiningOptions.__annotations__)}."
            )
        whole("num_negatives", self.num_negatives, at_most=max(1, len(self.data.corpus_texts)))
        if self.relative_margin is not None:
            share("relative_margin", self.relative_margin)
        whole("seed", self.seed, at_least=0)
        _check_options(self.options)
        if not self.data.relevant(self.split):
            raise ValueError(f"The split {self.split!r} has no questions to mine negatives for.")

    @cached_property
    def pairs(self) -> Dataset:
        """Questions and their chunks, with ids."""
        return self.data.pairs(self.split, with_ids=True)

    @cached_property
    def pool(self) -> list[str]:
        """The distinct texts that may become negatives."""
        chunks = self.data.corpus_texts
        return list(dict.fromkeys([*(chunks[c] for c in chunks_for_training(self.data, self.split)), *self.others]))

    @cached_property
    def contents(self) -> Contents:
        """The id of each chunk's content, which near-duplicates share."""
        return Contents(self.data)

    @cached_property
    def content_of(self) -> dict[str, int]:
        """The id of each text, as in the labels of `pairs`."""
        others = {text: len(self.data.corpus) + i for i, text in enumerate(self.others)}
        return others | {text: self.contents.id_of[chunk] for chunk, text in self.data.corpus_texts.items()}

    @cached_property
    def relevant(self) -> dict[str, set[str]]:
        """The texts that must not become negatives of a question, by its text."""
        answers, texts = self.contents.answers(self.split), self.data.query_texts
        texts_of: dict[int, set[str]] = {}
        for text in self.pool:
            texts_of.setdefault(self.content_of[text], set()).add(text)
        return {texts[q]: set().union(*(texts_of.get(c, ()) for c in contents)) for q, contents in answers.items()}

    @property
    def num_wanted(self) -> int:
        """How many candidates each question needs: those that turn out to be relevant are left out afterwards."""
        return self.num_negatives + max(map(len, self.relevant.values()))

    @property
    def range_max(self) -> int:
        """The lowest rank of a candidate."""
        return max(self.options.get("range_max", _RANGE_MAX), self.options.get("range_min", 0) + self.num_wanted)

    def mine(self, candidates: Mapping[str, Sequence[str]]) -> Found:
        """Return ``num_negatives`` texts for each question, from candidates that are sorted, hardest first."""
        rng = np.random.default_rng(self.seed)
        found, dropped, missing = {}, 0, 0
        for question, relevant in self.relevant.items():
            hard = [text for text in candidates.get(question, ()) if text not in relevant]
            dropped += len(candidates.get(question, ())) - len(hard)
            missing += max(0, self.num_negatives - len(hard))
            found[question] = self._filled(rng, relevant, hard[: self.num_negatives], question)
        logger.info(
            "Mined %d hard negatives for %d questions from %d texts. Left out %d candidates that are relevant; filled %d places "
            "at random, because the score filters left too few candidates.",
            len(found) * self.num_negatives - missing,
            len(found),
            len(self.pool),
            dropped,
            missing,
        )
        return found

    def candidates(self, model: SentenceTransformer) -> dict[str, list[str]]:
        """Return more texts than needed for each question, hardest first, filtered by score."""
        wanted = self.num_wanted
        options: dict[str, Any] = {**self.options, "range_max": self.range_max}
        rows = mine(
            self.pairs.select_columns(["anchor", "positive"]),
            model,
            corpus=self.pool,
            num_negatives=wanted,
            relative_margin=self.relative_margin,
            output_format="triplet",
            verbose=False,
            **options,
        )
        found: dict[str, dict[str, None]] = {}
        for question, text in zip(rows["anchor"][:], rows["negative"][:], strict=True):
            found.setdefault(question, {})[text] = None
        return {question: list(texts) for question, texts in found.items()}

    def _filled(self, rng: np.random.Generator, relevant: set[str], hard: Sequence[str], question: str) -> list[str]:
        """Return ``num_negatives`` texts: the hard ones, then random ones, and repetitions if there are no more."""
        chosen, num_others = dict.fromkeys(hard), len(self.pool) - len(relevant)
        if not num_others:
            raise ValueError(
                f"All chunks are relevant to the question {question!r}, so it has no negatives. Add other chunks."
            )
        while len(chosen) < min(self.num_negatives, num_others):
            text = self.pool[rng.integers(len(self.pool))]
            if text not in relevant:
                chosen[text] = None
        return list(itertools.islice(itertools.cycle(chosen), self.num_negatives))


def _in_batch(pairs: Dataset, found: Found, content_of: Mapping[str, int]) -> Dataset:
    questions, labels = pairs["anchor"][:], pairs["label"][:]
    columns = list(zip(*(found[question] for question in questions), strict=True))
    names = ["negative"] if len(columns) == 1 else [f"negative_{i}" for i in range(1, len(columns) + 1)]
    return table(
        {
            "anchor": questions,
            "positive": pairs["positive"][:],
            **{name: list(column) for name, column in zip(names, columns, strict=True)},
            "label": [
                label + [-1 - content_of[text] for text in found[question]]
                for question, label in zip(questions, labels, strict=True)
            ],
        }
    )


def _triplets(pairs: Dataset, found: Found, _: Mapping[str, int]) -> Dataset:
    rows = [(q, c, text) for q, c in zip(pairs["anchor"][:], pairs["positive"][:], strict=True) for text in found[q]]
    return table(dict(zip(("anchor", "positive", "negative"), map(list, zip(*rows, strict=True)), strict=True)))


def _labelled_pairs(pairs: Dataset, found: Found, _: Mapping[str, int]) -> Dataset:
    rows = [
        row
        for question, chunk in zip(pairs["anchor"][:], pairs["positive"][:], strict=True)
        for row in [(question, chunk, 1.0), *((question, text, -1.0) for text in found[question])]
    ]
    return table(dict(zip(("anchor", "candidate", "label"), map(list, zip(*rows, strict=True)), strict=True)))


_ROWS: dict[LossName, Callable[[Dataset, Found, Mapping[str, int]], Dataset]] = {
    "in-batch": _in_batch,
    "triplet": _triplets,
    "cosine": _labelled_pairs,
}
"""Functions from pairs, their negatives and the id of each text to rows, by loss."""
