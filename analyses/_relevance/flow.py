"""Flow: how much could reach the answer from each token, by the maximum flow through the layers.

Capacities are those of rollout. Exact, one max-flow problem for every token, so for short texts.
Source: Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928).
"""

import numpy as np

from headscope.analyses._relevance._attention_flow import flow, mean_map, mix
from headscope.analyses._relevance._rows import check_layers
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.errors import NotApplicable

SIGNED = False
LONGEST = 128
"""Tokens: 30 layers take some 3 seconds, and time grows with their third power."""


def relevance(trace: Trace) -> Array:
    """Return the flow to each token (token,), shares that sum to 1."""
    check_layers(trace)
    size = len(trace.target.ids)
    if size > LONGEST:
        raise NotApplicable(
            f"text: {size} tokens, and flow is computed for up to {LONGEST}; use rollout or routes"
        )
    layers = [trace.layers[number] for number in range(trace.model.layers)]
    maps = [mean_map(layer.call.query, layer.call.key, layer.spec) for layer in layers]
    return np.asarray(flow(mix(np.stack(maps)[:, None]), [trace.target.at])[0])
