"""The gate: what a new retriever has to show before it may replace the old one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.evaluation.forgetting import check_forgetting, general_data
from embedtune.evaluation.verdict import Verdict, compare
from embedtune.improvement.round_data import HELD_OUT, LOCKED
from embedtune.improvement.rounds import Candidate, Check
from embedtune.retrieval.index import build_index, table_of_corpus
from embedtune.retrieval.reindex import scaled_word_weight
from embedtune.retrieval.retriever import Retriever
from embedtune.text import words as words_of

if TYPE_CHECKING:
    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation
    from embedtune.retrieval.encoders import RememberingEncoder
    from embedtune.retrieval.word_weight import LearnedWords
    from embedtune.types import Encoder

_ENGLISH = {"the", "and", "with", "that", "this", "from", "which", "are", "to", "you"}

Results = dict[str, "Evaluation"]


class Gate:
    """Compares candidates with the old retriever on the same questions. Each model encodes the corpus only once.

    Args:
        old: The encoder of the model that serves.
        retriever: The retriever that serves; its words and settings are used, its chunks are not.
        data: The data of the round.
        k: A question is a miss if it has no relevant chunk among the first ``k``.
        max_loss: How much nDCG the locked test may lose, at the lower bound of the interval of the difference.
        general: Questions of general knowledge in its split ``test``. By default those of the package, which are English, if
            the corpus is.

    Attributes:
        retriever: The retriever that serves, over the corpus of the round.
        before: Its results.
    """

    def __init__(
        self,
        old: RememberingEncoder,
        retriever: Retriever,
        data: RetrievalDataset,
        *,
        k: int,
        max_loss: float,
        general: RetrievalDataset | None = None,
    ) -> None:
        self.old = old
        self.max_loss = max_loss
        self.k = k
        self._data = data
        self._general = general_data() if general is None and is_english(data) else general
        self._evaluators = {
            split: TopKEvaluator(data, split, k=(k,)) for split in ("dev", HELD_OUT, LOCKED) if split in data.qrels
        }
        self.retriever: Retriever = self._over_the_corpus(old, retriever, retriever.words, retriever.word_weight)
        self.before: Results = self.evaluate(self.retriever, "old")

    def candidate(self, encoder: RememberingEncoder, words: LearnedWords) -> Retriever:
        """Return a retriever with another model and other words; how much they count is scaled to its similarities."""
        return self._over_the_corpus(encoder, self.retriever, words, None)

    def _over_the_corpus(
        self, encoder: RememberingEncoder, like: Retriever, words: LearnedWords, word_weight: float | None
    ) -> Retriever:
        index = build_index(encoder, table_of_corpus(self._data.corpus))
        return Retriever(
            encoder.model,
            index,
            words=words,
            word_weight=scaled_word_weight(like, index) if word_weight is None else word_weight,
            context=self._data.context,
            approximate=like.approximate,
            batch_size=like.batch_size,
            reranker=like.reranker,
            rerank_depth=like.rerank_depth,
        )

    def evaluate(self, retriever: Retriever, name: str) -> Results:
        """Return the result for each split of the round."""
        return {split: evaluator.evaluate(retriever, name=name) for split, evaluator in self._evaluators.items()}

    def judge(self, model: Encoder, after: Results, folder: Path) -> Candidate:
        """Check a candidate by its results, and save them in a folder.

        Args:
            model: The encoder of the candidate.
            after: What `evaluate` returned for it.
            folder: The folder of the round.
        """
        for split in (HELD_OUT, LOCKED):
            for results, label in ((self.before, "old"), (after, after[split].name.partition(" ")[0])):
                results[split].save(folder / f"{split}-{label}.json")
        held_out, locked = (compare(self.before[split], after[split]) for split in (HELD_OUT, LOCKED))
        checks = (
            held_out_check(held_out, k=self.k),
            locked_check(locked, max_loss=self.max_loss),
            forgetting_check(self.old, model, self._general),
        )
        return Candidate(after[LOCKED].name, checks)


def held_out_check(verdict: Verdict, *, k: int) -> Check:
    """Pass a model that has no more misses and a significantly higher nDCG on the held-out questions of the log."""
    before, after = len(verdict.before.misses(k)), len(verdict.after.misses(k))
    return Check(
        "questions held out from the log",
        passed=verdict.decision == "better" and after <= before,
        detail=f"{before} -> {after} misses of {verdict.num_queries}. {verdict.sentence}",
    )


def locked_check(verdict: Verdict, *, max_loss: float) -> Check:
    """Pass a model whose loss on the locked test is at most ``max_loss``, at the lower bound of the interval."""
    low = verdict.metrics[verdict.primary_metric].low
    return Check(
        "locked test",
        passed=low >= -max_loss,
        detail=f"lower bound {low:+.3f}, required {-max_loss:+.3f}. {verdict.sentence}",
    )


def forgetting_check(old: Encoder, new: Encoder, general: RetrievalDataset | None) -> Check:
    """Pass a model that provably remembers general knowledge, see `check_forgetting`, or has nothing to be measured by."""
    if general is None:
        detail = (
            "Not measured: the questions of the package are English, and the corpus is not. Pass improve(general=...)."
        )
        return Check("general knowledge", passed=True, detail=detail)
    found = check_forgetting(old, new, data=general)
    return Check("general knowledge", passed=found.decision == "remembers", detail=found.sentence)


def is_english(data: RetrievalDataset) -> bool:
    """Return whether a corpus is English, by a few words that are frequent in English and rare in other languages."""
    found = [word for text in islice(data.corpus_texts.values(), 1000) for word in words_of(text)]
    return sum(word in _ENGLISH for word in found) > 0.03 * len(found)
