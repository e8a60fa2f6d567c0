"""Hard negatives from a corpus in shards, found by all processes of a launcher."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedtune.near_duplicates import near_matches
from embedtune.retrieval.encoders import ModelEncoder, encode_questions
from embedtune.retrieval.fusion import similarities
from embedtune.retrieval.index import build_index, table_of_texts
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.shard_search import rows_of_shards, search_shards
from embedtune.training.negatives.mining import Miner, ScoreFilters, check_loss, rows_for

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from typing_extensions import Unpack

    from embedtune.dataset import RetrievalDataset
    from embedtune.training.arguments import LossName

# Candidates of each question beyond those needed, for those that turn out to be copies of what the dataset knows.
_SPARE = 20


def mine_shards(
    model: SentenceTransformer,
    data: RetrievalDataset,
    folder: str | Path,
    *,
    split: str = "train",
    loss: LossName = "in-batch",
    num_negatives: int = 1,
    relative_margin: float | None = 0.05,
    seed: int = 0,
    batch_size: int = 32,
    **filters: Unpack[ScoreFilters],
) -> Dataset:
    """Do what `mine_hard_negatives` does, with candidates from what `encode_shards` wrote.

    All processes of ``accelerate launch`` or ``torchrun`` call it with the same arguments, and each gets the same rows; or one
    process calls it alone. The corpus of the dataset may be as small as the documents that its questions are about. What it
    says about them holds as in `mine_hard_negatives`. Of the other chunks of the shards, those of its documents and those that
    are near-duplicates of its chunks are never negatives.

    Args:
        model: The model that encoded the shards.
        data: Questions, and the documents that they are about.
        folder: The ``output_dir`` of `encode_shards`.
        split: As in `mine_hard_negatives`, and so are the following.
        loss: The loss that will read the rows.
        num_negatives: Negatives per question and relevant chunk.
        relative_margin: Leave out candidates that score above 95% (for 0.05) of the relevant chunk's score.
        seed: Seed of the random negatives, which are drawn from the dataset's chunks and from all candidates.
        batch_size: How many texts go through the model at once.
        **filters: ``range_min``, ``range_max`` (200, of all chunks of the shards), ``max_score``, ``min_score``,
            ``absolute_margin``.

    Raises:
        TypeError: If a filter is not one of these.
        ValueError: If `search_shards` refuses the shards, or `mine_hard_negatives` the other arguments.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> from embedtune.retrieval.shards import encode_shards, write_corpus
        >>> folder, model = Path(tempfile.mkdtemp()), et.load_model("minilm", device="cpu")
        >>> texts = ["Press both buttons to start.", "Turn the key to the left.", "Call Ada at night."]
        >>> chunks = [et.Chunk(f"{i}#0", f"{i}", text, 0, len(text)) for i, text in enumerate(texts)]
        >>> write_corpus(chunks, folder / "corpus")
        >>> _ = encode_shards(model, folder / "corpus", output_dir=folder / "vectors")
        >>> questions = [et.Question("a", "How do I start?", ("0#0",)), et.Question("b", "How do I lock?", ("1#0",))]
        >>> data = et.build_dataset(chunks[:2], questions, test_size=0, dev_size=0)
        >>> mine_shards(model, data, folder / "vectors", relative_margin=None).column_names
        ['anchor', 'positive', 'negative', 'label']
    """
    check_loss(loss)
    if unknown := sorted(filters.keys() - ScoreFilters.__annotations__.keys()):
        raise TypeError(f"mine_shards does not take {unknown}, only {sorted(ScoreFilters.__annotations__)}.")
    miner = Miner(data, split, num_negatives, relative_margin, seed, filters)
    questions = list(miner.relevant)
    encoder = ModelEncoder(model, batch_size, show_progress_bar=False)
    index = build_index(encoder, table_of_texts(sorted(set(miner.pairs["positive"][:]))))
    retriever = Retriever(model, index, word_weight=0.0, batch_size=batch_size)
    found = search_shards(retriever, folder, questions, k=miner.range_max + miner.num_wanted)
    positives, pool = _positives(miner), set(miner.pool)
    limits = _limits(miner, _lowest_scores(retriever, [positives[question] for question in questions], questions))
    kept = [
        _kept(miner, ids, scores, limit=limit, allowed=pool, positives=positives[question])
        for question, ids, scores, limit in zip(questions, found.ids, found.scores, limits, strict=True)
    ]
    texts = _texts_of(miner, {chunk for ids in kept for chunk in ids}, folder)
    candidates = {
        question: list(dict.fromkeys(texts[chunk] for chunk in ids if chunk in texts))
        for question, ids in zip(questions, kept, strict=True)
    }
    known = set(data.corpus_texts.values())
    others = tuple(sorted({text for some in candidates.values() for text in some} - known))
    miner = Miner(data, split, num_negatives, relative_margin, seed, filters, others)
    return rows_for(loss, miner, candidates)


def _positives(miner: Miner) -> dict[str, list[str]]:
    """Return the relevant texts of each question."""
    positives: dict[str, list[str]] = {}
    for question, text in zip(miner.pairs["anchor"][:], miner.pairs["positive"][:], strict=True):
        positives.setdefault(question, []).append(text)
    return positives


def _lowest_scores(
    retriever: Retriever, positives: Sequence[Sequence[str]], questions: Sequence[str]
) -> NDArray[np.float32]:
    """Return the score of each question's relevant chunk, the lowest where there are several, of shape ``(num_questions,)``."""
    row_of = {text: row for row, text in enumerate(retriever.index.texts())}
    width = max(map(len, positives))
    filled = [[*some, *[some[0]] * (width - len(some))] for some in positives]
    rows = np.array([[row_of[text] for text in some] for some in filled])
    vectors = encode_questions(retriever.encoder, questions)
    lowest: NDArray[np.float32] = similarities(retriever.index, vectors, rows).min(axis=1)
    return lowest


def _limits(miner: Miner, scores: NDArray[np.float32]) -> list[float]:
    """Return the highest score of a negative of each question, from that of its relevant chunk."""
    margin, share = miner.options.get("absolute_margin"), miner.relative_margin
    highest = miner.options.get("max_score")
    return [
        min(
            math.inf if highest is None else highest,
            math.inf if margin is None else score - margin,
            math.inf if share is None else score - abs(score) * share,
        )
        for score in scores.tolist()
    ]


def _kept(
    miner: Miner,
    ids: Sequence[str],
    scores: Sequence[float],
    *,
    limit: float,
    allowed: Collection[str],
    positives: Collection[str],
) -> list[str]:
    """Return the chunks that pass the filters for a question, hardest first, and a few more than are needed."""
    lowest, first = miner.options.get("min_score"), miner.options.get("range_min", 0)
    lowest = -math.inf if lowest is None else lowest
    known = miner.data.corpus_texts
    passed = [
        chunk
        for chunk, score in zip(ids, scores, strict=True)
        if lowest <= score <= limit
        and (chunk not in known or (known[chunk] in allowed and known[chunk] not in positives))
    ]
    return passed[: miner.range_max][first : first + miner.num_wanted + _SPARE]


def _texts_of(miner: Miner, chunk_ids: set[str], folder: str | Path) -> Mapping[str, str]:
    """Return the texts of chunks that may be negatives: of the dataset's, and of others that are unlike them."""
    known, corpus = miner.data.corpus_texts, miner.data.corpus
    documents = set(corpus["document_id"][:]) - {""} if "document_id" in corpus.column_names else set()
    rows: list[dict[str, Any]] = rows_of_shards(folder, "_id", chunk_ids - known.keys()).to_pylist()
    new = {row["_id"]: row["text"] for row in rows if row["document_id"] not in documents}
    names, texts = list(new), list(new.values())
    like = {names[position] for position, _ in near_matches(texts, list(known.values()))}
    return {chunk: text for chunk, text in (known | new).items() if chunk in chunk_ids and chunk not in like}
