"""Share of a learned sink in each row.

One minus the sum of the weights of the keys: the share that the model leaves to the sink. 0 in
models without learned sinks.
"""

from operator import attrgetter

from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Return the weight of the last outcome."""
    return dense.outcomes.softmax(dim=-1)[..., -1]


STATISTIC = Statistic(
    name="learned_sink_mass",
    dims=("query",),
    merge="row",
    units="share",
    high=1.0,
    formula="exp(sink - lse_i) = 1 - Σ_j P_ij",
    source="gpt-oss-120b & gpt-oss-20b Model Card (OpenAI 2025)",
    triton=("forward",),
    doc=__doc__,
    panel=attrgetter("sink_prob"),
    dense=from_dense,
    distribution=True,
)
