"""Classify a mask as causal, sliding-window or padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from headscope.probes.attention.tracing.symbolic_tensor import Unknown

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


def read(seen: Tensor) -> MaskRule:
    """Read the rule behind a mask that a model has built, True where a key is seen."""
    seen = seen[(None,) * (4 - seen.ndim)] if seen.ndim < 4 else seen
    if seen.ndim != 4 or not torch.equal(seen, seen[:, :1].expand_as(seen)):
        raise Unknown(
            f"attention_mask: a mask of shape {tuple(seen.shape)}, but only one (batch, 1, query, "
            "key) that is the same for all heads is known"
        )
    seen = seen[:, 0]
    queries, keys = seen.shape[1:]
    if queries == 1:
        return MaskRule(key_mask=_some(seen[:, 0]))
    real = seen.any(dim=1)
    if torch.equal(real[:, None].expand_as(seen), seen):
        return MaskRule(key_mask=_some(real))
    rules = [MaskRule(True, None, real), MaskRule(True, _window(seen), real)]
    if queries == keys:  # else nothing tells which queries are padding
        rules.append(MaskRule(False, None, real))
    for rule in rules:
        if _tells(rule, seen, keys - queries):
            return MaskRule(rule.causal, rule.window, _some(real))
    raise Unknown(
        "attention_mask: the model builds a mask that is neither padding, causal nor a sliding "
        "window"
    )


def declared_window(module: nn.Module, rule: MaskRule) -> int | None:
    """Name the window of a layer, also where a text is too short to show it."""
    if getattr(module, "attention_type", None) != "local":
        return rule.window
    window = int(module.config.window_size)  # type: ignore[union-attr, arg-type]
    if rule.window not in (None, window):
        raise Unknown(f"attention_type: its window is {window}, but its mask has {rule.window}")
    return window


def _some(mask: Tensor) -> Tensor | None:
    return None if bool(mask.all()) else mask


def _window(seen: Tensor) -> int:
    """Count the keys from the first that the last query of any prompt sees."""
    first = seen[:, -1].int().argmax(dim=-1)
    return int((seen.shape[2] - first).max())


def _tells(rule: MaskRule, seen: Tensor, start: int) -> bool:
    """Compare a rule with a mask in the rows of real queries, some rows at a time."""
    assert rule.key_mask is not None
    keys = torch.arange(seen.shape[2], device=seen.device)
    for top in range(0, seen.shape[1], ROWS):
        rows = keys[top + start : top + start + ROWS, None]
        expected = (keys <= rows) | (not rule.causal)
        if rule.window is not None:
            expected = expected & (keys > rows - rule.window)
        expected = expected & rule.key_mask[:, None]
        real = rule.key_mask[:, rows[:, 0], None]
        if bool(((expected != seen[:, top : top + ROWS]) & real).any()):
            return False
    return True
