"""Layer-wise relevance propagation: the score propagated back layer by layer, conserved.

The 0-limit of the ε rule in linear layers, attention weights and the scales of norms held constant,
activations passing relevance unchanged, gates held constant (`_lrp_rules`). The relevances of the
tokens and of the biases sum to the score; where they do not, the model does something that the
rules do not know, and is refused. Source: Bach et al. 2015 (ε rule); Arras et al. 2017 (gates); Ali
et al., XAI for Transformers: Better Explanations through Conservative Propagation (2202.07304).
"""

from headscope.analyses._relevance._lrp_rules import linear
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = True


def relevance(trace: Trace) -> Array:
    """Return the relevance of every token (token,), logits."""
    return linear(trace).tokens
