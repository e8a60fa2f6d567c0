"""cross_validate: every question judged by a retriever that never saw its document."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Dataset, concatenate_datasets
from joblib import Parallel, cpu_count, delayed, parallel_config
from tqdm.auto import tqdm

from embedtune.bounds import whole
from embedtune.dataset.folds import assign_folds, document_of_questions
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.result import Evaluation
from embedtune.evaluation.verdict import Verdict, compare
from embedtune.models.load import load_model
from embedtune.retrieval.encoders import RememberingEncoder
from embedtune.retrieval.fingerprint import reranker_fingerprint
from embedtune.retrieval.retriever import Retriever
from embedtune.storage import read_record, replace_file
from embedtune.training.arguments import TuningArguments
from embedtune.training.fit import evaluations, fit
from embedtune.training.reranker import load_reranker, with_trained_reranker

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from embedtune.dataset import RetrievalDataset

logger: logging.Logger = logging.getLogger(__name__)

FoldsBy = Literal["document", "question"]

_PLAN, _RESULTS = "plan.json", "results.json"
_FOLD = "fold"
_MAX_SEEDS, _MAX_PROCESSES = 100, 1000


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The result of `cross_validate`. Printing it shows the verdict.

    Attributes:
        verdict: The tuned retriever compared with the base model, BM25 and its own halves, on the questions of all folds.
        folds: The results of each fold, in the order of the verdict's rows, with the first seed.
        fold_of: The fold of each question.
        data: The dataset with the judged questions as its split ``folds``, as the report takes it.
        seconds: How long the folds took, each when it was new.
    """

    verdict: Verdict
    folds: tuple[tuple[Evaluation, ...], ...]
    fold_of: dict[str, int]
    data: RetrievalDataset
    seconds: float

    def __repr__(self) -> str:
        return f"{self.verdict}\n\n{self._each}"

    def _repr_html_(self) -> str:
        return f"{self.verdict._repr_html_()}<p>{self._each}</p>"

    @property
    def _each(self) -> str:
        shown = [f"{fold[1].metrics[fold[1].primary_metric]:.3f}" for fold in self.folds]
        return f"{len(self.folds)} folds, {self.verdict.primary_metric} of each: {', '.join(shown)}"


def cross_validate(
    model: SentenceTransformer | str | Path | Retriever,
    data: RetrievalDataset,
    *,
    output_dir: str | Path,
    args: TuningArguments | None = None,
    num_folds: int = 5,
    num_seeds: int = 1,
    folds_by: FoldsBy = "document",
    k: Sequence[int] = (1, 3, 5, 10),
    locked: Sequence[str] = (),
    reranker: CrossEncoder | str | Path | None = None,
    seed: int = 0,
    num_processes: int = 1,
) -> CrossValidation:
    """Judge every question by a retriever that was trained on the other folds.

    Everything that is chosen or learned, the model, the word weights and how much words count, comes from the training part of
    a fold. The whole corpus is searched. The results of all folds together are compared as those of one test split with all
    questions, so that few questions give as much evidence as they can.

    A finished fold is kept in ``output_dir``: the same call after an interruption continues with the next.

    Args:
        model: The model to tune, or its name or folder, or a retriever that has encoded the dataset with it. It is not changed.
        data: Chunks and questions; the questions of all its splits are used.
        output_dir: Where checkpoints and results are written.
        args: Arguments of each training; their ``output_dir`` is not used.
        num_folds: How many folds; with fewer document groups, each is a fold.
        num_seeds: How many trainings in each fold, with the seeds ``args.seed``, ``args.seed + 1`` and so on. Metrics are their
            means, and intervals then also cover how much a training depends on its seed. Each costs as much as all folds.
        folds_by: ``"document"`` for questions about documents that are not trained on; ``"question"`` for new questions
            about known chunks.
        k: The cut-offs of the evaluation.
        locked: Splits whose questions are neither trained on nor judged by.
        reranker: A ``CrossEncoder``, or its name or folder, that is trained in each fold, on the questions that the fold trains
            on (`train_reranker`), and becomes the second stage of the tuned retriever. It is not changed.
        seed: Draws the folds.
        num_processes: How many folds are trained at once, each in a process with its share of the cores and a copy of model
            and data. One uses all cores as well, by threads; several may use many cores better. Another number of threads
            changes the last bits of a result.

    Raises:
        ValueError: If there are fewer than two folds, ``num_seeds`` is not from 1 to 100, or ``output_dir`` holds another run.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> pairs = [("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"]), ("Call Ada.", ["Who helps?"])]
        >>> data = et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
        >>> args = et.TuningArguments("unused", max_steps=1, disable_tqdm=True)
        >>> found = cross_validate("minilm", data, output_dir=tempfile.mkdtemp(), args=args, k=(1,))  # doctest: +SKIP
        >>> found.verdict.num_queries  # doctest: +SKIP
        3
    """
    check_numbers(num_folds, k)
    whole("num_seeds", num_seeds, at_most=_MAX_SEEDS)
    whole("num_processes", num_processes, at_most=_MAX_PROCESSES)
    whole("seed", seed, at_least=0)
    unlocked = with_all_in_train(data, locked=locked)
    relevant = unlocked.relevant("train")
    documents = document_of_questions(data, relevant)
    fold_of = assign_folds(_units(documents, folds_by), num_folds, seed=seed)
    if len(set(fold_of.values())) < 2:
        raise ValueError(
            "All questions are about one document group, so no fold is left to train on. Add documents, or measure new "
            "questions about known chunks with folds_by='question'."
        )
    settings = args if args is not None else TuningArguments("unused")
    before = retriever_before(model, data, show_progress_bar=False if settings.disable_tqdm else None)
    second = None if reranker is None else load_reranker(reranker, seed=settings.seed)
    cutoffs = [one for one in k if one <= len(data.corpus)] or [1]
    places = [
        (offset, folder, fold)
        for offset, folder in enumerate(_folders(Path(output_dir), num_seeds))
        for fold in sorted(set(fold_of.values()))
    ]
    found = _run(
        partial(_fold, before, unlocked, fold_of, k=cutoffs, reranker=second),
        [(fold, _with_seed(settings, offset), folder) for offset, folder, fold in places],
        num_processes,
        disable_tqdm=settings.disable_tqdm,
    )
    judged = as_judged_by_folds(data, locked=locked)
    together = TopKEvaluator(judged, "folds", k=cutoffs)
    clusters = documents if folds_by == "document" else None
    num_places = len(places) // num_seeds
    by_seed = [found[start : start + num_places] for start in range(0, len(places), num_places)]
    pooled = [[_pooled(parts, together, clusters) for parts in zip(*folds, strict=True)] for folds in by_seed]
    results = [_over_seeds(seeds) for seeds in zip(*pooled, strict=True)]
    seconds = sum(_record(folder / f"fold-{fold}")["seconds"] for _, folder, fold in places)
    return CrossValidation(compare(*results), tuple(by_seed[0]), fold_of, judged, seconds)


def retriever_before(
    model: SentenceTransformer | str | Path | Retriever, data: RetrievalDataset, *, show_progress_bar: bool | None
) -> Retriever:
    """Return a retriever by the vectors of a model that is not trained yet; each chunk and question is encoded once."""
    if isinstance(model, Retriever):
        return model
    base = load_model(model) if isinstance(model, (str, Path)) else model
    before = Retriever.from_dataset(base, data, word_weight=0, show_progress_bar=show_progress_bar)
    before.encoder = RememberingEncoder(base, before.batch_size, show_progress_bar)
    before.encoder.encode_queries(
        list(data.query_texts.values())
    )  # all at once: the same bits whichever folds are finished
    return before


def as_judged_by_folds(data: RetrievalDataset, *, locked: Sequence[str] = ()) -> RetrievalDataset:
    """Return the dataset with the questions of all splits in the split ``folds``, except those of locked splits."""
    unlocked = with_all_in_train(data, locked=locked)
    return replace(unlocked, qrels={"folds": unlocked.qrels["train"]})


def with_all_in_train(data: RetrievalDataset, *, locked: Sequence[str] = ()) -> RetrievalDataset:
    """Return the dataset with the questions of all splits in ``train``, except those of locked splits, which stay.

    Training has to know them: it takes no negatives from documents that only they ask about.
    """
    if unknown := [name for name in locked if name not in data.qrels]:
        raise ValueError(f"There is no split {unknown[0]!r} to lock; the dataset has {data.splits}.")
    asked = {query for name in locked for query in data.relevant(name)}
    tables = [data.qrels[name] for name in data.splits if name not in locked]
    if not tables:
        raise ValueError(f"The dataset has the splits {data.splits}, so there are no questions to train on.")
    rows = concatenate_datasets(tables)
    kept = [row for row, query in enumerate(rows["query-id"][:]) if query not in asked]
    return replace(data, qrels={**{name: data.qrels[name] for name in locked}, "train": rows.select(kept)})


def check_numbers(num_folds: int, k: Sequence[int]) -> None:
    """Raise an error unless one part can be trained on and another judged, and each cut-off is a number of chunks."""
    for one in k:
        whole("k", one)
    whole("num_folds", num_folds, at_least=2)  # one to judge by, the others to train on


def _units(documents: dict[str, str], folds_by: FoldsBy) -> dict[str, str]:
    if folds_by not in ("document", "question"):
        raise ValueError(f"folds_by={folds_by!r} must be 'document' or 'question'.")
    return documents if folds_by == "document" else {query: query for query in documents}


def _folders(output_dir: Path, num_seeds: int) -> list[Path]:
    return [output_dir, *(output_dir / f"seed-{offset}" for offset in range(1, num_seeds))]


def _with_seed(args: TuningArguments, offset: int) -> TuningArguments:
    args = copy.copy(args)
    args.seed += offset
    if args.data_seed is not None:
        args.data_seed += offset
    return args


def _run(
    fold: Callable[..., tuple[Evaluation, ...]],
    jobs: Sequence[tuple[int, TuningArguments, Path]],
    num_processes: int,
    *,
    disable_tqdm: bool,
) -> list[tuple[Evaluation, ...]]:
    """Return the results of each fold, in order, several of them made at once."""
    bar = partial(tqdm, total=len(jobs), desc="Folds", leave=False, disable=disable_tqdm)
    if num_processes == 1:
        return [fold(*job) for job in bar(jobs)]
    with parallel_config("loky", inner_max_num_threads=max(1, cpu_count() // num_processes)):
        return list(bar(Parallel(num_processes, return_as="generator")(delayed(fold)(*job) for job in jobs)))


def _fold(
    before: Retriever,
    data: RetrievalDataset,
    fold_of: dict[str, int],
    fold: int,
    args: TuningArguments,
    folder: Path,
    *,
    k: Sequence[int],
    reranker: CrossEncoder | None,
) -> tuple[Evaluation, ...]:
    """Return the results of one fold, from disk where it is finished."""
    rows = data.qrels["train"]
    held_out = np.array(
        [fold_of.get(query) == fold for query in rows["query-id"][:]]
    )  # None: judged, but without a relevant chunk
    split = {"train": rows.select(np.flatnonzero(~held_out)), _FOLD: rows.select(np.flatnonzero(held_out))}
    part = replace(data, qrels={**data.qrels, **split})
    evaluator = TopKEvaluator(part, _FOLD, k=k)
    place = folder / f"fold-{fold}"
    plan = _plan(before, part, evaluator, args, reranker)
    _check_plan(place, plan)  # before training: it continues at a checkpoint that it finds
    if (place / _RESULTS).exists():
        return _finished(place)
    settings = replace(args)  # made anew: it sets up the devices of its process
    settings.output_dir = str(place / "checkpoints")
    logger.info("Fold %d of %d: %d questions to train on.", fold + 1, len(set(fold_of.values())), (~held_out).sum())
    start = time.perf_counter()
    after = fit(before, part, settings)
    if reranker is not None:
        after = with_trained_reranker(after, reranker, part, args=settings)
    found = evaluations(before, after, evaluator)
    for position, evaluation in enumerate(found):
        evaluation.save(place / f"{position}.json")
    replace_file(
        place / _RESULTS, json.dumps({"num_results": len(found), "seconds": time.perf_counter() - start}) + "\n"
    )
    shutil.rmtree(settings.output_dir, ignore_errors=True)
    return tuple(found)


def _check_plan(place: Path, plan: str) -> None:
    path = place / _PLAN
    if not path.exists():
        replace_file(path, json.dumps(plan) + "\n")
    elif path.read_text(encoding="utf-8", errors="replace").strip() != json.dumps(plan):
        raise ValueError(
            f"{place} holds a fold of another run (other data, model or arguments). Choose another output_dir, or delete the folder."
        )


def _finished(place: Path) -> tuple[Evaluation, ...]:
    return tuple(Evaluation.load(place / f"{position}.json") for position in range(_record(place)["num_results"]))


def _record(place: Path) -> dict[str, Any]:
    return read_record(
        place / _RESULTS, "num_results", "seconds", remedy="Delete this fold's folder: it is made again."
    )


def _plan(
    before: Retriever,
    part: RetrievalDataset,
    evaluator: TopKEvaluator,
    args: TuningArguments,
    reranker: CrossEncoder | None,
) -> str:
    """Return a hash of everything that the results of a fold depend on."""
    texts, relevant = part.query_texts, part.relevant("train")
    settings = {name: value for name, value in args.to_dict().items() if name not in NOT_IN_RESULT}
    rows = [[query, texts[query], relevant[query]] for query in sorted(relevant)]
    second = [] if reranker is None else [reranker_fingerprint(reranker)]
    content = [before.fingerprint, evaluator.fingerprint, list(evaluator.k), settings, rows, *second]
    return hashlib.sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


# What the arguments say about logging and places, and not about the model that comes out.
NOT_IN_RESULT = (
    *("output_dir", "logging_dir", "logging_strategy", "logging_steps", "logging_first_step", "run_name", "report_to"),
    *("disable_tqdm", "log_level", "save_strategy", "save_steps", "save_total_limit", "check_saved"),
)


def _pooled(parts: Sequence[Evaluation], whole: TopKEvaluator, clusters: dict[str, str] | None) -> Evaluation:
    """Join the results of one retriever in all folds into one result with all questions."""
    rows = concatenate_datasets([part.per_query for part in parts])
    names = rows["query-id"][:]
    rows = rows.select(np.argsort(names))
    models = {part.model for part in parts}
    together = hashlib.sha256("".join(part.model for part in parts).encode()).hexdigest()
    return Evaluation(
        name=parts[0].name,
        split="folds",
        k=parts[0].k,
        per_query=Dataset.from_dict(rows.to_dict(), features=rows.features),
        num_chunks=parts[0].num_chunks,
        fingerprint=whole.fingerprint,
        model=f"sha256:{together}" if len(models) > 1 else parts[0].model,
        documents=tuple(clusters[query] for query in sorted(names)) if clusters is not None else None,
    )


def _over_seeds(seeds: Sequence[Evaluation]) -> Evaluation:
    """Return the results of one retriever with all seeds as one; BM25 and the base model have no seed."""
    first, *others = seeds
    if all(other.model == first.model for other in others):
        return first
    return replace(first, repeats=tuple(other.per_query for other in others))
