"""The folder of ``embedtune tune``: what is where in it, and the evidence, which other commands read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import embedtune as et
from embedtune.dataset import RetrievalDataset
from embedtune.evaluation.leaks import known_questions, leak_warnings
from embedtune.evaluation.record import Forgetting
from embedtune.evaluation.result import Evaluation
from embedtune.evaluation.verdict import Verdict, compare
from embedtune.improvement.rounds import POINTER
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.retriever_files import SETTINGS
from embedtune.storage import read_record, replace_file
from embedtune.training.tune import RETRIEVER

if TYPE_CHECKING:
    from embedtune.improvement.rounds import Round

QUESTIONS, DATA, EVIDENCE, ROUNDS, COMMAND = "questions", "data", "evidence", "rounds", "command.json"
LOG, BASE = "feedback.sqlite", "base"

_VERDICT = "verdict.json"


def load_retriever(path: Path) -> Retriever:
    """Load a saved retriever, or the one in a folder of ``embedtune tune``."""
    return Retriever.load(path / RETRIEVER if (path / RETRIEVER).is_dir() else path)


def read_command(folder: Path) -> dict[str, Any]:
    """Return what ``embedtune tune`` was asked for when it made a folder."""
    return read_record(
        folder / COMMAND, "model", "test_split", remedy="Copy it from a backup, or choose another folder."
    )


def trained_on(path: Path) -> list[str]:
    """Return the questions that a retriever was trained on, if its folder says so."""
    for folder in (path, path.parent):
        if (folder / DATA).is_dir() and (folder / COMMAND).exists():
            data = RetrievalDataset.load_from_disk(folder / DATA)
            split = read_command(folder)["test_split"]
            tested = set(data.relevant(split)) if split else set()
            return [text for query, text in data.query_texts.items() if query not in tested]
    return []


def save_verdict(folder: Path, verdict: Verdict) -> None:
    """Write the results that a verdict compares, and what else it says."""
    evidence = folder / EVIDENCE
    evidence.mkdir(exist_ok=True)
    runs = [verdict.before, verdict.after, *verdict.baselines]
    for number, run in enumerate(runs):
        run.save(evidence / f"{number}.json")
    general = verdict.forgetting
    if general is not None:
        general.verdict.before.save(evidence / "general-before.json")
        general.verdict.after.save(evidence / "general-after.json")
    content = {
        "num_results": len(runs),
        "margin": None if general is None else general.margin,
        "warnings": verdict.warnings,
        "known": verdict.known,
        "seconds": verdict.seconds,
        "cost_usd": verdict.cost_usd,
    }
    replace_file(evidence / _VERDICT, json.dumps(content, indent=2) + "\n")


def has_verdict(folder: Path) -> bool:
    """Return whether a folder holds a finished run of ``embedtune tune``."""
    return (folder / EVIDENCE / _VERDICT).exists()


def load_verdict(folder: Path) -> Verdict:
    """Read what `save_verdict` wrote.

    Raises:
        FileNotFoundError: If the folder has no verdict.
    """
    evidence = folder / EVIDENCE
    if not has_verdict(folder):
        raise FileNotFoundError(
            f"{folder} has no finished run of `embedtune tune`. Run the same `embedtune tune` again to finish it, or pass the "
            "folder that it printed."
        )
    keys = ("num_results", "margin", "warnings", "known", "seconds", "cost_usd")
    content = read_record(evidence / _VERDICT, *keys, remedy="Run the same `embedtune tune` again: it is written anew.")
    runs = [Evaluation.load(evidence / f"{number}.json") for number in range(content["num_results"])]
    forgetting = None
    if content["margin"] is not None:
        general = (Evaluation.load(evidence / f"general-{which}.json") for which in ("before", "after"))
        forgetting = Forgetting(compare(*general), content["margin"])
    return replace(
        compare(*runs),
        forgetting=forgetting,
        warnings=tuple(content["warnings"]),
        known=tuple(content["known"]),
        seconds=content["seconds"],
        cost_usd=content["cost_usd"],
    )


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict for programs: the headline, the counts and every metric with its interval."""
    k, others = verdict.k, [verdict.before, *verdict.baselines]
    return {
        "headline": verdict.headline,
        "reason": verdict.reason,
        "next_step": verdict.next_step,
        "num_questions": verdict.num_queries,
        "k": k,
        "fixed": len(verdict.fixed[k]),
        "broken": len(verdict.broken[k]),
        "retriever": verdict.after.name,
        "metrics": verdict.after.metrics,
        "compared_with": [
            {
                "name": other.name,
                "decision": one.decision,
                "metrics": {
                    name: {
                        "value": change.before,
                        "difference": change.difference,
                        "low": change.low,
                        "high": change.high,
                    }
                    for name, change in one.metrics.items()
                },
            }
            for other, one in zip(others, verdict.comparisons, strict=True)
        ],
        "warnings": list(verdict.warnings),
        "seconds": verdict.seconds,
        "cost_usd": verdict.cost_usd,
    }


def judged(data: RetrievalDataset, names: Sequence[str], *, split: str) -> Verdict:
    """Compare retrievers by their names on the command line. What is known to have taught the first two counts as known."""
    k = [one for one in (1, 3, 5, 10) if one <= len(data.corpus)] or [1]
    verdict = et.evaluate_all(data, {name: _ranker(name) for name in names}, split=split, k=k)
    trained = [text for name in names[:2] for text in trained_on(Path(name))]
    known = tuple(dict.fromkeys([*verdict.known, *known_questions(verdict.after, trained)]))
    return replace(verdict, known=known, warnings=leak_warnings(verdict.before, verdict.after, known))


def _ranker(name: str) -> Any:
    """Return what a name on the command line means: ``bm25``, the folder of a retriever, or a model."""
    path = Path(name)
    if name.lower() == "bm25":
        return "bm25"
    if (path / RETRIEVER).is_dir() or (path / SETTINGS).exists():
        return load_retriever(path)
    return et.load_model(name)


def improved(path: Path, feedback: Path, data: Path, *, epochs: float | None, seed: int) -> Round:
    """Run a round of improvement, and let a better retriever serve in the folder."""
    for there, option, what in ((feedback, "--feedback", "feedback log"), (data, "--data", "dataset to improve with")):
        if not there.exists():
            raise FileNotFoundError(f"There is no {what} in {there}. Name it with {option}.")
    place = path / RETRIEVER if (path / RETRIEVER).is_dir() else path
    retriever, rounds = load_retriever(path), et.Rounds(path / ROUNDS)
    has_rounds = (rounds.output_dir / POINTER).exists()  # else an earlier call stopped before its first model served
    if has_rounds and retriever.learned.model_fingerprint != rounds.current.model_fingerprint:
        retriever = et.reindex(retriever, rounds.current.model_path, path=place)  # an earlier call stopped before this
    args = None
    if epochs is not None:
        args = et.TuningArguments(str(path), num_train_epochs=epochs, learning_rate=2e-5, seed=seed)
    log = et.FeedbackLog(feedback)
    round_ = et.improve(
        retriever,
        RetrievalDataset.load_from_disk(data),
        feedback=log,
        output_dir=rounds.output_dir,
        args=args,
        seed=seed,
    )
    if round_.accepted:
        et.reindex(retriever, round_.model_path, path=place)
    return round_


def round_headline(round_: Round) -> str:
    """Return what to do after a round of improvement, in the words of the headline of a verdict, and why."""
    if round_.accepted:
        return "Ship it: the new retriever passed every check, and serves now."
    failed = [check.name for check in round_.candidates[-1].checks if not check.passed] if round_.candidates else []
    reason = f"the new retriever did not pass: {', '.join(failed)}" if failed else "there is no new retriever"
    return f"Keep what you have: {reason}."
