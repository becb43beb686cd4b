"""Convert traced attention to the fields of an `AttentionCall`, ALiBi slopes among them."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from headscope.probes.attention.tracing.mask import declared_window
from headscope.probes.attention.tracing.scores import Attention

# A model rounds slope times position once.
ROUNDING = 2e-7


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
        "sigmoid": traced.sigmoid,
    }


def unmask(mask: Tensor | None, window: int | None) -> Tensor | None:
    """Restore the keys that a window hides from a single query: they are no padding."""
    if mask is None or window is None or mask.shape[1] <= window:
        return mask
    real = mask.clone()
    real[:, :-window] = True
    return None if bool(real.all()) else real


def slopes(attention: Attention) -> Tensor | None:
    """Read one slope a head from a bias that grows evenly from key to key, else nothing.

    In causal order a bias of slope · key and one of -slope · distance make the same weights; the
    second is exact far from the start of a text, where float32 rounds the first. Weights that are
    sigmoids tell the two apart, so there a bias stays one.
    """
    bias, mask = attention.bias, attention.rule.key_mask
    if bias is None or attention.sigmoid or bias.shape[2] != 1 or not attention.rule.causal:
        return None
    batch, heads, keys = *attention.query.shape[:2], bias.shape[3]
    rows = bias[:, :, 0].double().expand(batch, heads, keys)
    real = torch.ones(1, keys, dtype=torch.bool, device=bias.device) if mask is None else mask
    at = torch.arange(keys, dtype=torch.double, device=bias.device).expand(batch, keys)
    real = real.to(bias.device).expand(batch, keys)
    first = real.int().argmax(dim=-1, keepdim=True)
    last = keys - 1 - real.int().flip(-1).argmax(dim=-1, keepdim=True)
    longest = int((last - first).argmax())
    start, stop = int(first[longest]), int(last[longest])
    if stop <= start:  # to a single key no slope matters
        return torch.zeros(heads, device=bias.device)
    rate = (rows[longest, :, stop] - rows[longest, :, start]) / (stop - start)
    origin = rows.gather(2, first[:, None].expand(batch, heads, 1))
    even = origin + rate[:, None] * (at - first)[:, None]
    off = float(((even - rows).abs() * real[:, None]).max())
    return rate.float() if off <= ROUNDING * float(rows.abs().max()) else None
