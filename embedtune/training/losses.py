"""Losses for retrieval, each an ``nn.Module`` that a plain ``SentenceTransformerTrainer`` accepts as well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.util import all_gather, cos_sim, get_rank, get_world_size
from torch import Tensor, nn

from embedtune.bounds import finite

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset.columns import View
    from embedtune.training.arguments import LossName

Negatives = Literal["given", "hardest"]

_MODEL_NAMES = ("model", "sentence_embedder")
# One batch about a single chunk, such as a short last one, is no reason to stop.
_MAX_BATCHES_WITHOUT_NEGATIVES = 3


class RetrievalLoss(nn.Module):
    """Base class of embedtune's losses: a loss names the view of a `RetrievalDataset` that it reads.

    Args:
        model: The model to train.

    Attributes:
        view: The view whose columns the loss reads.
        uses_ids: Whether it reads the ids of ``data.pairs(split, with_ids=True)`` to know which chunks of the batch are
            relevant.
    """

    view: View = "pairs"
    uses_ids: bool = False

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self._batches_without_negatives = 0

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """Embed each column and return the loss, a scalar."""
        return self.compute_loss_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of one tensor of shape ``(batch_size, dim)`` per column."""
        raise NotImplementedError

    def _require_negatives(self, num_questions: int, *, found: bool) -> None:
        """Raise a ``ValueError`` if several batches in a row have no negative: the loss is 0 and the model learns nothing."""
        if num_questions < 2 or not torch.is_grad_enabled():
            return
        self._batches_without_negatives = 0 if found else self._batches_without_negatives + 1
        if self._batches_without_negatives == _MAX_BATCHES_WITHOUT_NEGATIVES:
            raise ValueError(
                f"In {_MAX_BATCHES_WITHOUT_NEGATIVES} batches in a row every chunk is known to be relevant to every question "
                "(the same chunk, a near-duplicate, or another answer), so nothing is a negative, the loss is 0 and the "
                "model learns nothing. Add questions about other chunks, or take larger batches. If chunks count as "
                "near-duplicates that are not (data.corpus['duplicate_group']), shorten what they share."
            )


class InBatchNegativesLoss(RetrievalLoss):
    r"""Rank each question's chunk above the other chunks of the batch, except those that are known to be relevant.

    Softmax cross-entropy over cosine similarities, known as InfoNCE (van den Oord et al. 2018,
    https://arxiv.org/abs/1807.03748) and, in sentence-transformers, as ``MultipleNegativesRankingLoss``:
    :math:`-\log \frac{e^{s \cos(q_i, c_i)}}{\sum_j e^{s \cos(q_i, c_j)}}`. With ids, chunks that are known to be relevant to
    a question (the same chunk in another row, a near-duplicate, an overlapping neighbour, a second relevant chunk) are left
    out of the sum instead of being pushed away. A batch may therefore hold several questions about one chunk.

    This is the default loss: on unseen documents it improves retrieval where random negatives make it worse (see the
    benchmarks in the documentation).

    Args:
        model: The model to train.
        scale: Multiplies similarities; the inverse of the temperature.
        gather_across_devices: Also use the chunks of the other devices as negatives, so that several processes with small
            batches learn the same as one process with a large batch. No effect with one process.

    Inputs:
        | Columns                                                            | Label                       |
        |--------------------------------------------------------------------|-----------------------------|
        | ``anchor`` (question), ``positive`` (relevant chunk)               | ids of the relevant chunks  |
        | ``anchor``, ``positive``, ``negative_1``, ..., ``negative_n``      | also ids of the negatives   |
        | either, without a label: equals ``MultipleNegativesRankingLoss``   | none                        |

        ``data.pairs(split, with_ids=True)`` and `mine_hard_negatives` make them. The trainer chooses this view itself.

    Example:
        ::

            import embedtune as et

            model = et.load_model("minilm")
            chunks = et.chunk_documents(et.read_documents("handbook/"), max_tokens=250, tokenizer=model)
            questions = et.generate_questions(chunks, et.AnthropicLLM("claude-sonnet-5-5"))
            data = et.build_dataset(chunks, questions)
            trainer = et.EmbeddingTrainer(
                model,
                et.TuningArguments("out/handbook", num_train_epochs=2),
                data=data,
                loss=et.InBatchNegativesLoss(model, scale=20.0),
            )
            trainer.train()

        >>> from embedtune import load_model
        >>> loss = InBatchNegativesLoss(load_model("minilm", device="cpu"))
        >>> questions, chunks = torch.eye(3)[:2], torch.eye(3)[:2]
        >>> round(loss.compute_loss_from_embeddings([questions, chunks], None).item(), 6)
        0.0
    """

    uses_ids = True

    def __init__(self, model: SentenceTransformer, *, scale: float = 20.0, gather_across_devices: bool = True) -> None:
        super().__init__(model)
        self.scale: float = finite("scale", scale, above=0)
        self.gather_across_devices = gather_across_devices

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of questions, chunks and further negatives, each of shape ``(batch_size, dim)``.

        Args:
            embeddings: One tensor per column.
            labels: Ids of shape ``(batch_size, num_ids)``, or None. First the id of the row's chunk, then the ids of
                other relevant chunks, last (from `mine_hard_negatives`) ``-1 - id`` of each further negative.
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
            sizes = _rows_per_process(questions)
            candidates = [_gather(column, sizes) for column in candidates]
            ids = _gather(labels, sizes) if labels is not None else None
            first = sum(sizes[: get_rank()])
        scores = cos_sim(questions, torch.cat(candidates)) * self.scale
        targets = torch.arange(first, first + len(questions), device=scores.device)
        if labels is not None and ids is not None:
            known = is_relevant(labels, candidate_ids(ids, len(candidates)))
            known.scatter_(1, targets.unsqueeze(1), False)
            if known.device.type == "cpu":  # an accelerator would have to wait for the answer in every step
                self._require_negatives(len(questions), found=int(known.sum()) < len(questions) * (known.shape[1] - 1))
            scores = scores.masked_fill(known, -torch.inf)
        return F.cross_entropy(scores, targets)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"scale": self.scale, "gather_across_devices": self.gather_across_devices}


class TripletMarginLoss(RetrievalLoss):
    r"""Move a chunk closer to its own question than to another question, by a margin.

    ``torch.nn.TripletMarginLoss``, :math:`\max(\|a - p\|_p - \|a - n\|_p + m, 0)`, as in "Fine-tuning Embeddings for RAG
    applications" (Sharafudinov, 2024): the anchor is a chunk, the positive its question, the negative a random question
    about another chunk.

    With random negatives, the loss learns the training chunks and makes retrieval from unseen documents worse than the base
    model (see the benchmarks in the documentation). ``negatives="hardest"`` takes harder negatives at no extra cost: the
    question becomes the anchor, and the most similar chunk of the batch that is not relevant becomes the negative.
    Compare with `InBatchNegativesLoss` before you decide.

    Args:
        model: The model to train.
        margin: How much farther away the negative must be. Vectors of length 1 are at most 2 apart.
        p: The norm of the distance.
        swap: Use the distance from positive to negative if it is smaller than that from anchor to negative
            (Balntas et al. 2016, "Learning shallow convolutional feature descriptors with triplet losses").
        negatives: ``"given"`` reads negatives from the third column, ``"hardest"`` finds them in the batch.

    Inputs:
        | ``negatives=`` | Columns                                              | Label                      | Made by                              |
        |----------------|------------------------------------------------------|----------------------------|--------------------------------------|
        | ``"given"``    | ``chunk``, ``question``, ``other_question``          | none                       | ``data.triplets(split)``             |
        | ``"hardest"``  | ``anchor`` (question), ``positive`` (relevant chunk) | ids of the relevant chunks | ``data.pairs(split, with_ids=True)`` |

        The trainer chooses the view itself. sentence-transformers' ``TripletLoss`` has a margin of 5, which vectors of
        length 1 can never reach.

    Example:
        ::

            import embedtune as et

            model = et.load_model("minilm")
            chunks = et.chunk_documents(et.read_documents("handbook/"), max_tokens=250, tokenizer=model)
            questions = et.generate_questions(chunks, et.AnthropicLLM("claude-sonnet-5-5"))
            data = et.build_dataset(chunks, questions)
            trainer = et.EmbeddingTrainer(
                model,
                et.TuningArguments("out/handbook", num_train_epochs=2),
                data=data,
                loss=et.TripletMarginLoss(model, margin=0.5, negatives="hardest"),
            )
            trainer.train()
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
        self.margin: float = finite("margin", margin, above=0)
        self.p: float = p if p == math.inf else finite("p", p, at_least=1)
        self.swap = swap
        self.negatives: Negatives = negatives
        self.view: View = "triplets" if negatives == "given" else "pairs"
        self.uses_ids: bool = negatives == "hardest"

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of anchors, positives and (if given) negatives, each of shape ``(batch_size, dim)``."""
        if self.negatives == "given":
            _check_columns(self, embeddings, 3)
            anchors, positives, negatives = embeddings
        else:
            _check_columns(self, embeddings, 2)
            rows, negatives = _hardest(embeddings[0], embeddings[1], labels)
            self._require_negatives(len(embeddings[0]), found=len(rows) > 0)
            anchors, positives = embeddings[0][rows], embeddings[1][rows]
            if len(rows) == 0:
                # Zero, but part of the graph: every process must take part in the backward pass of the gather.
                return anchors.sum() + positives.sum() + negatives.sum()
        return F.triplet_margin_loss(anchors, positives, negatives, margin=self.margin, p=self.p, swap=self.swap)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"margin": self.margin, "p": self.p, "swap": self.swap, "negatives": self.negatives}


class CosineEmbeddingLoss(RetrievalLoss):
    r"""Pull a chunk and its questions to a cosine of 1, and push other questions below the margin.

    ``torch.nn.CosineEmbeddingLoss``: :math:`1 - \cos(a, b)` for the label 1, :math:`\max(0, \cos(a, b) - m)` for -1, as in
    "Fine-tuning Embeddings for RAG applications" (Sharafudinov, 2024): a chunk, a question, and whether the chunk answers it.

    Its random negatives have the same disadvantage as those of `TripletMarginLoss`, and the same remedy:
    ``negatives="hardest"``.

    Args:
        model: The model to train.
        margin: The largest cosine, from -1 to 1, at which a negative pair costs nothing.
        negatives: ``"given"`` reads labelled pairs, ``"hardest"`` pairs each question with the most similar chunk of the
            batch that is not relevant.

    Inputs:
        | ``negatives=`` | Columns                                              | Label                      | Made by                              |
        |----------------|------------------------------------------------------|----------------------------|--------------------------------------|
        | ``"given"``    | ``chunk``, ``question``                              | 1 or -1                    | ``data.labelled_pairs(split)``       |
        | ``"hardest"``  | ``anchor`` (question), ``positive`` (relevant chunk) | ids of the relevant chunks | ``data.pairs(split, with_ids=True)`` |

        The trainer chooses the view itself. sentence-transformers' ``CosineSimilarityLoss`` is a squared error, its
        ``ContrastiveLoss`` squares distances.

    Example:
        ::

            import embedtune as et

            model = et.load_model("minilm")
            chunks = et.chunk_documents(et.read_documents("handbook/"), max_tokens=250, tokenizer=model)
            questions = et.generate_questions(chunks, et.AnthropicLLM("claude-sonnet-5-5"))
            data = et.build_dataset(chunks, questions)
            trainer = et.EmbeddingTrainer(
                model,
                et.TuningArguments("out/handbook", num_train_epochs=2),
                data=data,
                loss=et.CosineEmbeddingLoss(model, negatives="hardest"),
            )
            trainer.train()
    """

    def __init__(self, model: SentenceTransformer, *, margin: float = 0.0, negatives: Negatives = "given") -> None:
        super().__init__(model)
        _check_negatives(negatives)
        self.margin: float = finite("margin", margin, at_least=-1)
        if margin > 1:
            raise ValueError(f"margin={margin} must be a cosine, from -1 to 1.")
        self.negatives: Negatives = negatives
        self.view: View = "labelled_pairs" if negatives == "given" else "pairs"
        self.uses_ids: bool = negatives == "hardest"

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the loss of two columns of shape ``(batch_size, dim)`` and their labels."""
        _check_columns(self, embeddings, 2)
        first, second = embeddings
        if self.negatives == "given":
            if labels is None or labels.ndim != 1:
                raise ValueError("CosineEmbeddingLoss needs a label of 1 or -1 per row: data.labelled_pairs(split).")
            return F.cosine_embedding_loss(first, second, labels, margin=self.margin)
        rows, negatives = _hardest(first, second, labels)
        self._require_negatives(len(first), found=len(rows) > 0)
        signs = torch.cat([first.new_ones(len(first)), -first.new_ones(len(rows))])
        return F.cosine_embedding_loss(
            torch.cat([first, first[rows]]), torch.cat([second, negatives]), signs, margin=self.margin
        )

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"margin": self.margin, "negatives": self.negatives}


LOSSES: dict[LossName, type[RetrievalLoss]] = {
    "in-batch": InBatchNegativesLoss,
    "triplet": TripletMarginLoss,
    "cosine": CosineEmbeddingLoss,
}
"""The losses that `TuningArguments` knows by name."""


def models_of(loss: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the attributes in which a loss, and the losses inside it, keep the model."""
    for name, child in loss.named_children():
        if name in _MODEL_NAMES:
            yield loss, name
        else:
            yield from models_of(child)


def is_relevant(labels: Tensor, ids: Tensor) -> Tensor:
    """Return which chunks are known to be relevant to which questions.

    Args:
        labels: The ids of each question's relevant chunks, of shape ``(num_questions, num_ids)``.
        ids: The id of each chunk, of shape ``(num_chunks,)``. Near-duplicates share one.

    Returns:
        A boolean tensor of shape ``(num_questions, num_chunks)``.
    """
    return (labels[:, :, None] == ids).any(dim=1)


def candidate_ids(ids: Tensor, num_columns: int) -> Tensor:
    """Return the id of each candidate, column by column; one without an id gets the smallest integer.

    Args:
        ids: Labels of shape ``(batch_size, num_ids)``: first the id of the positive, last ``-1 - id`` of each negative.
        num_columns: Number of candidates per row, including the positive.

    Returns:
        Ids of shape ``(num_columns * batch_size,)``.

    Example:
        >>> candidate_ids(torch.tensor([[4, 5, -8], [6, 6, -5]]), 2).tolist()
        [4, 6, 7, 4]
    """
    unknown = ids.new_zeros(len(ids), num_columns - 1)
    negatives = torch.cat([unknown, ids[:, 1:]], dim=1)[:, ids.shape[1] - 1 :]
    negatives = torch.where(negatives < 0, -1 - negatives, torch.iinfo(ids.dtype).min)
    return torch.cat([ids[:, :1], negatives], dim=1).T.flatten()


def _hardest(questions: Tensor, chunks: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the rows that have a negative in the batches of all devices, and the vectors of their hardest negatives."""
    if labels is None or labels.ndim != 2:
        raise ValueError("negatives='hardest' needs ids to find negatives: data.pairs(split, with_ids=True).")
    ids = labels
    if get_world_size() > 1:
        sizes = _rows_per_process(chunks)
        chunks, ids = _gather(chunks, sizes), _gather(labels, sizes)
    with torch.no_grad():  # the choice of the hardest chunk has no gradient
        scores = cos_sim(questions, chunks).masked_fill(is_relevant(labels, ids[:, 0]), -torch.inf)
        best = scores.max(dim=1)
        rows = torch.nonzero(best.values > -torch.inf).squeeze(1)
    return rows, chunks[best.indices[rows]]


def _check_negatives(negatives: str) -> None:
    if negatives not in get_args(Negatives):
        raise ValueError(f"negatives={negatives!r} is not one of {get_args(Negatives)}.")


def _check_columns(loss: nn.Module, embeddings: list[Tensor], expected: int) -> None:
    if len(embeddings) != expected:
        raise ValueError(f"{type(loss).__name__} takes {expected} columns, but the dataset has {len(embeddings)}.")


def _rows_per_process(rows: Tensor) -> list[int]:
    """Return the batch size of each process; batches of whole chunks differ in size."""
    sizes: list[int] = all_gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    return sizes


def _gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate the rows of all processes, with their gradients."""
    padded = F.pad(rows, (0, 0, 0, max(sizes) - len(rows)))
    parts = all_gather(padded, with_grad=rows.requires_grad).split(max(sizes))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
