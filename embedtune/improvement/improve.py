"""improve: train on missed questions, and keep the old retriever unless the new one is shown to be better."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.bounds import finite, share, whole
from embedtune.dataset import RetrievalDataset
from embedtune.improvement.gate import Gate
from embedtune.improvement.labels import check_labels
from embedtune.improvement.round_data import (
    HELD_OUT,
    LOCKED,
    RoundData,
    build_round_data,
    hash_of_test,
    with_locked_test,
)
from embedtune.improvement.rounds import POINTER, Candidate, Round, Rounds
from embedtune.models.query_side import freeze_index, is_index_frozen
from embedtune.models.repository import quiet_transformers
from embedtune.retrieval.encoders import RememberingEncoder
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.retriever_files import read, words_fingerprint, write_learned
from embedtune.retrieval.words import WordWeights
from embedtune.text import same_question
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.merging import ALPHAS, merge_with_base, smallest_within_one_error
from embedtune.training.fit import train_with_one_bar
from embedtune.training.frozen_index import FrozenIndexTrainer
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.retrieval.learned import Saved
    from embedtune.retrieval.word_weight import LearnedWords
    from embedtune.serving.feedback import FeedbackLog
    from embedtune.types import Encoder

logger: logging.Logger = logging.getLogger(__name__)

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
    retriever: Retriever,
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
    general: RetrievalDataset | None = None,
    seed: int = 0,
) -> Round:
    """Train on the questions of a feedback log, and let the new model serve if it is shown to be better.

    The new questions teach the model, and the words, too: which of them say much (see `learn_words`). How much words count
    stays as it is, because the misses of the retriever that serves are no fair sample to choose it by.

    Some of the log's questions are held out. The new retriever, model and words, is accepted if it misses fewer of them, if it is not worse on
    the test split of ``data``, which is locked (its hash is recorded in the first round and checked in every round), and if
    it has not forgotten general knowledge. If the tuned model fails, the best merge with the old weights is tried, chosen on
    the dev split; if that fails too, the old model stays. After a crash at any point the old model serves.

    Questions of the locked test, and those about its documents, are never trained on. Questions that were trained on are
    never held out later.

    Args:
        retriever: The retriever that serves; it is not changed. From the second round on it must be the one of
            ``Rounds(output_dir).current``, as `reindex` makes it from the round's ``model_path``.
        data: Questions and chunks, with the splits ``train`` (to replay) and ``test`` (locked). Without ``test`` a fifth of the
            training questions is locked. If the first retriever has learned from the locked questions, as after a `tune` that
            folds judge, they favour it, and a new one passes less easily. The corpus may grow from round to round.
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
        general: Questions of general knowledge, in its split ``test``, that the new model must still answer as well (see
            `check_forgetting`). By default the English ones of the package, if the corpus is English; otherwise this is not
            measured, and the round says so.
        seed: Seed of the draw of replayed questions, and of the order of training.

    Returns:
        The round. Printing it shows what was trained on and the result of each check.

    Raises:
        TypeError: If it is not given a `Retriever`.
        ValueError: If the locked test has changed, the retriever is not the one that serves, or the log has too few questions
            or seems to be wrong.
        RuntimeError: If another round finished in the meantime.
    """
    sizes = {"held_out_size": held_out_size, "dev_size": dev_size}
    bar = {"k": k, "max_loss": max_loss}
    _check_arguments(retriever, sizes | bar | {"max_wrong": max_wrong, "replay": replay, "seed": seed})
    rounds, data = Rounds(output_dir), with_locked_test(data)
    parent = _parent(rounds, retriever, data)
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
    old = RememberingEncoder(retriever.model, retriever.batch_size)
    _require_plausible(prepared, old, max_wrong=max_wrong)
    with rounds.new_round() as (number, path):
        prepared.data.save_to_disk(path / "data")
        args = _arguments(args, path / "checkpoints", keep_index=keep_index, seed=seed)
        words = _taught(retriever.words, prepared.data, data, known=_trained_into(rounds, parent, data))
        tuned = _train(retriever.model, prepared.data, args, keep_index=keep_index)
        gate = Gate(old, retriever, prepared.data, k=k, max_loss=max_loss, general=general)
        chosen, learned, candidates = _choose(tuned, words, gate, path, may_merge=not keep_index)
        _save(chosen, learned, path / "model")
        finished = Round(
            path=path,
            number=number,
            parent=parent.number,
            status="accepted" if candidates[-1].passed else "rejected",
            model_fingerprint=learned.model_fingerprint,
            test_hash=parent.test_hash,
            created=_now(),
            candidates=tuple(candidates),
            counts=prepared.counts,
            settings={name: getattr(args, name) for name in _RECORDED}
            | {"keep_index": keep_index, "replay": replay, **bar, **sizes},
        )
        finished.save()
        logger.info("%s", finished)
        if finished.accepted:
            _switch(rounds, parent, finished)
        return finished


def _check_arguments(retriever: object, numbers: Mapping[str, float]) -> None:
    if not isinstance(retriever, Retriever):
        raise TypeError(
            f"retriever is a {type(retriever).__name__}. Give the retriever that serves, or make one: "
            "Retriever.from_dataset(model, data)."
        )
    for name in ("held_out_size", "dev_size", "max_wrong"):
        share(name, numbers[name])
    finite("replay", numbers["replay"], at_least=0)
    finite("max_loss", numbers["max_loss"])
    whole("k", numbers["k"])
    whole("seed", numbers["seed"], at_least=0)


def _parent(rounds: Rounds, retriever: Retriever, data: RetrievalDataset) -> Round:
    """Return the round that serves, after checking the model and the locked test; create the start in the first round."""
    found = hash_of_test(data)
    if not (rounds.output_dir / POINTER).exists():
        return _start(rounds, retriever, test_hash=found)
    parent = rounds.current
    if found != parent.test_hash:
        raise ValueError(
            f"The test split has changed since it was locked (hash {found[:8]}, locked {parent.test_hash[:8]}). Rounds can only "
            "be compared on the same questions and relevant texts: pass the original split, or start again in another folder."
        )
    model, mine = retriever.model, model_fingerprint(retriever.model)
    # A saved model may differ from the given one: a LoRA is merged, and weights may be loaded in another precision.
    if mine != parent.model_fingerprint and mine != model_fingerprint(parent.load_model(device=str(model.device))):
        raise ValueError(
            f"This retriever's model is not the model that serves, that of round {parent.number}. {_remedy(parent)}"
        )
    if words_fingerprint(retriever.words.weights) != words_fingerprint(read(parent.model_path).words.weights):
        raise ValueError(
            f"This retriever's words are not those that serve, those of round {parent.number}. {_remedy(parent)}"
        )
    return parent


def _remedy(parent: Round) -> str:
    return f"Move it there with reindex(retriever, {str(parent.model_path)!r}, path=...)."


def _start(rounds: Rounds, retriever: Retriever, *, test_hash: str) -> Round:
    learned = retriever.learned
    with rounds.new_round() as (number, path):
        _save(retriever.model, learned, path / "model")
        start = Round(path, number, None, "start", learned.model_fingerprint, test_hash, _now())
        start.save()
    return rounds.switch_to(number)


def _save(model: SentenceTransformer, learned: Saved, folder: Path) -> None:
    """Save a retriever without its chunks, which are in the data of the round."""
    with quiet_transformers():
        model.save_pretrained(str(folder))
        write_learned(folder, learned)


def _trained_into(rounds: Rounds, parent: Round, data: RetrievalDataset) -> set[str]:
    """Return the key of every question that taught the retriever that serves, of the dataset and of its rounds."""
    datasets, one = [data], parent
    while one.parent is not None:
        datasets.append(one.load_data())
        one = rounds[one.parent]
    return {same_question(text) for one in datasets for text in _asked(one, "train")}


def _taught(
    words: LearnedWords, of_round: RetrievalDataset, data: RetrievalDataset, *, known: Collection[str]
) -> LearnedWords:
    """Return the words with weights that the training questions of a round taught, too, each question once."""
    measured = {same_question(text) for split in (LOCKED, HELD_OUT) for text in _asked(of_round, split)}
    texts = {same_question(text): text for one in (data, of_round) for text in _asked(one, "train")}
    new = {key: text for key, text in texts.items() if key not in measured}
    if words.weights is None:
        return replace(words, weights=WordWeights.learn(new.values()))
    more = WordWeights.learn([text for key, text in new.items() if key not in known])
    return replace(words, weights=words.weights.joined(more))


def _asked(data: RetrievalDataset, split: str) -> list[str]:
    return [data.query_texts[query] for query in sorted(data.relevant(split))]


def _trained_before(rounds: Rounds, data: RetrievalDataset) -> Collection[str]:
    """Return the key of every question that was in a train or dev split."""
    datasets = [data, *(one.load_data() for one in rounds.all() if one.parent is not None)]
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
            f"FeedbackLog.name_chunks(). The log's questions: {', '.join(f'{number} {use}' for use, number in counts.items())}."
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
    train_with_one_bar(trainer)
    shutil.rmtree(args.output_dir, ignore_errors=True)
    return trainer.model


def _choose(
    tuned: SentenceTransformer, words: LearnedWords, gate: Gate, path: Path, *, may_merge: bool
) -> tuple[SentenceTransformer, Saved, list[Candidate]]:
    """Return the model to keep, what makes a retriever of it, and the candidates that were judged."""
    encoder = RememberingEncoder(tuned, gate.old.batch_size)
    retriever = gate.candidate(encoder, words)
    results, learned = {0.0: gate.before, 1.0: gate.evaluate(retriever, "tuned")}, {1.0: retriever.learned}
    candidates = [gate.judge(encoder, results[1.0], path)]
    if candidates[0].passed or not may_merge or "dev" not in gate.before:
        return tuned, learned[1.0], candidates
    for alpha in ALPHAS[1:-1]:
        retriever = gate.candidate(_merged(tuned, gate, alpha), words)
        results[alpha], learned[alpha] = gate.evaluate(retriever, f"merged (alpha {alpha:g})"), retriever.learned
    alpha = smallest_within_one_error({alpha: found["dev"] for alpha, found in results.items()})
    if alpha in (0, 1):  # the old model, or the tuned one again
        return tuned, learned[1.0], candidates
    encoder = _merged(tuned, gate, alpha)
    candidates.append(gate.judge(encoder, results[alpha], path))
    return encoder.model, learned[alpha], candidates


def _merged(tuned: SentenceTransformer, gate: Gate, alpha: float) -> RememberingEncoder:
    return RememberingEncoder(merge_with_base(tuned, gate.old.model, alpha=alpha).model, gate.old.batch_size)


def _switch(rounds: Rounds, parent: Round, finished: Round) -> None:
    if rounds.current.number != parent.number:
        raise RuntimeError(
            f"Round {rounds.current.number} began to serve while round {finished.number} was trained and compared with round "
            f"{parent.number}. Round {finished.number} is kept; to let it serve, call Rounds.switch_to({finished.number})."
        )
    rounds.switch_to(finished.number)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
