"""improve: learn from what was missed, and keep the old model unless the new one is shown to be better."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.dataset import RetrievalDataset
from embedtune.improvement.gate import Gate
from embedtune.improvement.labels import check_labels
from embedtune.improvement.round_data import LOCKED, RoundData, build_round_data, hash_of_test
from embedtune.improvement.rounds import POINTER, Candidate, Round, Rounds
from embedtune.models.query_side import freeze_index, is_index_frozen
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.retriever import Retriever
from embedtune.serving.feedback import same_question
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.merging import merge_with_base
from embedtune.training.frozen_index import FrozenIndexTrainer
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.serving.feedback import FeedbackLog

logger = logging.getLogger(__name__)

# With fewer, no difference can be told from chance.
_MIN_HELD_OUT = 10

_RECORDED = (
    "loss",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "per_device_train_batch_size",
    "dropout",
    "frozen_layers",
    "seed",
)


def improve(
    model: SentenceTransformer,
    data: RetrievalDataset,
    feedback: FeedbackLog,
    *,
    folder: str | Path,
    args: TuningArguments | None = None,
    keep_index: bool = False,
    held_out_size: float = 0.3,
    dev_size: float = 0.1,
    replay: float = 2.0,
    k: int = 10,
    max_loss: float = 0.02,
    max_wrong: float = 0.5,
    seed: int = 0,
) -> Round:
    """Train on what the log has named the right chunks of, and let the new model serve if it is shown to be better.

    Some of the log's questions are held out. The new model is accepted if it misses fewer of them, if it is not worse on
    the test split of ``data``, which is locked (its hash is recorded at the first round and checked at each), and if it
    has not forgotten what the old one knew of other things. If the tuned model fails, the best merge with the old weights,
    chosen on the dev split, is tried; if that fails too, the old model stays. A crash at any time leaves the old model.

    Questions of the locked test, and those about its documents, are never trained on; what was trained on is never held
    out again.

    Args:
        model: The model that serves, unchanged by this: the first time any, from then on ``Rounds(folder).current``'s.
        data: Questions and chunks, with ``train`` (to replay) and ``test`` (locked). The corpus may grow from round to round.
        feedback: The log. Questions whose right chunks are confirmed (a person or a language model named them, or a person
            liked the answer) are trained on or held out; those that an answer cited chunks for, and nobody spoke of, are
            held out alone, so that not only misses are measured.
        folder: Where each round is kept, and `Rounds` finds the model that serves.
        args: How to train; the output folder is replaced. By default three epochs at a learning rate of 2e-5.
        keep_index: Train the query side alone, so that the index stays valid (see `freeze_index`).
        held_out_size: Share of the log's questions to measure with.
        dev_size: Share of the log's questions to choose the checkpoint and the merge by, beside the dev split of ``data``.
        replay: How many old training questions to repeat for each new one, so that they are not forgotten.
        k: A question is missed if its right chunk is not among the first ``k``.
        max_loss: How much nDCG the locked test may lose at worst, at the lower bound of the 95% interval.
        max_wrong: Refuse a log of which, beyond chance, more than this share of the labels looks drawn at random. An upper
            estimate: the right chunks of misses are hard to find, and some look random, too.
        seed: Draws what is replayed, and the order of training.

    Returns:
        The round. Printing it shows what was trained on and how each check went.

    Raises:
        ValueError: If the locked test has changed, the model is not the one that serves, or the log has too little or looks
            wrong.
        RuntimeError: If another round was finished in the meantime.
    """
    rounds = Rounds(folder)
    parent = _parent(rounds, model, data)
    prepared = build_round_data(
        data,
        feedback.questions(),
        trained_before=_trained_before(rounds, data),
        held_out_size=held_out_size,
        dev_size=dev_size,
        replay=replay,
        seed=seed,
    )
    _require_enough(prepared)
    _require_plausible(prepared, model, max_wrong=max_wrong)
    number, path = rounds.new_folder()
    prepared.data.save_to_disk(path / "data")
    args = _arguments(args, path / "checkpoints", keep_index=keep_index, seed=seed)
    tuned = _train(model, prepared.data, args, keep_index=keep_index)
    gate = Gate(model, prepared.data, k=k, max_loss=max_loss)
    chosen, candidates = _choose(model, tuned, gate, path, may_merge=not keep_index)
    chosen.save_pretrained(str(path / "model"))
    finished = Round(
        path=path,
        number=number,
        parent=parent.number,
        status="accepted" if candidates[-1].passed else "rejected",
        model_fingerprint=model_fingerprint(chosen),
        test_hash=parent.test_hash,
        created=_now(),
        candidates=tuple(candidates),
        counts=prepared.counts,
        settings={name: getattr(args, name) for name in _RECORDED}
        | {"keep_index": keep_index, "replay": replay, "k": k}
        | {"max_loss": max_loss, "held_out_size": held_out_size, "dev_size": dev_size},
    )
    finished.save()
    logger.info("%s", finished)
    if finished.accepted:
        _switch(rounds, parent, finished)
    return finished


def _parent(rounds: Rounds, model: SentenceTransformer, data: RetrievalDataset) -> Round:
    """Return the round that serves, after checking that model and test are its; the first time, make the start."""
    if LOCKED not in data.qrels or "train" not in data.qrels:
        raise ValueError(f"improve() needs the splits 'train' and {LOCKED!r}; this dataset has {data.splits}.")
    found = hash_of_test(data)
    if not (rounds.folder / POINTER).exists():
        return _start(rounds, model, test_hash=found)
    parent = rounds.current
    if found != parent.test_hash:
        raise ValueError(
            f"The test split is not the one that was locked (hash {found[:8]}, locked {parent.test_hash[:8]}). Rounds can only "
            "be compared on the same questions: pass the dataset with that split, or start again in another folder."
        )
    mine = model_fingerprint(model)
    # What is saved may differ from what was given: a LoRA is merged, and weights may be loaded in another precision.
    if mine != parent.model_fingerprint and mine != model_fingerprint(parent.load_model(device=str(model.device))):
        raise ValueError(
            f"This model is not the one that serves, of round {parent.number}. Load that: Rounds({str(rounds.folder)!r})"
            ".current.load_model()."
        )
    return parent


def _start(rounds: Rounds, model: SentenceTransformer, *, test_hash: str) -> Round:
    number, path = rounds.new_folder()
    model.save_pretrained(str(path / "model"))
    start = Round(path, number, None, "start", model_fingerprint(model), test_hash, _now())
    start.save()
    return rounds.switch_to(number)


def _trained_before(rounds: Rounds, data: RetrievalDataset) -> Collection[str]:
    """Return every question that was trained on, or chosen by, as `same_question` does; interrupted rounds count."""
    datasets = [data, *(RetrievalDataset.load_from_disk(path) for path in sorted(rounds.folder.glob("[0-9]*/data")))]
    return {
        same_question(one.query_texts[query])
        for one in datasets
        for split in ("train", "dev")
        if split in one.qrels
        for query in one.relevant(split)
    }


def _require_enough(prepared: RoundData) -> None:
    counts = prepared.counts
    if not counts["trained on"] or counts["held out"] < _MIN_HELD_OUT:
        raise ValueError(
            f"The log has {counts['trained on']} questions to train on and {counts['held out']} to hold out, and it takes at "
            f"least 1 and {_MIN_HELD_OUT}. Name the right chunks of more questions: label_misses(), or "
            f"FeedbackLog.name_chunks(). What became of the others: {dict(counts)}."
        )


def _require_plausible(prepared: RoundData, model: SentenceTransformer, *, max_wrong: float) -> None:
    """Raise if the right chunks of the log look as if many were drawn at random: nothing good could be learned."""
    relevant = {query: chunks for query, chunks in prepared.data.relevant("train").items() if query in prepared.new}
    texts = [prepared.data.query_texts[query] for query in relevant]
    found = check_labels(Retriever.from_dataset(model, prepared.data), texts, list(relevant.values()))
    if found.exceeds(max_wrong):
        examples = [(texts[row], list(relevant.values())[row][0]) for row in found.doubtful[:3]]
        raise ValueError(
            f"The log looks wrong: for {len(found.doubtful)} of {found.num_labels} questions the chunk that is said to answer is "
            f"in the lower half of the corpus by meaning and by words, as if {found.share_wrong:.0%} of them were drawn at random. "
            f"Look at some, for instance {examples}, and correct them with name_chunks(). If they are right after all, pass a "
            "larger max_wrong."
        )


def _arguments(args: TuningArguments | None, checkpoints: Path, *, keep_index: bool, seed: int) -> TuningArguments:
    if args is None:  # a linear layer takes larger steps than a model that is tuned already
        rate = 1e-3 if keep_index else 2e-5
        return TuningArguments(str(checkpoints), num_train_epochs=3, learning_rate=rate, seed=seed)
    args = copy.copy(args)
    args.output_dir = str(checkpoints)
    return args


def _train(
    model: SentenceTransformer, data: RetrievalDataset, args: TuningArguments, *, keep_index: bool
) -> SentenceTransformer:
    """Return a trained copy of the model."""
    tuned = copy.deepcopy(model)
    if keep_index and not is_index_frozen(tuned):
        tuned = freeze_index(tuned, query="linear")
    trainer = (FrozenIndexTrainer if keep_index else EmbeddingTrainer)(tuned, args, data=data)
    trainer.train()
    shutil.rmtree(args.output_dir, ignore_errors=True)
    return trainer.model


def _choose(
    old: SentenceTransformer, tuned: SentenceTransformer, gate: Gate, path: Path, *, may_merge: bool
) -> tuple[SentenceTransformer, list[Candidate]]:
    """Return the model to keep, and what became of the candidates."""
    candidates = [gate.judge(tuned, "tuned", path)]
    if candidates[0].passed or not may_merge or "dev" not in gate.data.qrels:
        return tuned, candidates
    merge = merge_with_base(tuned, old, data=gate.data)
    if merge.alpha in (0, 1):  # it is the old model, or the tuned one again
        return tuned, candidates
    candidates.append(gate.judge(merge.model, f"merged (alpha {merge.alpha:g})", path))
    return merge.model, candidates


def _switch(rounds: Rounds, parent: Round, finished: Round) -> None:
    if rounds.current.number != parent.number:
        raise RuntimeError(
            f"Round {rounds.current.number} began to serve while round {finished.number} was trained, which was compared with "
            f"round {parent.number}. It is kept; Rounds.switch_to({finished.number}) lets it serve all the same."
        )
    rounds.switch_to(finished.number)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
