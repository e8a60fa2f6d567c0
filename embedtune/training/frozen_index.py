"""Training of the query side alone, against the vectors that every chunk has and keeps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor, nn

from embedtune.dataset.views import Contents, chunks_for_training, table
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.models.query_side import is_index_frozen
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.training.losses import RetrievalLoss, answers
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation
    from embedtune.retrieval.retrieve import Retrieving
    from embedtune.training.arguments import TuningArguments

logger = logging.getLogger(__name__)


class FrozenIndex:
    """An `Encoder` that encodes each document once, because the document side of its model never changes.

    Args:
        model: A model from `freeze_index`.
        batch_size: How many texts the model encodes at once.
        show_progress_bar: Show the progress of encoding.

    Raises:
        ValueError: If the document side of the model is trained.
    """

    def __init__(self, model: SentenceTransformer, *, batch_size: int = 32, show_progress_bar: bool = False) -> None:
        if not is_index_frozen(model):
            raise ValueError("The document side of this model would be trained. Pass et.freeze_index(model) instead.")
        self.model = model
        self._encoder = ModelEncoder(model, batch_size, show_progress_bar)
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a query, of shape ``(num_texts, dim)``."""
        return self._encoder.encode_queries(texts)

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector a document, of shape ``(num_texts, dim)``."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._encoder.encode_documents(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


class FrozenIndexLoss(RetrievalLoss):
    r"""Tell the chunks that answer a question from all other chunks, whose vectors are computed once.

    :math:`-\log \frac{\sum_{c \in R} e^{s \cos(q, c)}}{\sum_{c \in R \cup W} e^{s \cos(q, c)}}`, where :math:`R` are the chunk
    that the row is about and its near-duplicates, and :math:`W` the chunks that are not known to answer the question. It is
    `InBatchNegativesLoss` with the whole corpus in every batch and no gradient into the chunks, so that a step costs no more
    than the questions do.

    Documents held out for other splits are no negatives: training would push every question away from them, and the result
    on unseen documents would be worse than in use, where new documents come after training.

    Args:
        model: A model from `freeze_index`.
        data: The corpus, and what answers what.
        split: The questions that will be trained on.
        scale: What similarities are multiplied by, the inverse of the temperature.
        max_chunks: Of a larger corpus, the chunks that answer a question of the split are used, and of the others a random
            sample. Each chunk takes ``4 * dim`` bytes on the model's device.
        seed: Draws the sample.
        batch_size: How many chunks the model encodes at once.
        show_progress_bar: Show the progress of encoding.

    Attributes:
        index: The `FrozenIndex` that encoded the chunks.
        chunk_ids: The chunks.
        vectors: Their vectors, of length 1, of shape ``(num_chunks, dim)``.

    Inputs:
        A question and a label of ids: ``data.pairs(split, with_ids=True)``, whose chunks are not read.

    Raises:
        ValueError: If the document side of the model is trained, or an option is out of range.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs([("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])],
        ...                                       test_size=0, dev_size=0)
        >>> model = et.freeze_index(et.load_model("minilm", device="cpu"), query="linear")
        >>> et.FrozenIndexLoss(model, data).vectors.shape
        torch.Size([2, 384])
    """

    uses_ids = True
    vectors: Tensor
    contents: Tensor

    def __init__(
        self,
        model: SentenceTransformer,
        data: RetrievalDataset,
        *,
        split: str = "train",
        scale: float = 20.0,
        max_chunks: int = 100_000,
        seed: int = 0,
        batch_size: int = 32,
        show_progress_bar: bool = False,
    ) -> None:
        super().__init__(model)
        if not scale > 0:
            raise ValueError(f"scale={scale} must be positive.")
        self.scale = scale
        self.index: FrozenIndex = FrozenIndex(model, batch_size=batch_size, show_progress_bar=show_progress_bar)
        contents, texts = Contents(data), data.corpus_texts
        self.chunk_ids: list[str] = _sampled(data, split, contents, max_chunks, seed)
        vectors = torch.from_numpy(self.index.encode_documents([texts[chunk] for chunk in self.chunk_ids]))
        ids = torch.tensor([contents.id_of[chunk] for chunk in self.chunk_ids])
        # No part of the state: a checkpoint holds the model alone.
        self.register_buffer("vectors", nn.functional.normalize(vectors, dim=1).to(model.device), persistent=False)
        self.register_buffer("contents", ids.to(model.device), persistent=False)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """Embed the first column, the questions, and compute the loss, a scalar."""
        return super().forward(list(sentence_features)[:1], labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss from questions of shape ``(batch_size, dim)`` and ids of shape ``(batch_size, num_ids)``."""
        if labels is None or labels.ndim != 2:
            raise ValueError(
                "FrozenIndexLoss needs the ids of data.pairs(split, with_ids=True) to know the right chunks."
            )
        questions = embeddings[0].float()[:, : self.vectors.shape[1]]  # truncate_dim: the numbers that search uses
        scores = nn.functional.normalize(questions, dim=1) @ self.vectors.T * self.scale
        right = answers(labels[:, :1], self.contents)
        right_too = answers(labels, self.contents) & ~right
        of_all = scores.masked_fill(right_too, -torch.inf).logsumexp(dim=1)
        return (of_all - scores.masked_fill(~right, -torch.inf).logsumexp(dim=1)).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"scale": self.scale, "num_chunks": len(self.chunk_ids)}


class FrozenIndexTrainer(EmbeddingTrainer):
    """An `EmbeddingTrainer` for a model from `freeze_index`: no chunk is encoded more than once, whatever the epochs.

    It trains with `FrozenIndexLoss` on questions alone, and takes the documents' vectors for the dev split from the same index.

    Args:
        model: A model from `freeze_index`; its query side is changed in place.
        args: The arguments; ``loss``, ``num_negatives`` and what is said of chunks do not apply. Learning rates that
            suit so few weights are higher than usual: 1e-3 for a linear layer, 2e-4 for a LoRA.
        data: Questions and chunks. The ``train`` split is trained on; ``dev``, if there, chooses the checkpoint.
        loss: A `FrozenIndexLoss` with settings of its own.
        evaluator: One evaluator or several to run besides the dev split's.
        **options: Further arguments of ``SentenceTransformerTrainer``.

    Raises:
        ValueError: If the document side of the model would be trained.

    Example:
        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs([("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])],
        ...                                       test_size=0, dev_size=0)
        >>> model = et.freeze_index(et.load_model("minilm", device="cpu"), query="linear")
        >>> args = et.TuningArguments("/tmp/embedtune-example", learning_rate=1e-3, load_best_model_at_end=False)
        >>> trainer = et.FrozenIndexTrainer(model, args, data=data)
        >>> trainer.train_dataset.column_names
        ['anchor', 'label']
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: TuningArguments | None = None,
        *,
        data: RetrievalDataset,
        loss: FrozenIndexLoss | None = None,
        evaluator: BaseEvaluator | list[BaseEvaluator] | None = None,
        **options: Any,
    ) -> None:
        loss = loss if loss is not None else FrozenIndexLoss(model, data)
        evaluators = [evaluator] if isinstance(evaluator, BaseEvaluator) else list(evaluator or [])
        if "dev" in data.qrels:
            evaluators = [_IndexEvaluator(loss.index, data, "dev"), *evaluators]
        pairs = data.pairs("train", with_ids=True)
        questions = table({"anchor": pairs["anchor"][:], "label": pairs["label"][:]})
        super().__init__(model, args, data=data, train_dataset=questions, loss=loss, evaluator=evaluators, **options)


class _IndexEvaluator(TopKEvaluator):
    """Takes the documents' vectors from an index, for the model that the index belongs to."""

    def __init__(self, index: FrozenIndex, data: RetrievalDataset, split: str) -> None:
        super().__init__(data, split, k=[k for k in (1, 3, 5, 10) if k <= len(data.corpus)])
        self._index = index

    def _evaluate(self, retriever: Retrieving, *, name: str, model: str = "") -> Evaluation:
        known = retriever is self._index.model
        return super()._evaluate(self._index if known else retriever, name=name, model=model)


def _sampled(data: RetrievalDataset, split: str, contents: Contents, max_chunks: int, seed: int) -> list[str]:
    """Return the chunks to tell apart: what answers a question of the split, and as many others as fit."""
    allowed = chunks_for_training(data, split)
    if len(allowed) <= max_chunks:
        return allowed
    right = set().union(*contents.answers(split).values())
    others = [chunk for chunk in allowed if contents.id_of[chunk] not in right]
    room = max_chunks - (len(allowed) - len(others))
    if room < 0:
        raise ValueError(
            f"max_chunks={max_chunks} has no room for the {len(allowed) - len(others)} chunks that answer a question of the "
            f"split {split!r}."
        )
    drawn = {others[i] for i in np.random.default_rng(seed).choice(len(others), size=room, replace=False)}
    logger.info("%d of %d chunks are the negatives, drawn at random.", room, len(others))
    return [chunk for chunk in allowed if contents.id_of[chunk] in right or chunk in drawn]
