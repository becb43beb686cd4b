"""Information flow routes: importance of each token in the graph of what blocks add up.

Source: Ferrando & Voita, Information Flow Routes (2403.00824).
"""

from headscope.analyses._relevance import _routes
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = False
THRESHOLD = 0.01


def relevance(trace: Trace) -> Array:
    """Return the importance that reaches every token (token,), shares; biases take the rest."""
    blocks = trace.of_model(_routes.Blocks.of)
    streams = _routes.read(trace.model, trace.target.ids, blocks)
    return _routes.trace(streams, blocks, trace.target.at, THRESHOLD).tokens
