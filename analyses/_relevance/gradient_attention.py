"""Gradient-weighted attention: attention times its gradient, followed through all layers.

``R ← R + Ā R`` from R = I, with ``Ā = mean_h (∇A ⊙ A)⁺`` and the gradient of the answer's score;
the row of the answer's position, its own share of 1 included, which Chefer et al. leave in.
Source: Chefer et al., Generic Attention-model Explainability (2103.15679), equations 5 and 6.
"""

import numpy as np

from headscope.analyses._relevance._rows import follow
from headscope.analyses._relevance.trace import LayerTrace, Trace
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Gradient

SIGNED = False


def link(number: int, layer: LayerTrace) -> Gradient:
    """Weigh the weights of a layer by their gradients, negative products as 0."""
    assert layer.dz is not None
    return Gradient(layer.call.value, layer.dz)


def relevance(trace: Trace) -> Array:
    """Return the row of the answer's position (token,), 1 plus logits in all."""
    rows, _ = follow(trace, link)
    return np.asarray(rows[:, 0].double().numpy())
