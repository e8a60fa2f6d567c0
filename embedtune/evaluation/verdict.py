"""A verdict on results for the same questions: better, worse, or cannot tell, with the evidence."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedtune.bounds import whole
from embedtune.evaluation.comparison import compare_with_each
from embedtune.evaluation.leaks import leak_warnings
from embedtune.evaluation.record import VerdictRecord
from embedtune.evaluation.result import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from sentence_transformers import SentenceTransformerTrainer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.report.curve import Log

logger = logging.getLogger(__name__)


class Verdict(VerdictRecord):
    """What `compare` returns: the evidence (see `VerdictRecord`), as text, as a report and as a figure."""

    def to_html(
        self,
        path: str | Path,
        *,
        data: RetrievalDataset | None = None,
        trainer: SentenceTransformerTrainer | None = None,
        log_history: Log | None = None,
    ) -> Path:
        """Write a report: one self-contained HTML file to send, print or read on a phone.

        It shows this verdict, the accuracy of each retriever with intervals, the ranks of the relevant chunks, every question
        with what ranked above its relevant chunk, and what is needed to reproduce it. The file contains the texts of
        questions and chunks: keep it as confidential as the documents.

        Args:
            path: Where to write it. An existing file is replaced once the new one is complete.
            data: The dataset that was evaluated, to show the texts of the chunks instead of their ids.
            trainer: The trainer of the model, to show the training curve, the settings, and how many tokens of the chunks
                the model truncates.
            log_history: The training curve alone: ``trainer.state.log_history``, also in a checkpoint's
                ``trainer_state.json``.

        Returns:
            The path.

        Raises:
            ValueError: If ``data`` is not what was evaluated.
        """
        from embedtune.evaluation.report.page import write_report

        return write_report(self, path, data=data, trainer=trainer, log_history=log_history)

    def plot(self) -> Figure:
        """Draw the accuracy@k of each retriever with its interval.

        ``verdict.plot().savefig("accuracy.pdf")`` writes it to a file. Needs matplotlib (``pip install 'embedtune[plot]'``).

        Raises:
            OptionalDependencyError: If matplotlib is not installed.
        """
        from embedtune.evaluation.report.figure import accuracy_figure

        return accuracy_figure(self)


def compare(
    before: Evaluation,
    after: Evaluation,
    *others: Evaluation,
    training: RetrievalDataset | Iterable[str] | None = None,
    confidence_level: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Verdict:
    """Decide whether a retriever got better, and how certain that is.

    The nDCG at the largest k decides: better or worse if the paired bootstrap interval of its difference (see
    `paired_interval`; questions about one chunk are drawn together) excludes zero and a paired permutation test agrees,
    otherwise "cannot tell". ``after`` is also compared with each of the other results. These intervals (Bonferroni) and
    p-values (Holm) are adjusted for the number of others; the decision about ``before`` does not depend on them. The
    intervals of the other metrics are not adjusted: one in twenty excludes zero by chance.

    Args:
        before: The result to compare with.
        after: The result to judge.
        *others: Results of other retrievers that ``after`` should beat, BM25 for instance.
        training: The dataset or the questions that were trained on, to warn about questions that are also asked here.
        confidence_level: The level of the decision; the decisions about the others hold together at this level.
        num_resamples: The number of bootstrap resamples, and of permutations.
        seed: Seed of both.

    Raises:
        ValueError: If the results differ in questions, judgements, corpus or k, or an argument is out of range.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs(
        ...     [("Press both buttons.", ["How do I restart?"]), ("Turn the key left.", ["Which way does the key turn?"])],
        ...     test_size=0.5,
        ...     dev_size=0,
        ... )
        >>> bm25 = et.TopKEvaluator(data, k=(1, 2)).evaluate(et.BM25())
        >>> et.compare(bm25, bm25).decision
        'cannot tell'
    """
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level={confidence_level} must be between 0 and 1, for instance 0.95.")
    whole("num_resamples", num_resamples)
    whole("seed", seed, at_least=0)
    _check_comparable([before, after, *others])
    warnings = leak_warnings(before, after, training)
    for warning in warnings:
        logger.warning(warning)
    return Verdict(
        before=before,
        after=after,
        comparisons=compare_with_each(
            after, [before, *others], confidence_level=confidence_level, num_resamples=num_resamples, seed=seed
        ),
        fixed={k: _newly_hit(before, after, k) for k in before.k},
        broken={k: _newly_hit(after, before, k) for k in before.k},
        confidence_level=confidence_level,
        warnings=warnings,
    )


def _check_comparable(results: Sequence[Evaluation]) -> None:
    for result in results:
        if not isinstance(result, Evaluation):
            raise TypeError(
                f"compare() takes results of TopKEvaluator.evaluate, got a {type(result).__name__}. Load a saved result with "
                "Evaluation.load(path)."
            )
    first = results[0]
    for other in results[1:]:
        if other.fingerprint != first.fingerprint:
            raise ValueError(
                f"{other.name!r} and {first.name!r} cannot be compared: their questions, judgements or corpora differ "
                f"(fingerprints {other.fingerprint[:8]} and {first.fingerprint[:8]}). Evaluate both with the same evaluator."
            )
        if other.k != first.k:
            raise ValueError(
                f"{other.name!r} was evaluated at k={other.k} and {first.name!r} at k={first.k}. Evaluate both with the "
                "same evaluator."
            )


def _newly_hit(before: Evaluation, after: Evaluation, k: int) -> tuple[str, ...]:
    metric = f"accuracy@{k}"
    flipped = after.per_query_metrics[metric] > before.per_query_metrics[metric]
    return tuple(before.per_query.select(np.flatnonzero(flipped))["query-id"][:])
