"""Share of attention on the first keys.

The first ``first`` real keys of the sequence: padding on the left is not counted as a key. A key
outside the window has no weight.
"""

from operator import attrgetter

from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.statistic import Statistic


def from_dense(dense: DenseAttention) -> Tensor:
    """Add the weights of the keys whose rank among the real keys is small enough."""
    return (dense.weights * (dense.ranks < dense.request.first)).sum(dim=-1)


STATISTIC = Statistic(
    name="first_mass",
    dims=("query",),
    merge="average",
    units="share",
    high=1.0,
    formula="Σ_{j < first} P_ij",
    source="Efficient Streaming Language Models with Attention Sinks (Xiao et al. 2023)",
    triton=("gathers",),
    doc=__doc__,
    panel=attrgetter("first_sum"),
    dense=from_dense,
    reductions=("first_sum",),
)
