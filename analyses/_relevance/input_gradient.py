"""Input gradient: the size of the answer's gradient in each token's embedding.

The L2 norm over the embedding dimensions.
Source: Simonyan et al., Deep Inside Convolutional Networks (1312.6034).
"""

import numpy as np

from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = False


def relevance(trace: Trace) -> Array:
    """Return the norm of the gradient in every embedding (token,), logits per unit."""
    return np.asarray(trace.embedding_gradient.double().norm(dim=-1).cpu().numpy())
