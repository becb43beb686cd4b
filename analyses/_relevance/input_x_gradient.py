"""Input × gradient: each token's embedding times the answer's gradient in it.

Summed over the embedding dimensions: to first order, what the score loses without the embedding.
Source: Shrikumar et al., Not Just a Black Box (1605.01713).
"""

import numpy as np

from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = True


def relevance(trace: Trace) -> Array:
    """Return embedding · gradient of every token (token,), logits."""
    product = trace.embedding.double() * trace.embedding_gradient.double()
    return np.asarray(product.sum(-1).cpu().numpy())
