"""Tensor with a shape and no numbers that records the operations applied to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headscope.kernels.errors import UnsupportedModel

METADATA = {
    "shape", "dtype", "device", "ndim", "size", "dim", "numel", "__len__", "requires_grad",
    "is_floating_point", "layout", "is_cuda", "is_sparse", "is_nested", "is_quantized", "is_meta",
}  # fmt: skip
# The same step has a name as a function, as a method and as an operator.
NAMES = {
    "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "multiply": "mul",
    "__truediv__": "div", "__itruediv__": "div", "true_divide": "div", "divide": "div",
    "__add__": "add", "__radd__": "add", "__iadd__": "add",
    "__sub__": "sub", "__isub__": "sub", "subtract": "sub",
    "__matmul__": "matmul", "bmm": "matmul",
    "reshape": "view", "type_as": "to", "float": "to", "type": "to",
    "__invert__": "invert", "logical_not": "invert", "bitwise_not": "invert",
    "__lt__": "lt", "less": "lt", "maximum": "max",
}  # fmt: skip


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a step, however it is written."""
    raw = getattr(function, "__name__", str(function))
    if raw == "__get__":
        raw = str(getattr(getattr(function, "__self__", None), "__name__", raw))
    return NAMES.get(raw, raw)


def _fits(follow: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    try:
        inspect.signature(follow).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


class Unknown(UnsupportedModel):
    """A step that is not followed, without the name of the module that takes it."""


class SymbolicTensor(Tensor):
    """A tensor whose numbers are never made.

    A step that has a method ``do_<name>`` makes another one, or the result; any other step is
    refused, so nothing that a model does to it can be missed.
    """

    rank = 0
    kind = "its masks"

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Any:
        """Create the tensor without data."""
        return Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Accept the arguments of `__new__`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Follow one step."""
        kwargs = kwargs or {}
        name = name_of(func)
        if name in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        # What knows more goes first: scores know how to add a mask, not the other way round.
        inputs = (*args, *kwargs.values())
        tensors = [tensor for tensor in inputs if isinstance(tensor, SymbolicTensor)]
        tensors.sort(key=lambda tensor: -tensor.rank)
        inside = name.endswith("_") and not name.startswith("__")
        step = NAMES.get(name[:-1], name[:-1]) if inside else name
        for tensor in tensors:
            follow = getattr(tensor, f"do_{step}", None)
            if follow is None or not _fits(follow, args, kwargs):
                continue
            result = follow(*args, **kwargs)
            return tensor.become(result) if inside and args[0] is tensor else result
        kind = tensors[0].kind if tensors else "a list of its masks or scores"
        raise Unknown(f"{name}: {kind} go through a step that is not known")

    def same(self, tensor: object) -> bool:
        """Return whether an argument is this one."""
        return tensor is self

    def become(self, other: SymbolicTensor) -> SymbolicTensor:
        """Become the result of a step that changes a tensor in place."""
        raise Unknown(f"{self.kind} are changed in place, which is not known")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse what comes around `__torch_function__`: there are no numbers to answer with."""
        raise Unknown(f"{func}: a mask or scores go through a step that is not known")

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Describe the operation it represents."""
        return f"<{self.kind}, no numbers>"
