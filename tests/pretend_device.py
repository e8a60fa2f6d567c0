"""A device that only pretends to be one: its tensors say that they are elsewhere, and are computed on the CPU.

So what goes wrong on a GPU is seen without one: an operation on tensors of two devices fails as it does there, and what
makes the CPU wait for the device is counted. Numbers are the CPU's, so results are compared to the last digits.
Registering a device is for the whole process and forever, so it is done in a process of its own (``test_device.py``).
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"

# Their result has a size, or a value, that only the device knows.
_WAIT_FOR_A_VALUE = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")

waits: Counter[str] = Counter()
"""What made the CPU wait for the device, and how often."""

dtypes: set[torch.dtype] = set()
"""The types of the tensors that were on the device."""


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)

    def set_device(self, device):
        pass

    def device(self, device):
        return nullcontext()


class PretendTensor(Tensor):
    """Holds a tensor of the CPU."""

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, device=f"{NAME}:0", requires_grad=requires_grad, **layout
        )
        made.inner = inner
        dtypes.add(inner.dtype)
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return PretendTensor(inner["inner"])

    def __repr__(self):
        return f"PretendTensor({self.inner})"

    def tolist(self):
        waits["tolist"] += 1
        return self.inner.tolist()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, value):
        Tensor.data.__set__(self, value)
        self.inner = value.inner

    # What is saved is read from the memory itself.

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def storage(self):
        return self.inner.storage()

    def data_ptr(self):
        return self.inner.data_ptr()

    def __reduce_ex__(self, protocol):
        return PretendTensor, (self.inner, self.requires_grad)

    def __deepcopy__(self, memo):
        copied = PretendTensor(self.inner.detach().clone(), self.requires_grad)
        memo[id(self)] = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        if self.grad is not None:
            memo[id(self)].grad = copy.deepcopy(self.grad, memo)
        return memo[id(self)]


class PretendDevice(TorchDispatchMode):
    """Lets tensors be made on the device, and brought there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        return _dispatch(func, args, kwargs)


def _dispatch(func, args, kwargs):
    if torch.is_inference_mode_enabled():  # a tensor made there could not hold another
        with torch.inference_mode(mode=False), torch.no_grad():
            return _compute(func, args, kwargs)
    return _compute(func, args, kwargs)


def _compute(func, args, kwargs):
    """Do an operation on the CPU, with the result where it would be."""
    name = func._schema.name.removeprefix("aten::")
    if name == "_pin_memory":
        return args[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    here = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.ndim > 0]
    is_there = bool(there)
    if kwargs.get("device") is not None:
        is_there = torch.device(kwargs["device"]).type == NAME
    elif name == "copy_":
        is_there = isinstance(args[0], PretendTensor)
    _note(name, args, kwargs, there=there, here=here, is_there=is_there)
    plain_args, plain_kwargs = tree_map(_on_cpu, (args, kwargs))
    output = func(*plain_args, **plain_kwargs)
    if not is_there:
        return args[0] if name == "copy_" else output
    if not there and any(output is arg for arg in plain_args):
        output = output.clone()
    output = tree_map(lambda made: PretendTensor(made) if isinstance(made, Tensor) else made, output)
    return return_and_correct_aliasing(func, args, kwargs, output) if there else output


def _on_cpu(value):
    if isinstance(value, PretendTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _note(name, args, kwargs, *, there, here, is_there):
    """Refuse tensors of two devices, and count what must wait."""
    is_transfer = name in ("_to_copy", "copy_")
    if there and here and not is_transfer:
        if name not in _INDEXING:
            shapes = [tuple(tensor.shape) for tensor in here]
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} got {shapes} on the CPU.")
        waits[f"{name} by an index of the CPU"] += 1
    if name in _WAIT_FOR_A_VALUE and there:
        waits[name] += 1
    if name in _INDEXING and there and any(index is not None and index.dtype == torch.bool for index in args[1]):
        waits[f"{name} by a mask"] += 1
    if is_transfer and there and not is_there:
        waits["to the CPU"] += 1


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
# Autocast is not what is looked at here.
_library = torch.library.Library("_", "IMPL")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=...) comes by PretendDevice
torch.serialization.add_safe_globals([PretendTensor])
