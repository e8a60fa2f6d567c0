"""The gate: what a new model has to show before it may take the place of the old one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.evaluation.evaluator import Evaluation, TopKEvaluator
from embedtune.evaluation.forgetting import check_forgetting
from embedtune.evaluation.verdict import Verdict, compare
from embedtune.improvement.round_data import HELD_OUT, LOCKED
from embedtune.improvement.rounds import Candidate, Check

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset


@dataclass
class Gate:
    """Holds candidates against the old model, on the same questions.

    Attributes:
        old: The model that serves.
        data: The data of the round.
        k: Questions whose right chunk is not among the first ``k`` are misses.
        max_loss: How much nDCG the locked test may lose at worst: the lower bound of its interval is held against it.
    """

    old: SentenceTransformer
    data: RetrievalDataset
    k: int
    max_loss: float
    _before: dict[str, Evaluation] = field(default_factory=dict)

    def judge(self, model: SentenceTransformer, name: str, folder: Path) -> Candidate:
        """Check a candidate, and keep the evaluations in a folder."""
        return Candidate(name, tuple(self._checks(model, name, folder)))

    def _checks(self, model: SentenceTransformer, name: str, folder: Path) -> Iterator[Check]:
        yield self._misses(self._compare(HELD_OUT, model, name, folder))
        yield self._locked_test(self._compare(LOCKED, model, name, folder))
        yield forgetting_check(self.old, model)

    def _compare(self, split: str, model: SentenceTransformer, name: str, folder: Path) -> Verdict:
        evaluator = TopKEvaluator(self.data, split, k=(self.k,))
        if split not in self._before:
            self._before[split] = evaluator.evaluate(self.old, name="old")
            self._before[split].save(folder / f"{split}-old.json")
        after = evaluator.evaluate(model, name=name)
        after.save(folder / f"{split}-{name.partition(' ')[0]}.json")
        return compare(self._before[split], after)

    def _misses(self, verdict: Verdict) -> Check:
        """Fewer misses, and a difference of the nDCG that is no chance."""
        before, after = len(verdict.before.misses(self.k)), len(verdict.after.misses(self.k))
        return Check(
            "questions held out from the log",
            passed=verdict.decision == "better" and after <= before,
            detail=f"{before} -> {after} misses of {verdict.num_queries}. {verdict.sentence}",
        )

    def _locked_test(self, verdict: Verdict) -> Check:
        low = verdict.metrics[verdict.primary_metric].low
        return Check(
            "locked test",
            passed=low >= -self.max_loss,
            detail=f"at worst {low:+.3f}, and {-self.max_loss:+.3f} would do. {verdict.sentence}",
        )


def forgetting_check(old: SentenceTransformer, new: SentenceTransformer) -> Check:
    """Pass a model whose interval excludes that it lost general knowledge, see `check_forgetting`."""
    found = check_forgetting(old, new)
    return Check("general knowledge", passed=found.decision == "remembers", detail=found.sentence)
