"""Convert traced attention to the fields of an `AttentionCall`."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from headscope.probes.attention.tracing.alibi import slopes
from headscope.probes.attention.tracing.mask_rule import declared_window
from headscope.probes.attention.tracing.scores import Attention


def fields(traced: Attention, module: nn.Module) -> dict[str, Any]:
    """Return the fields of an `AttentionCall` for a module outside the interface."""
    assert traced.value is not None
    inputs = {"query": traced.query, "key": traced.key, "value": traced.value}
    # Some models raise queries and keys to float32 themselves, and leave the values.
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in inputs.values()))
    rule, slope = traced.rule, slopes(traced)
    window = declared_window(module, rule)
    mask = unmask(rule.key_mask, window) if traced.query.shape[2] == 1 else rule.key_mask
    return {
        **{name: tensor.to(dtype) for name, tensor in inputs.items()},
        "scale": traced.scale,
        "causal": rule.causal,
        "window": window,
        "key_mask": None if mask is None else mask.expand(len(traced.query), -1),
        "slopes": slope,
        "bias": traced.bias if slope is None else None,
    }


def unmask(mask: Tensor | None, window: int | None) -> Tensor | None:
    """Take what a window hides from a single query for keys again, not for padding."""
    if mask is None or window is None or mask.shape[1] <= window:
        return mask
    real = mask.clone()
    real[:, :-window] = True
    return None if bool(real.all()) else real
