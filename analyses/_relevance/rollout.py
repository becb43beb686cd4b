"""Rollout: attention, mean over heads with the residual stream, multiplied through the layers.

The row of the answer's position of ``Π_l rownorm(mean_h A_l + I)``, at any length of the text.
Source: Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928).
"""

import numpy as np

from headscope.analyses._relevance._attention_flow import step
from headscope.analyses._relevance._rows import check_layers, one_hot
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = False


def relevance(trace: Trace, *, first: bool = True) -> Array:
    """Return the row of the answer's position (token,), shares that sum to 1."""
    check_layers(trace)
    rows = one_hot(trace)
    for number in reversed(range(trace.model.layers)):
        layer = trace.layers[number]
        rows = step(rows, layer.call.query, layer.call.key, layer.spec, first=first)
    return np.asarray(rows[0, 0, :, 0].double().cpu().numpy())
