"""Symbolic attention mask: a rule (causal, window, padding) in place of the matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from headscope.probes.attention.tracing.symbolic_tensor import SymbolicTensor, Unknown

ROWS = 1024


@dataclass(frozen=True, eq=False)
class MaskRule:
    """Which keys the queries of a layer attend to.

    In causal order a query sees no later key, and the last query stands at the last key. ``window``
    counts the keys back that it sees, itself included; ``key_mask`` is True at keys that may be
    seen at all.
    """

    causal: bool = False
    window: int | None = None
    key_mask: Bool[Tensor, "batch key"] | None = None

    def both(self, other: MaskRule) -> MaskRule:
        """Combine two rules: a key is seen where both allow it."""
        windows = [rule.window for rule in (self, other) if rule.window is not None]
        masks = [rule.key_mask for rule in (self, other) if rule.key_mask is not None]
        mask = masks[0] if masks else None
        if len(masks) == 2:
            mask = masks[0] & masks[1].to(masks[0].device)
        return MaskRule(self.causal or other.causal, min(windows, default=None), mask)


def read(mask: Tensor) -> MaskRule:
    """Read the rule behind a mask that a model has built, True where a key is seen."""
    mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 4 else mask
    if mask.ndim != 4 or not torch.equal(mask, mask[:, :1].expand_as(mask)):
        raise Unknown(
            f"attention_mask: a mask of shape {tuple(mask.shape)}, but only one (batch, 1, query, "
            "key) that is the same for all heads is known"
        )
    mask = mask[:, 0]
    queries, keys = mask.shape[1:]
    if queries == 1:
        return MaskRule(key_mask=_unless_all_true(mask[:, 0]))
    real = mask.any(dim=1)
    if torch.equal(real[:, None].expand_as(mask), mask):
        return MaskRule(key_mask=_unless_all_true(real))
    rules = [MaskRule(True, None, real), MaskRule(True, _window(mask), real)]
    if queries == keys:  # else nothing tells which queries are padding
        rules.append(MaskRule(False, None, real))
    for rule in rules:
        if _describes(rule, mask, keys - queries):
            return MaskRule(rule.causal, rule.window, _unless_all_true(real))
    raise Unknown(
        "attention_mask: the model builds a mask that is neither padding, causal nor a sliding "
        "window"
    )


def declared_window(module: nn.Module, rule: MaskRule) -> int | None:
    """Return the window that a layer declares, also where a text is too short to show it."""
    if getattr(module, "attention_type", None) != "local":
        return rule.window
    window = int(module.config.window_size)  # type: ignore[union-attr, arg-type]
    if rule.window not in (None, window):
        raise Unknown(f"attention_type: its window is {window}, but its mask has {rule.window}")
    return window


def _unless_all_true(mask: Tensor) -> Tensor | None:
    return None if bool(mask.all()) else mask


def _window(mask: Tensor) -> int:
    """Count the keys from the first that the last query of any prompt sees."""
    first = mask[:, -1].int().argmax(dim=-1)
    return int((mask.shape[2] - first).max())


def _describes(rule: MaskRule, mask: Tensor, start: int) -> bool:
    """Compare a rule with a mask in the rows of real queries, some rows at a time."""
    assert rule.key_mask is not None
    keys = torch.arange(mask.shape[2], device=mask.device)
    for top in range(0, mask.shape[1], ROWS):
        rows = keys[top + start : top + start + ROWS, None]
        expected = (keys <= rows) | (not rule.causal)
        if rule.window is not None:
            expected = expected & (keys > rows - rule.window)
        expected = expected & rule.key_mask[:, None]
        real = rule.key_mask[:, rows[:, 0], None]
        if bool(((expected != mask[:, top : top + ROWS]) & real).any()):
            return False
    return True


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
        """Create a mask."""
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
        """Convert to boolean."""
        turned: Mask = self.do_to(self, torch.bool)
        return turned

    def do_invert(self, mask: Any) -> Mask:
        """Invert hidden and visible."""
        if self.form == "added":
            raise Unknown("invert: a mask of numbers is inverted, which is not known")
        return self._turned("seen" if self.form == "hidden" else "hidden")

    def do_lt(self, mask: Any, bound: Any) -> Mask:
        """Compare with a number between a bias and the least number."""
        if not self.same(mask) or self.form != "added" or self.bias is not None or not bound <= 0:
            raise Unknown("lt: a mask is compared in a way that is not known")
        return self._turned("hidden")

    def do___getitem__(self, mask: Any, key: Any) -> Mask:
        """Slice the mask, where the slice keeps everything."""
        key = key if isinstance(key, tuple) else (key,)
        ends = zip(key, self.shape, strict=False)
        if all(
            isinstance(index, slice)
            and index.start in (None, 0)
            and index.step in (None, 1)
            and (index.stop is None or index.stop >= size)
            for index, size in ends
        ):
            return self
        raise Unknown("__getitem__: a part of a mask is taken, which is not known")

    def do_repeat(self, mask: Any, times: int, *others: int) -> Mask:
        """Give as many prompts the same mask."""
        if set(others) != {1} or len(others) != self.ndim - 1 or self.bias is not None:
            raise Unknown("repeat: a mask is repeated in a way that is not known")
        keys = self.rule.key_mask
        rule = self.rule if keys is None else replace(self.rule, key_mask=keys.repeat(times, 1))
        shape = (times * self.shape[0], *self.shape[1:])
        return Mask.of(rule, shape, self.dtype, self.device, self.form)

    def do_masked_fill(self, target: Any, mask: Any, value: Any) -> Mask:
        """Set the bias to the least number at hidden keys."""
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
