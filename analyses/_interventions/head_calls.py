"""Attention calls of some heads of a layer, with queries, keys and values of their own."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from headscope.kernels.api import Request
from headscope.probes.attention.interface import AttentionCall

PLAIN = Request(stats=())


def of_heads(
    call: AttentionCall, heads: slice, query: Tensor, key: Tensor, value: Tensor
) -> AttentionCall:
    """Return the call of some query heads, given their queries, keys and values.

    What the scores of a head have of their own goes with it: its sink, its slope and its bias.
    """
    bias = call.bias
    if bias is not None and bias.shape[1] > 1:
        bias = bias[:, heads]
    sinks = None if call.sinks is None else call.sinks[heads]
    slopes = None if call.slopes is None else call.slopes[heads]
    return replace(call, query=query, key=key, value=value, sinks=sinks, slopes=slopes, bias=bias)


def outputs(call: AttentionCall) -> Float[Tensor, "row head position size"]:
    """Return z of a call in the dtype of the model, as its output projection takes it."""
    z: Tensor = call.attend(PLAIN)["z"]
    return z.to(call.query.dtype)
