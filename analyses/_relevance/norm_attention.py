"""Norm-weighted attention: the size of what a token's values add to the answer's position.

``‖Σ_h A_ij v_j W_O‖`` for the answer's position i, as a share of the layer's sum, averaged over all
layers (the paper shows layers one by one; shares keep the last ones from drowning the first). The
residual stream, biases of the output and a norm behind it are left out, as in the paper.
Source: Kobayashi et al., Attention is Not Only a Weight (2004.10102).
"""

import numpy as np
import torch

from headscope.analyses._relevance._rows import one_hot, outwards
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import push

SIGNED = False
# Numbers of what heads write that are there at once.
CHUNK = 2**24


def relevance(trace: Trace) -> Array:
    """Return the mean share of every token (token,), which sum to 1."""
    norm_rows = norms(trace)
    shares = norm_rows / norm_rows.sum(1, keepdims=True).clip(1e-30)
    return np.asarray(shares.mean(0))


def norms(trace: Trace) -> Array:
    """Return the norms in every layer that has attention weights (layer, token)."""
    weights = trace.of_model(outwards)
    rows = []
    for number, layer in trace.layers.items():
        call = layer.call
        row = push(one_hot(trace), call.query, call.key, layer.spec)[0, :, :, 0].double().cpu()
        out = weights.of(number, "o")
        kv_heads, tokens = call.value.shape[1:3]
        groups = len(row) // kv_heads
        parts = []
        for keys in torch.split(torch.arange(tokens), max(1, CHUNK // out[0].numel())):
            value = call.value[0, :, keys].double().cpu()
            mixed = row[:, keys, None] * value.repeat_interleave(groups, 0)
            # All heads at once: their outputs lie side by side in front of one matrix.
            parts.append((mixed.permute(1, 0, 2).flatten(1) @ out.flatten(0, 1)).norm(dim=-1))
        rows.append(torch.cat(parts))
    return np.asarray(torch.stack(rows).numpy())
