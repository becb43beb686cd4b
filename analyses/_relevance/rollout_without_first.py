"""Rollout without the first token: rollout of maps whose first key, the sink, is left out.

Rows are divided by what is left of them before the residual stream is mixed in; the first token
keeps what it holds itself. Where heads put most of their weight on the first token, the product of
all layers ends at it and says nothing of the others. Sources: Abnar & Zuidema (2005.00928), for
rollout; Gu et al., When Attention Sink Emerges (2410.10781), for the sink.
"""

from headscope.analyses._relevance import rollout
from headscope.analyses._relevance.trace import Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = False


def relevance(trace: Trace) -> Array:
    """Return the row of the answer's position (token,), shares that sum to 1."""
    return rollout.relevance(trace, first=False)
