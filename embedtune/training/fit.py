"""fit: one training run and what goes with it, from a retriever with the base model to one with the tuned model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback, TrainerCallback

from embedtune.models.repository import quiet_transformers
from embedtune.retrieval.bm25 import BM25
from embedtune.retrieval.encoders import RememberingEncoder, model_name
from embedtune.retrieval.retriever import Retriever
from embedtune.retrieval.word_weight import learn_from_index
from embedtune.training.resilience.checkpoints import complete_checkpoints
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers.trainer_callback import TrainerState

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.evaluator import TopKEvaluator
    from embedtune.evaluation.result import Evaluation
    from embedtune.training.arguments import TuningArguments


def fit(before: Retriever, data: RetrievalDataset, args: TuningArguments) -> Retriever:
    """Train a copy of a retriever's model, and learn its words, on the ``train`` split of a dataset.

    Args:
        before: A retriever of the dataset's chunks with the base model.
        data: Its ``train`` split is learned from. Of other splits it only matters which documents they ask about: these give
            no negatives.
        args: Training continues at the last checkpoint in ``args.output_dir``, if there is one.
    """
    words = learn_from_index(data, before.index, before.encoder, seed=args.seed)
    tuned = _trained(before.model, data, args)
    after = Retriever.from_dataset(tuned, data, words=words, show_progress_bar=False if args.disable_tqdm else None)
    return after.with_reranker(before.reranker, rerank_depth=before.rerank_depth)


def evaluations(before: Retriever, retriever: Retriever, evaluator: TopKEvaluator) -> list[Evaluation]:
    """Return the results of the base model, the tuned retriever, BM25, and the parts of the tuned retriever."""
    first_stage = retriever.with_reranker(None)
    retriever.encoder = first_stage.encoder = RememberingEncoder(
        retriever.model, retriever.batch_size
    )  # its questions are asked twice
    rows: dict[str, Any] = {
        f"{model_name(before.model)} (base)": before,
        "tuned retriever": retriever,
        "BM25": BM25(),
        **({} if retriever.reranker is before.reranker else {"tuned without the reranker": first_stage}),
        "tuned model alone": first_stage.with_word_weight(0),
        "tuned words alone": BM25(weights=retriever.fusion.weights),
    }
    return [evaluator.evaluate(one, name=label) for label, one in rows.items()]


def train_with_one_bar(trainer: EmbeddingTrainer, *, resume: bool = False) -> None:
    """Train, and show one bar that goes when it ends, as ``disable_tqdm`` allows.

    Args:
        trainer: The trainer.
        resume: Continue at the last checkpoint.
    """
    for printing in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
        trainer.remove_callback(printing)
    trainer.add_callback(_Bar(disable=trainer.args.disable_tqdm))
    with quiet_transformers():  # it would show a bar for each checkpoint
        trainer.train(resume_from_checkpoint=resume)


class _Bar(TrainerCallback):
    """One bar for a training, which goes when it ends. transformers' own would leave lines of figures for each."""

    def __init__(self, *, disable: bool) -> None:
        self._disable = disable

    def on_train_begin(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Begin at the step where training continues."""
        self._bar = tqdm(
            desc="Training", total=state.max_steps, initial=state.global_step, leave=False, disable=self._disable
        )

    def on_step_end(self, _args: Any, state: TrainerState, _control: Any, **_: Any) -> None:
        """Move on by a step."""
        self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Remove the bar."""
        self._bar.close()


def _trained(base: SentenceTransformer, data: RetrievalDataset, args: TuningArguments) -> SentenceTransformer:
    args = copy.copy(args)
    args.load_best_model_at_end = False  # without a dev split there is nothing to choose by
    trainer = EmbeddingTrainer(copy.deepcopy(base), args, data=data)
    train_with_one_bar(trainer, resume=Path(args.output_dir).exists() and bool(complete_checkpoints(args.output_dir)))
    tuned: SentenceTransformer = trainer.model
    tuned.eval()
    return tuned
