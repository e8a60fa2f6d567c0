"""Losses for retrieval, each an ``nn.Module`` that plain ``SentenceTransformerTrainer`` accepts as well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import all_gather, all_gather_with_grad, cos_sim, get_rank, get_world_size
from torch import Tensor, nn

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset.columns import View

Negatives = Literal["given", "hardest"]


class RetrievalLoss(nn.Module):
    """What embedtune's losses have in common: they say which view of a `RetrievalDataset` they are trained on.

    Args:
        model: The model to train.

    Attributes:
        view: The view whose columns the loss takes.
        uses_ids: Whether it reads the ids of `RetrievalDataset.pairs` to tell negatives from right answers.
    """

    view: View = "pairs"
    uses_ids: bool = False

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """Embed each column and compute the loss, a scalar."""
        return self.compute_loss_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss from one tensor of shape ``(batch_size, dim)`` for each column."""
        raise NotImplementedError


class InBatchNegativesLoss(RetrievalLoss):
    r"""Tell the chunk that answers a question from the other chunks of the batch.

    The softmax cross-entropy over cosine similarities, known as InfoNCE (van den Oord et al. 2018,
    https://arxiv.org/abs/1807.03748) and, in sentence-transformers, as ``MultipleNegativesRankingLoss``:
    :math:`-\log \frac{e^{s \cos(q_i, c_i)}}{\sum_j e^{s \cos(q_i, c_j)}}`. The difference: where ids are given, chunks
    that are known to answer a question (the same chunk in another row, a near-duplicate, an overlapping neighbour, a
    second right chunk) are left out of its sum instead of being pushed away. Batches may therefore hold several
    questions about one chunk, which needs ``NO_DUPLICATES`` batches otherwise.

    The default loss: on unseen documents it gained where random negatives lost, see the benchmarks in the documentation.

    Args:
        model: The model to train.
        scale: What similarities are multiplied by, the inverse of the temperature.
        gather_across_devices: Use the chunks of all devices as negatives, so that several processes with small batches
            learn the same as one with a large batch. It makes no difference to one process.

    Requirements:
        Several rows in a batch; more are better.

    Inputs:
        ``data.pairs(split, with_ids=True)``: (anchor, positive) and a label of ids. Without a label it equals
        ``MultipleNegativesRankingLoss``. Further columns are taken as negatives; those of `mine_hard_negatives` bring
        their ids, so that no question is pushed away from a chunk that answers it.

    Relations:
        ``CachedMultipleNegativesRankingLoss`` reaches larger batches in the same memory, without the ids.

    Example:
        >>> from embedtune import load_model
        >>> loss = InBatchNegativesLoss(load_model("minilm", device="cpu"))
        >>> questions, chunks = torch.eye(3)[:2], torch.eye(3)[:2]
        >>> round(loss.compute_loss_from_embeddings([questions, chunks], None).item(), 6)
        0.0
    """

    uses_ids = True

    def __init__(self, model: SentenceTransformer, *, scale: float = 20.0, gather_across_devices: bool = True) -> None:
        super().__init__(model)
        if not scale > 0:
            raise ValueError(f"scale={scale} must be positive.")
        self.scale = scale
        self.gather_across_devices = gather_across_devices

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss from questions, chunks and further negatives, each of shape ``(batch_size, dim)``.

        Args:
            embeddings: One tensor for each column.
            labels: Ids of shape ``(batch_size, num_ids)``: what the row's chunk says, then what else answers the
                question, then, from `mine_hard_negatives`, ``-1 - id`` of each further negative; or None.
        """
        questions, *candidates = embeddings
        if labels is not None and labels.ndim != 2:
            raise ValueError(
                "InBatchNegativesLoss reads a list of ids in every row, as data.pairs(split, with_ids=True) makes, but there "
                "is a single number. Remove the column of labels or scores."
            )
        ids = labels
        first = 0
        if self.gather_across_devices and get_world_size() > 1:
            candidates = [all_gather_with_grad(column) for column in candidates]
            ids = all_gather(labels) if labels is not None else None
            first = get_rank() * len(questions)
        scores = cos_sim(questions, torch.cat(candidates)) * self.scale
        targets = torch.arange(first, first + len(questions), device=scores.device)
        if labels is not None and ids is not None:
            known = answers(labels, contents_of(ids, len(candidates)))
            known.scatter_(1, targets.unsqueeze(1), False)
            scores = scores.masked_fill(known, -torch.inf)
        return F.cross_entropy(scores, targets)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"scale": self.scale, "gather_across_devices": self.gather_across_devices}


class TripletMarginLoss(RetrievalLoss):
    r"""Ask that a chunk be nearer to its own question than to another one, by a margin.

    ``torch.nn.TripletMarginLoss``, :math:`\max(\|a - p\|_p - \|a - n\|_p + m, 0)`, with the roles of "Fine-tuning
    Embeddings for RAG applications" (Sharafudinov, 2024): a chunk, a question that it answers, and a random question about
    another chunk.

    Measured with these random negatives, the loss learns the chunks it is trained on, and makes retrieval from unseen
    documents worse than the base model's, see the benchmarks in the documentation. ``negatives="hardest"`` takes harder
    ones at no extra encoding: the question becomes the anchor, and the nearest wrong chunk of the batch the negative.
    Compare with `InBatchNegativesLoss` before you decide.

    Args:
        model: The model to train.
        margin: How much farther the negative must be. Vectors of length 1 are at most 2 apart.
        p: The norm that measures distance.
        swap: Take the distance from positive to negative where it is smaller than from anchor to negative
            (Balntas et al. 2016, "Learning shallow convolutional feature descriptors with triplet losses").
        negatives: ``"given"`` reads them from the third column; ``"hardest"`` finds them in the batch.

    Inputs:
        ``data.triplets(split)``: (chunk, question, other_question), or for ``"hardest"``
        ``data.pairs(split, with_ids=True)``: (anchor, positive) and a label of ids.

    Relations:
        sentence-transformers' ``TripletLoss`` has a margin of 5, which vectors of length 1 can never meet.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        margin: float = 1.0,
        p: float = 2.0,
        swap: bool = False,
        negatives: Negatives = "given",
    ) -> None:
        super().__init__(model)
        _check_negatives(negatives)
        if not margin > 0:
            raise ValueError(f"margin={margin} must be positive.")
        self.margin = margin
        self.p = p
        self.swap = swap
        self.negatives: Negatives = negatives
        self.view: View = "triplets" if negatives == "given" else "pairs"
        self.uses_ids: bool = negatives == "hardest"

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss from anchors, positives and (if given) negatives, each of shape ``(batch_size, dim)``."""
        if self.negatives == "given":
            _check_columns(self, embeddings, 3)
            anchors, positives, negatives = embeddings
        else:
            _check_columns(self, embeddings, 2)
            rows, negatives = _hardest(embeddings[0], embeddings[1], labels)
            anchors, positives = embeddings[0][rows], embeddings[1][rows]
            if len(rows) == 0:
                return _nothing_to_learn(embeddings)
        return F.triplet_margin_loss(anchors, positives, negatives, margin=self.margin, p=self.p, swap=self.swap)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"margin": self.margin, "p": self.p, "swap": self.swap, "negatives": self.negatives}


class CosineEmbeddingLoss(RetrievalLoss):
    r"""Pull a chunk's own questions to a cosine of 1 and push others below the margin.

    ``torch.nn.CosineEmbeddingLoss``: :math:`1 - \cos(a, b)` where the label is 1, :math:`\max(0, \cos(a, b) - m)` where
    it is -1, with the roles of "Fine-tuning Embeddings for RAG applications" (Sharafudinov, 2024): a chunk, a question,
    and whether the one answers the other.

    The negatives are as random as those of `TripletMarginLoss`, with the same danger and the same remedy: ``negatives="hardest"``.

    Args:
        model: The model to train.
        margin: The cosine that a wrong pair may keep, from -1 to 1.
        negatives: ``"given"`` reads labelled pairs; ``"hardest"`` takes each question's nearest wrong chunk of the
            batch as its pair with label -1.

    Inputs:
        ``data.labelled_pairs(split)``: (chunk, question) and a label of 1 or -1, or for ``"hardest"``
        ``data.pairs(split, with_ids=True)``: (anchor, positive) and a label of ids.

    Relations:
        sentence-transformers' ``CosineSimilarityLoss`` is a squared error, its ``ContrastiveLoss`` squares distances.
    """

    def __init__(self, model: SentenceTransformer, *, margin: float = 0.0, negatives: Negatives = "given") -> None:
        super().__init__(model)
        _check_negatives(negatives)
        if not -1 <= margin <= 1:
            raise ValueError(f"margin={margin} is no cosine: it must lie between -1 and 1.")
        self.margin = margin
        self.negatives: Negatives = negatives
        self.view: View = "labelled_pairs" if negatives == "given" else "pairs"
        self.uses_ids: bool = negatives == "hardest"

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Compute the loss from two columns of shape ``(batch_size, dim)`` and their labels."""
        _check_columns(self, embeddings, 2)
        first, second = embeddings
        if self.negatives == "given":
            if labels is None or labels.ndim != 1:
                raise ValueError(
                    "CosineEmbeddingLoss needs a label of 1 or -1 in every row: data.labelled_pairs(split)."
                )
            return F.cosine_embedding_loss(first, second, labels, margin=self.margin)
        rows, negatives = _hardest(first, second, labels)
        signs = torch.cat([first.new_ones(len(first)), -first.new_ones(len(rows))])
        return F.cosine_embedding_loss(
            torch.cat([first, first[rows]]), torch.cat([second, negatives]), signs, margin=self.margin
        )

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"margin": self.margin, "negatives": self.negatives}


def answers(labels: Tensor, ids: Tensor) -> Tensor:
    """Say which contents are known to answer which questions.

    Args:
        labels: The contents that answer each question, of shape ``(num_questions, num_ids)``.
        ids: The content of each chunk, of shape ``(num_chunks,)``.

    Returns:
        A boolean tensor of shape ``(num_questions, num_chunks)``.
    """
    return (labels[:, :, None] == ids).any(dim=1)


def contents_of(ids: Tensor, num_columns: int) -> Tensor:
    """Return what each candidate says, column by column, and the smallest number for one that brought no id.

    Args:
        ids: Of shape ``(batch_size, num_ids)``: first what the positive says, last ``-1 - id`` of each further negative.
        num_columns: How many candidates stand in a row, the positive included.

    Returns:
        Of shape ``(num_columns * batch_size,)``.

    Example:
        >>> contents_of(torch.tensor([[4, 5, -8], [6, 6, -5]]), 2).tolist()
        [4, 6, 7, 4]
    """
    unknown = ids.new_zeros(len(ids), num_columns - 1)
    negatives = torch.cat([unknown, ids[:, 1:]], dim=1)[:, ids.shape[1] - 1 :]
    negatives = torch.where(negatives < 0, -1 - negatives, torch.iinfo(ids.dtype).min)
    return torch.cat([ids[:, :1], negatives], dim=1).T.flatten()


def _hardest(questions: Tensor, chunks: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the rows that have a wrong chunk in the batches of all devices, and the vectors of their most similar ones."""
    if labels is None or labels.ndim != 2:
        raise ValueError(
            "negatives='hardest' needs the ids of data.pairs(split, with_ids=True) to know the wrong chunks."
        )
    ids = labels
    if get_world_size() > 1:
        chunks, ids = all_gather_with_grad(chunks), all_gather(labels)
    with torch.no_grad():  # which chunk is hardest is a choice, not a function to differentiate
        scores = cos_sim(questions, chunks).masked_fill(answers(labels, ids[:, 0]), -torch.inf)
        best = scores.max(dim=1)
        rows = torch.nonzero(best.values > -torch.inf).squeeze(1)
    return rows, chunks[best.indices[rows]]


def _nothing_to_learn(embeddings: list[Tensor]) -> Tensor:
    """Return a zero that backward() accepts: every chunk of the batch answers every question."""
    return sum((column.sum() for column in embeddings), start=embeddings[0].new_zeros(())) * 0.0


def _check_negatives(negatives: str) -> None:
    if negatives not in get_args(Negatives):
        raise ValueError(f"negatives={negatives!r} is none of {get_args(Negatives)}.")


def _check_columns(loss: nn.Module, embeddings: list[Tensor], expected: int) -> None:
    if len(embeddings) != expected:
        raise ValueError(f"{type(loss).__name__} takes {expected} columns, but the dataset has {len(embeddings)}.")
