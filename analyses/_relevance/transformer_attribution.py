"""Transformer attribution: the gradient of attention times its LRP relevance, rolled out.

``Ā = mean_h (∇A ⊙ R_A)⁺`` and the row of the answer's position in the product of I + Ā over the
layers. R_A is the relevance of a weight by the rules of `lrp` (``A_ij v_j · g_i``, g the gradient
under these rules), where the authors' code has its own (α1β0) rules; I + Ā as their code for images
has it, without normalised rows (`gradient_relevance` has both variants).
Source: Chefer et al., Transformer Interpretability Beyond Attention Visualization (2012.09838).
"""

import numpy as np

from headscope.analyses._relevance._lrp_rules import linear
from headscope.analyses._relevance._rows import Link, follow
from headscope.analyses._relevance.trace import LayerTrace, Trace
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Gradient

SIGNED = False


def link(trace: Trace) -> Link:
    """Weigh the weights of a layer by gradient and relevance, negative products as 0."""
    relevant = linear(trace).graded_layers

    def of_layer(number: int, layer: LayerTrace) -> Gradient:
        assert layer.dz is not None
        return Gradient(layer.call.value, layer.dz, relevance=relevant[number].dz)

    return of_layer


def relevance(trace: Trace) -> Array:
    """Return the row of the answer's position (token,), 1 plus squared logits in all."""
    rows, _ = follow(trace, link(trace))
    return np.asarray(rows[:, 0].double().numpy())
