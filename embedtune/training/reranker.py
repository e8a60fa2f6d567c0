"""train_reranker: a cross-encoder trained on a dataset's own questions, for the second stage of a `Retriever`."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from embedtune.dataset.views import table
from embedtune.retrieval.rerank import check_reranker
from embedtune.retrieval.retriever import Retriever
from embedtune.storage import replaced_folder
from embedtune.training.negatives.mining import mine_hard_negatives
from embedtune.training.resilience.checkpoints import complete_checkpoints, written_whole
from embedtune.training.resilience.interruption import StopAtCheckpoint

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.training.arguments import TuningArguments

logger: logging.Logger = logging.getLogger(__name__)

RERANKER, CHECKPOINTS = "reranker", "checkpoints"

_REMEDY = "Lower learning_rate or max_grad_norm, raise warmup_steps, or use bf16=True instead of fp16=True."


def train_reranker(
    model: CrossEncoder | str | Path,
    data: RetrievalDataset,
    *,
    output_dir: str | Path,
    retriever: Retriever | SentenceTransformer,
    num_negatives: int = 5,
    args: CrossEncoderTrainingArguments | None = None,
) -> CrossEncoder:
    """Train a cross-encoder to tell the chunk that answers a question from those that the retriever ranks beside it.

    sentence-transformers' ``CrossEncoderTrainer`` and ``BinaryCrossEntropyLoss``, on the questions of the split ``train``. The
    negatives are mined (`mine_hard_negatives`): no chunk that is known to answer the question, and none of a document that is held
    out. Judge the result on questions that were not trained on, as any other retriever:
    ``TopKEvaluator(data).evaluate(retriever.with_reranker(reranker))``.

    Args:
        model: A ``CrossEncoder``, which is not changed, or its name or folder. That of an embedding model or of a pretrained
            transformer gets a new last layer.
        data: Questions and chunks.
        output_dir: The reranker is saved in its folder ``reranker``, as a plain ``CrossEncoder``.
        retriever: What finds the negatives, by its vectors.
        num_negatives: Negatives for each question and relevant chunk. The relevant chunk weighs as much as all of them.
        args: Arguments of the training; by default two epochs in batches of 16 at a learning rate of 2e-5.

    Returns:
        The trained reranker.

    Raises:
        TypeError: If ``model`` is none of these.
        ValueError: If it returns several scores for each pair, or there is nothing to train on.
        FloatingPointError: At the step whose loss is not finite.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint is written; the same call continues there. SIGTERM exits in the same way.

    Example:
        >>> import tempfile
        >>> import embedtune as et
        >>> pairs = [("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])]
        >>> data = et.RetrievalDataset.from_pairs(pairs, test_size=0, dev_size=0)
        >>> retriever = et.Retriever.from_dataset("minilm", data)
        >>> folder = tempfile.mkdtemp()
        >>> reranker = train_reranker("my-reranker", data, output_dir=folder, retriever=retriever)  # doctest: +SKIP
        >>> retriever.with_reranker(reranker).search("How to lock?")  # doctest: +SKIP
    """
    settings = copy.copy(args) if args is not None else _default_arguments(Path(output_dir))
    loaded = load_reranker(model, seed=settings.seed)
    trained: CrossEncoder = copy.deepcopy(loaded) if loaded is model else loaded
    finder = retriever.model if isinstance(retriever, Retriever) else retriever
    trainer = _FiniteTrainer(
        model=trained,
        args=settings,
        train_dataset=labelled_rows(finder, data, num_negatives=num_negatives, seed=settings.seed),
        loss=BinaryCrossEntropyLoss(trained, pos_weight=torch.tensor(float(num_negatives))),
    )
    interruption = StopAtCheckpoint()
    trainer.add_callback(interruption)
    with interruption.listening():
        trainer.train(resume_from_checkpoint=_interrupted(settings))
    if settings.save_strategy == SaveStrategy.NO:
        shutil.rmtree(settings.output_dir, ignore_errors=True)  # what an interruption left
    trained.eval()
    if not all(parameter.isfinite().all() for parameter in trained.parameters()):
        raise FloatingPointError(f"The last step made weights of the reranker NaN. {_REMEDY}")
    with replaced_folder(Path(output_dir) / RERANKER) as folder:
        trained.save_pretrained(str(folder), create_model_card=False)  # a card would quote the training data
    return trained


def load_reranker(model: CrossEncoder | str | Path, *, seed: int) -> CrossEncoder:
    """Return a cross-encoder with one score for each pair; a name or folder is loaded, with a new last layer where it has none.

    Raises:
        TypeError: If ``model`` is none of these.
        ValueError: If it returns several scores for each pair.
    """
    if isinstance(model, (str, Path)):
        set_seed(seed)  # of a new last layer
        model = CrossEncoder(str(model), num_labels=1, trust_remote_code=False)
    check_reranker(model)
    return model


def with_trained_reranker(
    retriever: Retriever, reranker: CrossEncoder, data: RetrievalDataset, *, args: TuningArguments
) -> Retriever:
    """Return a retriever with a second stage that was trained on the questions of ``train``; one in ``args.output_dir`` is taken."""
    settings = _default_arguments(Path(args.output_dir))
    settings.seed, settings.use_cpu, settings.disable_tqdm = args.seed, args.use_cpu, args.disable_tqdm
    known = Path(args.output_dir) / RERANKER
    if known.exists():
        trained = CrossEncoder(str(known), trust_remote_code=False, device=str(retriever.model.device))
    else:
        trained = train_reranker(
            reranker, data, output_dir=args.output_dir, retriever=retriever.with_reranker(None), args=settings
        )
    return retriever.with_reranker(trained)


class _FiniteTrainer(CrossEncoderTrainer):
    """Stops at the step whose loss is not finite; the stock trainer would log 0.0 and go on."""

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **options)
        if not loss.isfinite():
            raise FloatingPointError(
                f"Training stopped at step {self.state.global_step + 1}: the loss of the reranker is {loss.item():g}. {_REMEDY}"
            )
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with written_whole(folder):
            super()._save_checkpoint(model, trial)


def _interrupted(args: CrossEncoderTrainingArguments) -> str | None:
    """Return the checkpoint that an interrupted training left, or None; the arguments may ask for checkpoints of their own."""
    complete = complete_checkpoints(args.output_dir) if args.save_strategy == SaveStrategy.NO else []
    if not complete:
        return None
    logger.warning("The training of the reranker goes on at %s. Delete it to start again.", complete[0])
    return str(complete[0])


def labelled_rows(
    model: SentenceTransformer, data: RetrievalDataset, *, num_negatives: int = 5, seed: int = 0
) -> Dataset:
    """Return rows of a question (``anchor``), a chunk (``candidate``) and a ``label``: 1 if the chunk answers it, 0 if it is a negative.

    Args:
        model: Finds the negatives.
        data: Its split ``train`` is read.
        num_negatives: Negatives for each question and relevant chunk.
        seed: Seed of the random negatives.
    """
    rows = mine_hard_negatives(model, data, loss="cosine", num_negatives=num_negatives, seed=seed)
    texts = {name: rows[name][:] for name in ("anchor", "candidate")}
    return table(texts | {"label": [float(label > 0) for label in rows["label"][:]]})


def _default_arguments(output_dir: Path) -> CrossEncoderTrainingArguments:
    return CrossEncoderTrainingArguments(
        str(output_dir / CHECKPOINTS),
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=2e-5,
        warmup_steps=0.1,
        save_strategy="no",
        logging_steps=0.05,
        report_to="none",
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
