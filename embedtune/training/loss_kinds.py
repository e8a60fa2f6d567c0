"""What a loss needs of its batches: which view of the data, and whether rows may repeat each other's texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sentence_transformers.sentence_transformer import losses as st
from torch import nn

from embedtune.dataset.columns import LABEL_COLUMNS
from embedtune.training.losses import RetrievalLoss

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from embedtune.dataset import RetrievalDataset
    from embedtune.training.arguments import TuningArguments

_ROW_BY_ROW = (
    st.TripletLoss,
    st.ContrastiveLoss,
    st.CosineSimilarityLoss,
    st.MarginMSELoss,
    st.DistillKLDivLoss,
)
_IN_BATCH_NEGATIVES = (
    st.MultipleNegativesRankingLoss,
    st.CachedMultipleNegativesRankingLoss,
    st.GISTEmbedLoss,
    st.CachedGISTEmbedLoss,
    st.MegaBatchMarginLoss,
)

Losses = nn.Module | Mapping[str, nn.Module]
"""A loss, or one for each of several datasets."""


def innermost(loss: nn.Module) -> nn.Module:
    """Return the loss inside wrappers such as ``MatryoshkaLoss``."""
    inner = dict(loss.named_children()).get("loss")
    return loss if inner is None else innermost(inner)


def view_for(
    loss: nn.Module | Callable[[SentenceTransformer], nn.Module] | Mapping[str, Any],
    model: SentenceTransformer,
    data: RetrievalDataset | None,
    args: TuningArguments,
) -> Dataset:
    """Return the view of the training split that the loss reads.

    Raises:
        ValueError: If there is no training data, or several losses.
    """
    if data is None:
        raise ValueError("There is nothing to train on: pass data=build_dataset(...) or train_dataset=...")
    if isinstance(loss, Mapping):
        raise ValueError("Several losses need several datasets: pass train_dataset={name: dataset, ...} as well.")
    if "train" not in data.qrels:
        raise ValueError(f"The dataset has the splits {data.splits}, but no 'train'. Make it with build_dataset(...).")
    inner = innermost(loss if isinstance(loss, nn.Module) else loss(model))
    if not isinstance(inner, RetrievalLoss):
        return data.pairs("train")
    if inner.view == "pairs":
        return data.pairs("train", with_ids=inner.uses_ids)
    seed = args.data_seed if args.data_seed is not None else args.seed
    view = data.triplets if inner.view == "triplets" else data.labelled_pairs
    return view("train", num_negatives=args.num_negatives, seed=seed)


def is_row_by_row(loss: Losses) -> bool:
    """Return whether the loss of a row does not depend on the other rows of the batch."""
    if isinstance(loss, Mapping):
        return all(is_row_by_row(part) for part in loss.values())
    inner = innermost(loss)
    return inner.view != "pairs" if isinstance(inner, RetrievalLoss) else type(inner) in _ROW_BY_ROW


def needs_distinct_texts(loss: Losses, column_names: Sequence[str]) -> bool:
    """Return whether a chunk that occurs in two rows of a batch would be its own question's negative.

    True for losses with in-batch negatives, unless they read the ids that tell such chunks from negatives. A loss that is
    not known here counts as one if the table has no label.

    Args:
        loss: The loss, or one for each dataset.
        column_names: The columns of the training table.
    """
    if isinstance(loss, Mapping):
        return any(needs_distinct_texts(part, column_names) for part in loss.values())
    inner, has_label = innermost(loss), any(column in LABEL_COLUMNS for column in column_names)
    if is_row_by_row(inner):
        return False
    if isinstance(inner, RetrievalLoss):
        return not (inner.uses_ids and has_label)
    return isinstance(inner, _IN_BATCH_NEGATIVES) or not has_label


def takes_whole_chunks(loss: Losses, column_names: Sequence[str]) -> bool:
    """Return whether a batch may hold all questions of a chunk and take the other chunks as their negatives.

    True for losses with in-batch negatives that read the ids of known answers.

    Args:
        loss: The loss, or one for each dataset.
        column_names: The columns of the training table.
    """
    if isinstance(loss, Mapping):
        return False
    inner = innermost(loss)
    of_batch = isinstance(inner, RetrievalLoss) and inner.view == "pairs" and inner.uses_ids
    return of_batch and {"anchor", "positive", "label"} <= set(column_names)
