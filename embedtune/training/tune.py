"""tune: from a dataset to the best retriever for it, and the evidence that it is better."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedtune.bounds import whole
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.forgetting import check_forgetting
from embedtune.evaluation.verdict import Verdict, compare
from embedtune.models.load import load_model
from embedtune.retrieval.fingerprint import model_fingerprint, reranker_fingerprint
from embedtune.storage import read_record, replace_file
from embedtune.training.arguments import TuningArguments
from embedtune.training.experiments.cross_validation import (
    NOT_IN_RESULT,
    check_numbers,
    cross_validate,
    retriever_before,
    with_all_in_train,
)
from embedtune.training.fit import evaluations, fit
from embedtune.training.reranker import load_reranker, with_trained_reranker

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.retrieval.retriever import Retriever

logger: logging.Logger = logging.getLogger(__name__)

PLAN, RETRIEVER, REPORT = "tune.json", "retriever", "report.html"
CHECKPOINTS, FOLDS = "checkpoints", "folds"

_REMEDY = "Choose another output_dir, or delete the folder to start again."


@dataclass(frozen=True)
class TuningRun:
    """The result of `tune`. Printing it shows what to do and why, on one screen; the statistics are in the report.

    Attributes:
        retriever: The tuned retriever.
        verdict: The tuned retriever compared with the base model, BM25, the tuned model alone and the tuned words alone.
        output_dir: Its folder: the retriever is in ``retriever``, the report is ``report.html``.
    """

    retriever: Retriever
    verdict: Verdict
    output_dir: Path

    def __repr__(self) -> str:
        return "\n".join([self.verdict.summary, *(f"{label:<10}{text}" for label, text in self._places())])

    def _repr_html_(self) -> str:
        places = "".join(f"<p><b>{label}</b> {escape(text)}</p>" for label, text in self._places())
        return f"{self.verdict._repr_html_()}{places}"

    def _places(self) -> list[tuple[str, str]]:
        weight = self.retriever.word_weight
        how = {"vectors": "vectors alone", "words": "words alone"}.get(
            self.retriever.fusion.kind, f"vectors + {weight:.2f} words"
        )
        return [("Retriever", f"{self.output_dir / RETRIEVER} ({how})"), ("Report", str(self.output_dir / REPORT))]


def tune(
    model: SentenceTransformer | str | Path,
    data: RetrievalDataset,
    *,
    output_dir: str | Path,
    args: TuningArguments | None = None,
    num_folds: int = 5,
    test_split: str | None = None,
    k: Sequence[int] = (1, 3, 5, 10),
    reranker: CrossEncoder | str | Path | None = None,
    num_processes: int = 1,
) -> TuningRun:
    """Train a model and word weights on a dataset, with evidence of how much better the retriever is that they make.

    The evidence comes from folds over documents (`cross_validate`): every question is judged once, by a retriever that never saw
    its document. The retriever that is returned is then trained on all questions. With ``test_split`` the questions of one split
    are the evidence instead; they are not trained on.

    The steps are public: `cross_validate`, `learn_words` with the base model, `EmbeddingTrainer`, `Retriever.from_dataset`,
    `TopKEvaluator.evaluate` and `compare`. No dev split is held out: it would cost more questions than choosing a checkpoint gains.
    After an interruption, the same call continues where it stopped.

    Args:
        model: The model to tune, or its name or folder, as `load_model` takes it. It is not changed.
        data: Chunks and questions.
        output_dir: Where checkpoints, the retriever and the report are written.
        args: Arguments of the training; its ``output_dir`` is not used.
        num_folds: How many folds; each costs about one training.
        test_split: A split whose questions judge, instead of folds. No split whose name begins with ``test`` is trained on then.
        k: The cut-offs of the evaluation.
        reranker: A ``CrossEncoder``, or its name or folder, to train as the second stage (`train_reranker`): in each fold on what
            the fold trains on, and at last on all questions. It is saved and published with the retriever.
        num_processes: How many folds are trained at once, see `cross_validate`.

    Raises:
        ValueError: If there is nothing to train on or to judge by, or ``output_dir`` holds another run.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> pairs = [("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"]), ("Call Ada.", ["Who helps?"])]
        >>> data = et.RetrievalDataset.from_pairs(pairs, test_size=0.4, dev_size=0)
        >>> args = et.TuningArguments("unused", max_steps=1, disable_tqdm=True)
        >>> run = tune("minilm", data, output_dir=tempfile.mkdtemp(), args=args, k=(1,))  # doctest: +SKIP
        >>> run.verdict.decision  # doctest: +SKIP
        'cannot tell'
    """
    folder = Path(output_dir)
    base = load_model(model) if isinstance(model, (str, Path)) else model
    locked = []
    check_numbers(num_folds, k)
    whole("num_processes", num_processes)
    if test_split is not None:
        locked = [test_split, *(name for name in data.splits if name.startswith("test"))]
    training = with_all_in_train(data, locked=locked)
    settings = replace(args) if args is not None else TuningArguments(str(folder / CHECKPOINTS))
    settings.output_dir = str(folder / CHECKPOINTS)
    second = None if reranker is None else load_reranker(reranker, seed=settings.seed)
    _check_plan(folder, _plan(base, training, settings, evidence=[num_folds, test_split], reranker=second))

    before = retriever_before(base, data, show_progress_bar=False if settings.disable_tqdm else None)
    found, seconds = None, 0.0
    if test_split is None:
        found = cross_validate(
            before,
            data,
            output_dir=folder / FOLDS,
            args=settings,
            num_folds=num_folds,
            k=k,
            reranker=second,
            seed=settings.seed,
            num_processes=num_processes,
        )
    start = time.perf_counter()
    retriever = fit(before, training, settings)
    if second is not None:
        retriever = with_trained_reranker(retriever, second, training, args=settings)
    retriever.save(folder / RETRIEVER)
    if found is None:
        evaluator = TopKEvaluator(data, str(test_split), k=[one for one in k if one <= len(data.corpus)] or [1])
        verdict, judged = compare(*evaluations(before, retriever, evaluator), training=training), data
    else:
        verdict, judged, seconds = found.verdict, found.data, found.seconds
    forgetting = check_forgetting(base, retriever.model)
    seconds += _remembered(folder, time.perf_counter() - start)
    verdict = replace(verdict, forgetting=forgetting, seconds=seconds, cost_usd=data.cost_usd)
    verdict.to_html(folder / REPORT, data=judged)
    return TuningRun(retriever, verdict, folder)


def _remembered(folder: Path, seconds: float) -> float:
    """Return how long the run took when it was new, and not what the same call takes when everything is there."""
    known = read_record(folder / PLAN, remedy=_REMEDY)
    if "seconds" not in known:
        replace_file(folder / PLAN, json.dumps(known | {"seconds": seconds}, indent=2) + "\n")
    return float(known.get("seconds", seconds))


def _plan(
    base: SentenceTransformer,
    data: RetrievalDataset,
    args: TuningArguments,
    *,
    evidence: list[Any],
    reranker: CrossEncoder | None,
) -> dict[str, Any]:
    """Return what a run depends on, to notice that a folder holds another one."""
    digest = hashlib.sha256()
    texts, relevant = data.query_texts, data.relevant("train")
    for row in [
        *((query, texts[query], relevant[query]) for query in sorted(relevant)),
        *sorted(data.corpus_texts.items()),
    ]:
        digest.update(json.dumps(row).encode() + b"\n")
    settings = {key: value for key, value in args.to_dict().items() if key not in NOT_IN_RESULT}
    return {
        "model": model_fingerprint(base),
        "training data": digest.hexdigest(),
        "evidence": evidence,
        **({} if reranker is None else {"reranker": reranker_fingerprint(reranker)}),
        "arguments": json.loads(json.dumps(settings, default=str)),
    }


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN
    if not path.exists():
        replace_file(path, json.dumps(plan, indent=2) + "\n")
        return
    known = read_record(path, remedy=_REMEDY)
    names = dict.fromkeys([*plan, *(known.keys() & {"reranker"})])
    if different := [name for name in names if known.get(name) != plan.get(name)]:
        raise ValueError(f"{folder} holds a run with other {', '.join(different)}. {_REMEDY}")
