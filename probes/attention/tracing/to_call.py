"""Reading: what was followed, in the fields of a `AttentionCall`."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from headscope.probes.attention.tracing.alibi import slopes
from headscope.probes.attention.tracing.mask_rule import declared_window
from headscope.probes.attention.tracing.scores import Attention


def fields(heard: Attention, module: nn.Module) -> dict[str, Any]:
    """Say what a module outside the interface computes, as the seam says it."""
    assert heard.value is not None
    inputs = {"query": heard.query, "key": heard.key, "value": heard.value}
    # Some models raise queries and keys to float32 themselves, and leave the values.
    dtype = functools.reduce(torch.promote_types, (one.dtype for one in inputs.values()))
    sight, slope = heard.sight, slopes(heard)
    window = declared_window(module, sight)
    mask = unmask(sight.key_mask, window) if heard.query.shape[2] == 1 else sight.key_mask
    return {
        **{name: one.to(dtype) for name, one in inputs.items()},
        "scale": heard.scale,
        "causal": sight.causal,
        "window": window,
        "key_mask": None if mask is None else mask.expand(len(heard.query), -1),
        "slopes": slope,
        "bias": heard.bias if slope is None else None,
    }


def unmask(mask: Tensor | None, window: int | None) -> Tensor | None:
    """Take what a window hides from a single query for keys again, not for padding."""
    if mask is None or window is None or mask.shape[1] <= window:
        return mask
    real = mask.clone()
    real[:, :-window] = True
    return None if bool(real.all()) else real
