"""A verdict on results for the same questions: better, worse, or cannot tell, with the evidence."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedtune.bounds import finite, whole
from embedtune.evaluation.comparison import compare_with_each
from embedtune.evaluation.leaks import known_questions, leak_warnings
from embedtune.evaluation.record import Forgetting, VerdictRecord
from embedtune.evaluation.report.picture import accuracy_svg
from embedtune.evaluation.result import Evaluation
from embedtune.evaluation.summary import html_summary, text_statistics, text_summary
from embedtune.storage import replace_file

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.report.curve import Log

logger: logging.Logger = logging.getLogger(__name__)

_MAX_RESAMPLES = 1_000_000


class Verdict(VerdictRecord):
    """What `compare` returns: the evidence (see `VerdictRecord`), as text, as a report and as a picture.

    Printing it shows what to do, why and how sure that is, and then the statistics.
    """

    def __repr__(self) -> str:
        return f"{self.summary}\n\n{text_statistics(self)}"

    def _repr_html_(self) -> str:
        return html_summary(self, accuracy_svg(self))

    @property
    def summary(self) -> str:
        """What a person needs to decide, on one screen of 80 columns."""
        return text_summary(self)

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

    def plot(self, path: str | Path) -> Path:
        """Draw accuracy@k of each retriever with its interval, as an SVG for a page, a mail or a slide.

        Args:
            path: Where to write it: ``"accuracy.svg"``.

        Returns:
            The path.

        Raises:
            ValueError: If the name does not end in ``.svg``.
        """
        if Path(path).suffix.lower() != ".svg":
            raise ValueError(
                f"{str(path)!r} does not end in .svg, the one format that is written. Call it 'accuracy.svg'."
            )
        replace_file(path, accuracy_svg(self))
        return Path(path)


def compare(
    before: Evaluation,
    after: Evaluation,
    *others: Evaluation,
    training: RetrievalDataset | Iterable[str] | None = None,
    forgetting: Forgetting | None = None,
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

    The headline of the verdict weighs all of this together: *ship it* if ``after`` is better than ``before`` and than BM25 and
    nothing speaks against it, *keep what you have* if something is known to be worse, otherwise *cannot tell yet*.

    Args:
        before: The result to compare with.
        after: The result to judge.
        *others: Results of other retrievers that ``after`` should beat, BM25 for instance.
        training: The dataset or the questions that were trained on, to warn about questions that are also asked here.
        forgetting: What `check_forgetting` found; a model that forgets is not to be shipped.
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
        >>> et.compare(bm25, bm25).headline
        'cannot tell yet'
    """
    if not 0 < finite("confidence_level", confidence_level) < 1:
        raise ValueError(f"confidence_level={confidence_level} must be between 0 and 1, for instance 0.95.")
    whole("num_resamples", num_resamples, at_most=_MAX_RESAMPLES)
    whole("seed", seed, at_least=0)
    _check_comparable([before, after, *others])
    known = tuple(known_questions(after, training)) if training is not None else ()
    warnings = leak_warnings(before, after, known)
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
        known=known,
        forgetting=forgetting,
    )


def _check_comparable(results: Sequence[Evaluation]) -> None:
    for result in results:
        if not isinstance(result, Evaluation):
            raise TypeError(
                f"compare() takes results of TopKEvaluator.evaluate, got a {type(result).__name__}. Load a saved result with "
                "Evaluation.load(path)."
            )
    num_seeds = {1 + len(result.repeats) for result in results if result.repeats}
    if len(num_seeds) > 1:
        raise ValueError(
            f"Results of {' and '.join(map(str, sorted(num_seeds)))} trainings cannot be compared. Use the same num_seeds."
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
    # Of means over several trainings: flipped by most of them.
    flipped = after.per_query_metrics[metric] - before.per_query_metrics[metric] > 0.5
    return tuple(before.per_query.select(np.flatnonzero(flipped))["query-id"][:])
