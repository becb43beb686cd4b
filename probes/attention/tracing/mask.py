"""Symbolic attention mask: a rule in place of the matrix that mask functions return."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from headscope.probes.attention.tracing.mask_rule import MaskRule
from headscope.probes.attention.tracing.symbolic_tensor import SymbolicTensor, Unknown


class Mask(SymbolicTensor):
    """A mask (batch, 1, query, key): 0 or a bias at keys that are seen, the least number at others.

    It is ``added`` to the scores, or a boolean whose form is ``seen`` or ``hidden``.
    """

    kind = "its masks"
    rule: MaskRule
    form: str
    bias: Tensor | None

    @staticmethod
    def of(
        rule: MaskRule,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        form: str = "added",
        bias: Tensor | None = None,
    ) -> Mask:
        """Make a mask."""
        mask = Mask(shape, dtype, device)
        mask.rule, mask.form, mask.bias = rule, form, bias
        return mask

    def _turned(self, form: str) -> Mask:
        return Mask.of(self.rule, tuple(self.shape), torch.bool, self.device, form)

    def do_to(self, mask: Any, *kinds: Any, **options: Any) -> Mask:
        """Change the type; what is added becomes, as a boolean, what is hidden."""
        dtype = dtype_of(*kinds, **options) or self.dtype
        if dtype != torch.bool:
            if self.form != "added":
                raise Unknown("to: its boolean masks become numbers, which is not known")
            return Mask.of(self.rule, tuple(self.shape), dtype, self.device, bias=self.bias)
        if self.bias is not None:
            raise Unknown("to: a mask with a bias becomes boolean, which is not known")
        return self if self.form != "added" else self._turned("hidden")

    def do_bool(self, mask: Any) -> Mask:
        """Turn into a boolean."""
        turned: Mask = self.do_to(self, torch.bool)
        return turned

    def do_invert(self, mask: Any) -> Mask:
        """Turn hidden into seen, and back."""
        if self.form == "added":
            raise Unknown("invert: a mask of numbers is inverted, which is not known")
        return self._turned("seen" if self.form == "hidden" else "hidden")

    def do_lt(self, mask: Any, bound: Any) -> Mask:
        """Compare with a number between a bias and the least number."""
        if not self.same(mask) or self.form != "added" or self.bias is not None or not bound <= 0:
            raise Unknown("lt: a mask is compared in a way that is not known")
        return self._turned("hidden")

    def do___getitem__(self, mask: Any, places: Any) -> Mask:
        """Cut it, where the cut leaves everything."""
        places = places if isinstance(places, tuple) else (places,)
        ends = zip(places, self.shape, strict=False)
        if all(
            isinstance(index, slice)
            and index.start in (None, 0)
            and index.step in (None, 1)
            and (index.stop is None or index.stop >= size)
            for index, size in ends
        ):
            return self
        raise Unknown("__getitem__: a part of a mask is taken, which is not known")

    def do_masked_fill(self, target: Any, mask: Any, value: Any) -> Mask:
        """Put the least number in place of a bias, at hidden keys."""
        if not self.same(mask) or isinstance(target, SymbolicTensor) or self.form != "hidden":
            raise Unknown("masked_fill: a mask is filled in a way that is not known")
        check_least(value, target.dtype)
        shape = np.broadcast_shapes(self.shape, target.shape)
        return Mask.of(self.rule, shape, target.dtype, self.device, bias=target)


def dtype_of(*kinds: Any, **options: Any) -> torch.dtype | None:
    """Find the type among the arguments of ``to``; no argument is ``float()``."""
    if not kinds and not options:
        return torch.float32
    for value in (*kinds, *options.values()):
        if isinstance(value, torch.dtype):
            return value
        if isinstance(value, Tensor):
            return value.dtype
    return None


def least(dtype: torch.dtype) -> float:
    """Bound between a bias and what stands for minus infinity, such as -1e9."""
    return max(torch.finfo(dtype).min / 2, -1e8)


def check_least(value: Any, dtype: torch.dtype) -> None:
    """Refuse a number at hidden keys that a softmax would not turn into 0."""
    if float(value) > least(dtype):
        raise Unknown(f"mask: hidden keys get {float(value):.3g}, which does not hide them")
