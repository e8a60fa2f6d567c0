"""Hard negatives that are mined again at every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from embedtune.training.negatives.mining import ROWS, Miner, MiningOptions, checked

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from transformers import TrainingArguments
    from typing_extensions import Unpack

    from embedtune.dataset import RetrievalDataset
    from embedtune.training.arguments import LossName


class RemineNegatives(TrainerCallback):
    """Mine hard negatives again at the start of every epoch, with the current model.

    A callback of ``transformers.Trainer`` that replaces the negatives in `dataset`. The first epoch uses the base model's
    negatives. Each mining encodes all questions and chunks, in every process of a distributed run. After resuming within an
    epoch, the rest of it uses negatives mined at that point.

    Args:
        model: The model to train.
        data: Questions and chunks.
        loss: The loss that will read the rows, as in `mine_hard_negatives`.
        num_negatives: As in `mine_hard_negatives`.
        relative_margin: As in `mine_hard_negatives`.
        seed: As in `mine_hard_negatives`.
        **options: As in `mine_hard_negatives`.

    Attributes:
        dataset: The rows to train on, with the negatives that were mined last.

    Example:
        >>> import embedtune as et
        >>> def tune(model, args, data):
        ...     remine = et.RemineNegatives(model, data)
        ...     trainer = et.EmbeddingTrainer(model, args, data=data, train_dataset=remine.dataset, callbacks=[remine])
        ...     trainer.train()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        data: RetrievalDataset,
        *,
        loss: LossName = "in-batch",
        num_negatives: int = 1,
        relative_margin: float | None = 0.05,
        seed: int = 0,
        **options: Unpack[MiningOptions],
    ) -> None:
        self._miner = Miner(data, "train", num_negatives, relative_margin, seed, options)
        self._first = self._miner.mine(model)
        self._now: dict[tuple[str, str], str] = {}
        rows = ROWS[checked(loss)](self._miner.pairs, self._first, self._miner.content_of)
        self.dataset: Dataset = rows.with_transform(_replacing(self._now, self._miner.content_of))

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: Any,
        control: Any,  # noqa: ARG002  # a callback's signature
        **kwargs: Any,
    ) -> None:
        """Mine again, unless training has only just begun."""
        if args.dataloader_num_workers and args.dataloader_persistent_workers:
            raise ValueError(
                "With dataloader_persistent_workers=True the workers would keep the first negatives. Set it to False."
            )
        if state.global_step == 0:
            return
        found = self._miner.mine(kwargs["model"])
        pairs = ((q, old, new) for q, first in self._first.items() for old, new in zip(first, found[q], strict=True))
        self._now.clear()
        self._now.update({(question, old): new for question, old, new in pairs})


def _replacing(
    now: Mapping[tuple[str, str], str], content_of: Mapping[str, int]
) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    """Return a transform of batches that replaces the first negatives of each question by the new ones."""

    def replace(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if not now or "anchor" not in batch:
            return batch
        new = dict(batch)
        negatives = [name for name in batch if name.startswith(("negative", "candidate"))]
        for name in negatives:
            new[name] = [now.get(pair, pair[1]) for pair in zip(batch["anchor"], batch[name], strict=True)]
        if "label" in batch and "candidate" not in batch:
            ids = zip(*([-1 - content_of[text] for text in new[name]] for name in negatives), strict=True)
            width = len(negatives)
            new["label"] = [[*label[:-width], *row] for label, row in zip(batch["label"], ids, strict=True)]
        return new

    return replace
