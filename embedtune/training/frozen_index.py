"""Training only the query side, so that the vectors of all chunks stay valid."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor, nn

from embedtune.bounds import finite, whole
from embedtune.dataset.views import Contents, chunks_for_training, table
from embedtune.evaluation.evaluator import TopKEvaluator
from embedtune.models.query_side import is_index_frozen
from embedtune.retrieval.encoders import ModelEncoder
from embedtune.training.losses import RetrievalLoss, is_relevant
from embedtune.training.trainer import EmbeddingTrainer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.evaluation.result import Evaluation
    from embedtune.retrieval.retrieve import Retrieving
    from embedtune.training.arguments import TuningArguments

logger: logging.Logger = logging.getLogger(__name__)


class FrozenIndex:
    """An `Encoder` that encodes each document only once, because its model's document side is frozen.

    Args:
        model: A model from `freeze_index`.
        batch_size: Texts per batch of encoding.
        show_progress_bar: Show the progress of encoding.

    Raises:
        ValueError: If the document side of the model is not frozen.
    """

    def __init__(self, model: SentenceTransformer, *, batch_size: int = 32, show_progress_bar: bool = False) -> None:
        if not is_index_frozen(model):
            raise ValueError("The document side of this model is not frozen. Pass et.freeze_index(model) instead.")
        self.model = model
        self._encoder = ModelEncoder(model, batch_size, show_progress_bar)
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of queries, of shape ``(num_texts, dim)``."""
        return self._encoder.encode_queries(texts)

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of documents, of shape ``(num_texts, dim)``."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors.update(zip(new, self._encoder.encode_documents(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])


class FrozenIndexLoss(RetrievalLoss):
    r"""Rank each question's relevant chunks above all other chunks of the corpus, which are encoded only once.

    :math:`-\log \frac{\sum_{c \in R} e^{s \cos(q, c)}}{\sum_{c \in R \cup W} e^{s \cos(q, c)}}`, where :math:`R` are the row's
    chunk and its near-duplicates, and :math:`W` the chunks that are not known to be relevant. This is `InBatchNegativesLoss`
    with the whole corpus in every batch and without gradients of the chunks, so a step costs only what the questions cost.

    Documents held out for other splits are not used as negatives: training would push every question away from them, and
    results on unseen documents would be worse than in use, where new documents arrive after training.

    Args:
        model: A model from `freeze_index`.
        data: Questions and chunks.
        split: The training questions.
        scale: Multiplies similarities; the inverse of the temperature.
        max_chunks: Maximum number of chunks. All chunks relevant to a question of the split are used, and a random sample of
            the others. Each takes ``4 * dim`` bytes on the model's device.
        seed: Seed of the sample.
        batch_size: Chunks per batch of encoding.
        show_progress_bar: Show the progress of encoding.

    Attributes:
        index: The `FrozenIndex` that encoded the chunks.
        chunk_ids: The chunks.
        vectors: Their vectors, of length 1, of shape ``(num_chunks, dim)``.

    Inputs:
        | Columns               | Label                      |
        |-----------------------|----------------------------|
        | ``anchor`` (question) | ids of the relevant chunks |

        `FrozenIndexTrainer` makes this table from ``data.pairs(split, with_ids=True)``.

    Raises:
        ValueError: If the document side of the model is not frozen, or an argument is out of range.

    Example:
        ::

            import embedtune as et
            from embedtune.training.frozen_index import FrozenIndexLoss

            model = et.load_model("minilm")
            chunks = et.chunk_documents(et.read_documents("handbook/"), max_tokens=250, tokenizer=model)
            questions = et.generate_questions(chunks, et.AnthropicLLM("claude-sonnet-5-5"))
            data = et.build_dataset(chunks, questions)
            model = et.freeze_index(model, query="linear")
            trainer = et.FrozenIndexTrainer(
                model,
                et.TuningArguments("out/query-side", learning_rate=1e-3),
                data=data,
                loss=FrozenIndexLoss(model, data, max_chunks=50_000),
            )
            trainer.train()

        >>> import embedtune as et
        >>> data = et.RetrievalDataset.from_pairs([("Press both.", ["How to restart?"]), ("Turn it.", ["How to lock?"])],
        ...                                       test_size=0, dev_size=0)
        >>> model = et.freeze_index(et.load_model("minilm", device="cpu"), query="linear")
        >>> FrozenIndexLoss(model, data).vectors.shape
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
        self.scale: float = finite("scale", scale, above=0)
        whole("max_chunks", max_chunks)
        whole("batch_size", batch_size)
        self.index: FrozenIndex = FrozenIndex(model, batch_size=batch_size, show_progress_bar=show_progress_bar)
        contents, texts = Contents(data), data.corpus_texts
        self.chunk_ids: list[str] = _sampled(data, split, contents, max_chunks, seed)
        vectors = torch.from_numpy(self.index.encode_documents([texts[chunk] for chunk in self.chunk_ids]))
        ids = torch.tensor([contents.id_of[chunk] for chunk in self.chunk_ids])
        # Not persistent, because a checkpoint holds only the model.
        self.register_buffer("vectors", nn.functional.normalize(vectors, dim=1).to(model.device), persistent=False)
        self.register_buffer("contents", ids.to(model.device), persistent=False)

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """Embed the first column, the questions, and return the loss, a scalar."""
        return super().forward(list(sentence_features)[:1], labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of questions of shape ``(batch_size, dim)`` with ids of shape ``(batch_size, num_ids)``."""
        if labels is None or labels.ndim != 2:
            raise ValueError("FrozenIndexLoss needs ids to know the relevant chunks: data.pairs(split, with_ids=True).")
        questions = embeddings[0].float()[:, : self.vectors.shape[1]]  # truncate_dim: the dimensions that search uses
        scores = nn.functional.normalize(questions, dim=1) @ self.vectors.T * self.scale
        own = is_relevant(labels[:, :1], self.contents)
        also_relevant = is_relevant(labels, self.contents) & ~own
        of_all = scores.masked_fill(also_relevant, -torch.inf).logsumexp(dim=1)
        return (of_all - scores.masked_fill(~own, -torch.inf).logsumexp(dim=1)).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"scale": self.scale, "num_chunks": len(self.chunk_ids)}


class FrozenIndexTrainer(EmbeddingTrainer):
    """An `EmbeddingTrainer` for a model from `freeze_index`: each chunk is encoded only once in the whole run.

    It trains with `FrozenIndexLoss` on questions only. Evaluations of the dev split use the same vectors of chunks.

    Args:
        model: A model from `freeze_index`. Its query side is changed in place.
        args: The arguments; ``loss`` and ``num_negatives`` do not apply. The learning rate should be higher than for a whole
            model: 1e-3 for a linear layer, 2e-4 for a LoRA.
        data: Questions and chunks. Trains on the split ``train``; ``dev``, if it exists, chooses the checkpoint.
        loss: A `FrozenIndexLoss` with other settings.
        evaluator: One or more evaluators to run in addition to the dev split's.
        **options: Further arguments of ``SentenceTransformerTrainer``.

    Raises:
        ValueError: If the document side of the model is not frozen.

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
    """Takes the documents' vectors from an index, if it belongs to the evaluated model."""

    def __init__(self, index: FrozenIndex, data: RetrievalDataset, split: str) -> None:
        super().__init__(data, split, k=[k for k in (1, 3, 5, 10) if k <= len(data.corpus)])
        self._index = index

    def _evaluate(self, retriever: Retrieving, *, name: str, model: str = "") -> Evaluation:
        known = retriever is self._index.model
        return super()._evaluate(self._index if known else retriever, name=name, model=model)


def _sampled(data: RetrievalDataset, split: str, contents: Contents, max_chunks: int, seed: int) -> list[str]:
    """Return the chunks to rank: those relevant to a question of the split, and as many others as fit."""
    allowed = chunks_for_training(data, split)
    if len(allowed) <= max_chunks:
        return allowed
    relevant = set().union(*contents.answers(split).values())
    others = [chunk for chunk in allowed if contents.id_of[chunk] not in relevant]
    room = max_chunks - (len(allowed) - len(others))
    if room < 0:
        raise ValueError(
            f"max_chunks={max_chunks} must be at least {len(allowed) - len(others)}, the number of chunks that are relevant "
            f"to a question of the split {split!r}."
        )
    drawn = {others[i] for i in np.random.default_rng(seed).choice(len(others), size=room, replace=False)}
    logger.info("Drew %d of %d other chunks as negatives.", room, len(others))
    return [chunk for chunk in allowed if contents.id_of[chunk] in relevant or chunk in drawn]
