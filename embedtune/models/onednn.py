"""Linear layers by oneDNN on a CPU: the same float32 results, faster where the other library leaves vector units idle."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)

# Tokens, inputs and outputs of the layers that are tried out.
_TRIED = ((64, 64, 256), (1000, 384, 1536), (2048, 1536, 384))
_MAX_ERROR = 1e-6

_mkldnn: Any = torch.backends.mkldnn


def is_exact() -> bool:
    """Say whether oneDNN can be asked, and computes in float32 when it is: it may use bfloat16 where there are units for it."""
    if not hasattr(_mkldnn, "matmul") or not _mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(mode=False), torch.enable_grad():  # whatever the caller has switched off
        return all(_error(*sizes, generator=generator) <= _MAX_ERROR for sizes in _TRIED)


@functools.cache  # the trial takes time, and once is enough to be warned
def usable(wanted: bool) -> bool:
    """Say whether to use oneDNN; a warning says why not where it was wanted."""
    exact = wanted and is_exact()
    if wanted and not exact:
        logger.warning("onednn_linear=True has no effect: oneDNN would not compute in float32 on this machine.")
    return exact


def _error(num_tokens: int, inputs: int, outputs: int, *, generator: torch.Generator) -> float:
    """Return the relative error of an output and of both gradients, the largest of the three."""
    left, weight, gradient = (
        torch.randn(size, generator=generator)
        for size in ((num_tokens, inputs), (outputs, inputs), (num_tokens, outputs))
    )
    left.requires_grad_()
    weight.requires_grad_()
    found = _linear(left, weight, None)
    gradients = torch.autograd.grad(found, (left, weight), gradient)
    a, b, c = left.detach().double(), weight.detach().double(), gradient.double()
    pairs = zip((found.detach(), *gradients), (a @ b.T, c @ b, c.T @ a), strict=True)
    return max(float((value - exact).norm() / exact.norm()) for value, exact in pairs)


@contextmanager
def _asking_onednn() -> Iterator[None]:
    """Permit a lower precision, which is how oneDNN is asked at all; `is_exact` has seen that it does not use it."""
    settings = _mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class _Linear(torch.autograd.Function):
    """``F.linear`` whose three products are computed by oneDNN."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        with _asking_onednn():
            return F.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        with _asking_onednn():
            to_inputs = (rows @ weight).view_as(inputs) if ctx.needs_input_grad[0] else None
            to_weight = rows.T @ inputs.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return to_inputs, to_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    function: Any = _Linear
    return function.apply(inputs, weight, bias)


class OneDnnLinear(TorchFunctionMode):
    """While it lasts, linear layers in float32 on a CPU are computed by oneDNN; everything else stays as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace ``F.linear`` where it applies."""
        if func is F.linear and not kwargs and _applies(args[0], args[1]):
            return _linear(args[0], args[1], args[2] if len(args) > 2 else None)
        return func(*args, **(kwargs or {}))


def _applies(inputs: Tensor, weight: Tensor) -> bool:
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.ndim > 1
        and not torch.is_autocast_enabled("cpu")
    )
