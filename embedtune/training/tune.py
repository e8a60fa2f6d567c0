"""tune: from a dataset to the best retriever for it, and the evidence that it is better."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import concatenate_datasets

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.verdict import Verdict, compare
from embedtune.models.load import load_model
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.encoders import ModelEncoder, model_name
from embedtune.retrieval.fingerprint import model_fingerprint
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.word_weight import learn_from_index
from embedtune.storage import replace_file
from embedtune.training.arguments import TuningArguments
from embedtune.training.resilience.checkpoints import complete_checkpoints
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation

logger = logging.getLogger(__name__)

PLAN, RETRIEVER, REPORT, CHECKPOINTS = "tune.json", "retriever", "report.html", "checkpoints"

# What the arguments say about logging and places, and not about the model that comes out.
_NOT_IN_PLAN = ("output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "log_level")


@dataclass(frozen=True)
class TuningRun:
    """The result of `tune`. Printing it shows the verdict.

    Attributes:
        retriever: The tuned retriever.
        verdict: The tuned retriever compared with the base model, BM25, the tuned model alone and the tuned words alone.
        output_dir: Its folder: the retriever is in ``retriever``, the report is ``report.html``.
    """

    retriever: Retriever
    verdict: Verdict
    output_dir: Path

    def __repr__(self) -> str:
        return f"{self.verdict}\n\n{self._served}"

    def _repr_html_(self) -> str:
        return f"{self.verdict._repr_html_()}<p>{self._served}</p>"

    @property
    def _served(self) -> str:
        weight = self.retriever.word_weight
        how = {"vectors": "vectors alone", "words": "words alone"}.get(
            self.retriever.fusion.kind, f"vectors + {weight:.2f} words"
        )
        return f"It searches by {how}. Retriever: {self.output_dir / RETRIEVER}  Report: {self.output_dir / REPORT}"


def tune(
    model: SentenceTransformer | str | Path,
    data: RetrievalDataset,
    *,
    output_dir: str | Path,
    args: TuningArguments | None = None,
    split: str = "test",
    k: Sequence[int] = (1, 3, 5, 10),
) -> TuningRun:
    """Train a model and word weights on a dataset, and compare the retriever that they make with what there was.

    The steps, each of which is public: `learn_words` with the base model, `EmbeddingTrainer`, `Retriever.from_dataset`,
    `TopKEvaluator.evaluate` for every row of the table, and `compare`. All questions but those of splits whose names begin with
    ``test`` are trained on; those of ``split`` judge, and are not read before that. The last checkpoint is kept: a dev split to
    choose another would cost more questions than it gains.

    Call it again after an interruption, with the same arguments, and it continues where it stopped.

    Args:
        model: The model to tune, or its name or folder, as `load_model` takes it. It is not changed.
        data: Chunks and questions.
        output_dir: Where checkpoints, the retriever and the report are written.
        args: Arguments of the training; its ``output_dir`` is not used.
        split: The split whose questions judge.
        k: The cut-offs of the evaluation.

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
    training = _without_test(data)
    evaluator = TopKEvaluator(data, split, k=[one for one in k if one <= len(data.corpus)] or [1])
    settings = replace(args) if args is not None else TuningArguments(str(folder / CHECKPOINTS))
    settings.output_dir = str(folder / CHECKPOINTS)
    _check_plan(folder, _plan(base, training, evaluator, settings))

    before = Retriever.from_dataset(base, data, word_weight=0, show_progress_bar=not settings.disable_tqdm)
    words = learn_from_index(training, before.index, ModelEncoder(base), seed=settings.seed)
    tuned = _trained(base, training, settings)
    retriever = Retriever.from_dataset(tuned, data, words=words, show_progress_bar=not settings.disable_tqdm)
    retriever.save(folder / RETRIEVER)

    verdict = _verdict(before, retriever, evaluator, data, name=model_name(base))
    verdict.to_html(folder / REPORT, data=data)
    return TuningRun(retriever, verdict, folder)


def _without_test(data: RetrievalDataset) -> RetrievalDataset:
    """Return the dataset with all questions in ``train`` except those of test splits, which are left out."""
    splits = [name for name in data.splits if not name.startswith("test")]
    if not splits:
        raise ValueError(f"The dataset has the splits {data.splits}, so there are no questions to train on.")
    rows = concatenate_datasets([data.qrels[name] for name in splits])
    return replace(data, qrels={"train": rows})


def _trained(base: SentenceTransformer, data: RetrievalDataset, args: TuningArguments) -> SentenceTransformer:
    """Train a copy of the model, from the last checkpoint if there is one."""
    args.load_best_model_at_end = False  # without a dev split there is nothing to choose by
    trainer = EmbeddingTrainer(copy.deepcopy(base), args, data=data)
    resume = bool(complete_checkpoints(args.output_dir)) if Path(args.output_dir).exists() else False
    trainer.train(resume_from_checkpoint=resume)
    tuned: SentenceTransformer = trainer.model
    tuned.eval()
    return tuned


def _verdict(
    before: Retriever, retriever: Retriever, evaluator: TopKEvaluator, data: RetrievalDataset, *, name: str
) -> Verdict:
    rows: dict[str, Any] = {
        f"{name} (base)": before,
        "tuned retriever": retriever,
        "BM25": BM25(),
        "tuned model alone": retriever.with_word_weight(0),
        "tuned words alone": BM25(weights=retriever.fusion.weights),
    }
    results: list[Evaluation] = [evaluator.evaluate(one, name=label) for label, one in rows.items()]
    return compare(*results, training=data)


def _plan(
    base: SentenceTransformer, data: RetrievalDataset, evaluator: TopKEvaluator, args: TuningArguments
) -> dict[str, Any]:
    """Return what a run depends on, to notice that a folder holds another one."""
    digest = hashlib.sha256()
    texts, relevant = data.query_texts, data.relevant("train")
    for row in [
        *((query, texts[query], relevant[query]) for query in sorted(relevant)),
        *sorted(data.corpus_texts.items()),
    ]:
        digest.update(json.dumps(row).encode() + b"\n")
    settings = {key: value for key, value in args.to_dict().items() if key not in _NOT_IN_PLAN}
    return {
        "model": model_fingerprint(base),
        "training data": digest.hexdigest(),
        "judged by": evaluator.fingerprint,
        "arguments": json.loads(json.dumps(settings, default=str)),
    }


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / PLAN
    if not path.exists():
        replace_file(path, json.dumps(plan, indent=2) + "\n")
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    if different := [name for name in plan if known.get(name) != plan[name]]:
        raise ValueError(
            f"{folder} holds a run with other {', '.join(different)}. Choose another output_dir, or delete the folder to start "
            "again."
        )
