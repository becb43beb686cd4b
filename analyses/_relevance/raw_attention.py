"""Raw attention: what the answer's position attends to in the last layer, averaged over heads.

The baseline of Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928).
"""

import numpy as np
import torch

from headscope.analyses._relevance._rows import one_hot
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import push

SIGNED = False


def relevance(trace: Trace) -> Array:
    """Return the last layer's row of the answer's position (token,), shares."""
    layer = trace.layers[max(trace.layers)]
    heads = layer.z.shape[1]
    mean = torch.full((heads,), 1 / heads)
    row = push(one_hot(trace), layer.call.query, layer.call.key, layer.spec, heads=mean)
    return np.asarray(row[0, 0, :, 0].double().cpu().numpy())
