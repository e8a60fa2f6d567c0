"""Gradient caching: batches of any size in the memory of one mini-batch."""

from __future__ import annotations

from contextlib import nullcontext
from operator import itemgetter
from typing import Any

import torch
from sentence_transformers.base.losses.gradcache import CachedLossMixin, RandContext
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from embedtune.training.encode_once.embedded_loss import loss_of_columns


class GradientCachedLoss(CachedLossMixin, nn.Module):
    """Gradient caching (Gao et al. 2021, https://arxiv.org/abs/2101.06983) for any loss that `takes_embeddings`.

    The parts of a batch are encoded without a graph. The loss and its gradient with respect to the embeddings are computed.
    Then each part is encoded again, with the same dropout masks, and its gradient is passed on to the weights. Only the
    activations of one part are in memory at a time, at about a third more time.

    Args:
        model: The model as it is called, with DistributedDataParallel if there is any.
        loss: The loss.
        rows: Index of the text in each row and column, of shape ``(batch_size, num_columns)``.
        trained: The model without wrappers.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, rows: Tensor, *, trained: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.loss: nn.Module = loss
        self.rows: Tensor = rows
        self.trained = trained
        self.mini_batch_size = 1
        self.components: dict[str, Tensor] = {}
        self._order: list[int] = []
        self._sizes: list[int] = []

    def forward(self, parts: list[dict[str, Any]], labels: Tensor | None) -> Tensor:
        """Return the loss. Its backward pass encodes the parts again."""
        steps = _steps(parts, together=isinstance(self.model, DistributedDataParallel))
        self._order, self._sizes = [number for step in steps for number in step], []
        # One row for the superclass, because the collator has already cut the batch.
        features = [{"input_ids": parts[0]["input_ids"][:1], "parts": [parts[i] for i in step]} for step in steps]
        loss: Tensor = CachedLossMixin.forward_cached(self, features, labels)
        return loss

    def embed_minibatch(
        self,
        sentence_feature: dict[str, Any],
        begin: int,  # noqa: ARG002  # the superclass's signature
        end: int,  # noqa: ARG002
        with_grad: bool,
        copy_random_state: bool,
        random_state: RandContext | None = None,
    ) -> tuple[Tensor, RandContext | None]:
        """Encode the parts of one step, under the random state of the first pass if it is given."""
        with nullcontext() if random_state is None else random_state, torch.set_grad_enabled(with_grad):
            state = RandContext(sentence_feature["input_ids"]) if copy_random_state else None
            vectors = [self.model(dict(part))["sentence_embedding"] for part in sentence_feature["parts"]]
        if not with_grad:
            self._sizes += [len(part) for part in vectors]
        return torch.cat(vectors), state

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Return the loss of the vectors of all steps, and pass its gradient on to them."""
        vectors: Any = torch.cat([rep for step in reps for rep in step])
        vectors = vectors.split(self._sizes)
        texts = torch.cat([part for _, part in sorted(zip(self._order, vectors, strict=True), key=itemgetter(0))])
        columns = [texts[column] for column in self.rows.unbind(dim=1)]
        loss = loss_of_columns(self.loss, columns, labels, model=self.trained)
        if isinstance(loss, dict):
            self.components = {name: value.detach() for name, value in loss.items()}
            loss = torch.stack(list(loss.values())).sum()
        if with_backward:
            torch.autograd.backward(loss)
            loss = loss.detach()
        return loss


def _steps(parts: list[dict[str, Any]], *, together: bool) -> list[list[int]]:
    """Return which parts are encoded in one step: each alone or, with several processes, the last of each route together.

    The processes exchange gradients in the last step, so it must reach every parameter.
    """
    last = sorted({part.get("task"): number for number, part in enumerate(parts)}.values())
    if not together or len(last) == 1:
        return [[number] for number in range(len(parts))]
    return [[number] for number in range(len(parts)) if number not in last] + [last]
