"""improve: train on missed questions, and keep the old model unless the new one is shown to be better."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.dataset import RetrievalDataset
from embedtune.improvement.gate import Gate, RememberingEncoder
from embedtune.improvement.labels import check_labels
from embedtune.improvement.round_data import LOCKED, RoundData, build_round_data, hash_of_test
from embedtune.improvement.rounds import POINTER, Candidate, Round, Rounds
from embedtune.models.query_side import freeze_index, is_index_frozen
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.text import same_question
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.merging import ALPHAS, merge_with_base, smallest_within_one_error
from embedtune.training.frozen_index import FrozenIndexTrainer
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.serving.feedback import FeedbackLog
    from embedtune.types import Encoder

logger = logging.getLogger(__name__)

# With fewer, no difference is significant.
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
    *,
    feedback: FeedbackLog,
    output_dir: str | Path,
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
    """Train on the questions of a feedback log, and let the new model serve if it is shown to be better.

    Some of the log's questions are held out. The new model is accepted if it misses fewer of them, if it is not worse on
    the test split of ``data``, which is locked (its hash is recorded in the first round and checked in every round), and if
    it has not forgotten general knowledge. If the tuned model fails, the best merge with the old weights is tried, chosen on
    the dev split; if that fails too, the old model stays. After a crash at any point the old model serves.

    Questions of the locked test, and those about its documents, are never trained on. Questions that were trained on are
    never held out later.

    Args:
        model: The model that serves; it is not changed. From the second round on it must be the one of
            ``Rounds(output_dir).current``.
        data: Questions and chunks, with the splits ``train`` (to replay) and ``test`` (locked). The corpus may grow from
            round to round.
        feedback: The log. Questions whose relevant chunks are confirmed (a person or a language model named them, or a person
            liked the answer) are trained on or held out. Questions with cited but unconfirmed chunks are only held out, so
            that the evaluation does not consist of misses alone.
        output_dir: The folder of all rounds, in which `Rounds` finds the model that serves.
        args: Training arguments; their own ``output_dir`` is replaced. By default three epochs at a learning rate of 2e-5.
        keep_index: Train only the query side, so that the index stays valid (see `freeze_index`).
        held_out_size: Share of the log's questions to evaluate with.
        dev_size: Share of the log's questions to choose the checkpoint and the merge with, in addition to the dev split of
            ``data``.
        replay: How many earlier training questions to repeat for each new one, against forgetting.
        k: A question is a miss if it has no relevant chunk among the first ``k``.
        max_loss: How much nDCG the locked test may lose, at the lower bound of the 95% interval.
        max_wrong: Refuse the log if significantly more than this share of its labels seems to be random. This is an upper
            estimate: the relevant chunks of misses are hard to find, so some correct labels seem random too.
        seed: Seed of the draw of replayed questions, and of the order of training.

    Returns:
        The round. Printing it shows what was trained on and the result of each check.

    Raises:
        ValueError: If the locked test has changed, the model is not the one that serves, or the log has too few questions or
            seems to be wrong.
        RuntimeError: If another round finished in the meantime.
    """
    rounds = Rounds(output_dir)
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
    old = RememberingEncoder(model)
    _require_plausible(prepared, old, max_wrong=max_wrong)
    number, path = rounds.new_folder()
    prepared.data.save_to_disk(path / "data")
    args = _arguments(args, path / "checkpoints", keep_index=keep_index, seed=seed)
    tuned = _train(model, prepared.data, args, keep_index=keep_index)
    gate = Gate(old, prepared.data, k=k, max_loss=max_loss)
    chosen, candidates = _choose(tuned, gate, path, may_merge=not keep_index)
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
    """Return the round that serves, after checking the model and the locked test; create the start in the first round."""
    if LOCKED not in data.qrels or "train" not in data.qrels:
        raise ValueError(
            f"improve() needs the splits 'train' and {LOCKED!r}, and this dataset has {data.splits}. Build it with a test_size."
        )
    found = hash_of_test(data)
    if not (rounds.output_dir / POINTER).exists():
        return _start(rounds, model, test_hash=found)
    parent = rounds.current
    if found != parent.test_hash:
        raise ValueError(
            f"The test split has changed since it was locked (hash {found[:8]}, locked {parent.test_hash[:8]}). Rounds can only "
            "be compared on the same questions and relevant texts: pass the original split, or start again in another folder."
        )
    mine = model_fingerprint(model)
    # A saved model may differ from the given one: a LoRA is merged, and weights may be loaded in another precision.
    if mine != parent.model_fingerprint and mine != model_fingerprint(parent.load_model(device=str(model.device))):
        raise ValueError(
            f"This is not the model that serves, that of round {parent.number}. Load it with Rounds({str(rounds.output_dir)!r})"
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
    """Return the key of every question that was in a train or dev split, also in interrupted rounds."""
    datasets = [
        data,
        *(RetrievalDataset.load_from_disk(path) for path in sorted(rounds.output_dir.glob("[0-9]*/data"))),
    ]
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
            f"The log has {counts['trained on']} questions to train on and {counts['held out']} to hold out; at least 1 and "
            f"{_MIN_HELD_OUT} are needed. Name the relevant chunks of more questions with label_misses() or "
            f"FeedbackLog.name_chunks(). All counts: {dict(counts)}."
        )


def _require_plausible(prepared: RoundData, encoder: Encoder, *, max_wrong: float) -> None:
    """Raise if many labels of the log seem to be random: training on them would do harm."""
    relevant = {query: chunks for query, chunks in prepared.data.relevant("train").items() if query in prepared.new}
    texts = [prepared.data.query_texts[query] for query in relevant]
    found = check_labels(encoder, prepared.data.corpus_texts, texts, list(relevant.values()))
    if found.exceeds(max_wrong):
        examples = [(texts[row], list(relevant.values())[row][0]) for row in found.doubtful[:3]]
        raise ValueError(
            f"The labels of the log seem to be wrong: for {len(found.doubtful)} of {found.num_labels} questions the named chunk "
            f"ranks in the lower half of the corpus, by vectors and by words, as if {found.share_wrong:.0%} of the labels were "
            f"random. Check some, for instance {examples}, and correct them with name_chunks(). If they are correct, pass a larger "
            "max_wrong."
        )


def _arguments(args: TuningArguments | None, checkpoints: Path, *, keep_index: bool, seed: int) -> TuningArguments:
    if args is None:  # a linear layer needs larger steps than a pretrained model
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
    tuned: SentenceTransformer, gate: Gate, path: Path, *, may_merge: bool
) -> tuple[SentenceTransformer, list[Candidate]]:
    """Return the model to keep, and the candidates that were judged."""
    encoder = RememberingEncoder(tuned)
    results = {0.0: gate.before, 1.0: gate.evaluate(encoder, "tuned")}
    candidates = [gate.judge(encoder, results[1.0], path)]
    if candidates[0].passed or not may_merge or "dev" not in gate.before:
        return tuned, candidates
    for alpha in ALPHAS[1:-1]:
        merged = merge_with_base(tuned, gate.old.model, alpha=alpha).model
        results[alpha] = gate.evaluate(RememberingEncoder(merged), f"merged (alpha {alpha:g})")
    alpha = smallest_within_one_error({alpha: found["dev"] for alpha, found in results.items()})
    if alpha in (0, 1):  # the old model, or the tuned one again
        return tuned, candidates
    merged = merge_with_base(tuned, gate.old.model, alpha=alpha).model
    candidates.append(gate.judge(RememberingEncoder(merged), results[alpha], path))
    return merged, candidates


def _switch(rounds: Rounds, parent: Round, finished: Round) -> None:
    if rounds.current.number != parent.number:
        raise RuntimeError(
            f"Round {rounds.current.number} began to serve while round {finished.number} was trained and compared with round "
            f"{parent.number}. Round {finished.number} is kept; to let it serve, call Rounds.switch_to({finished.number})."
        )
    rounds.switch_to(finished.number)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
