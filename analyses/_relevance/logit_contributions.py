"""Direct logit contributions: what all heads write to the answer itself from each token.

``A_ij v_j W_O`` of every head at the answer's position, through the norms with their scales frozen
and the unembedding, summed over layers and heads. What reaches the answer through the embeddings,
the MLPs or the positions between is not in it. Before a soft cap on the logits.
Sources: Elhage et al., A Mathematical Framework for Transformer Circuits (2021); Gandelsman et al.
(2310.05916).
"""

import numpy as np

from headscope.analyses._measurements.direct_logit_attribution import by_source, direction_of
from headscope.analyses._measurements.readout import Readout
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = True


def relevance(trace: Trace) -> Array:
    """Return the logits that all heads write directly from every token (token,)."""
    target = trace.target
    reads = trace.of_model(Readout)
    along = direction_of(trace.model, target.answer_ids, target.wrong_ids)[None]
    cache = reads.read_question(target.ids, target.at)
    shares = by_source(reads, cache, reads.before_norm(along, cache))
    return np.asarray(shares.sum((0, 1)).numpy())
