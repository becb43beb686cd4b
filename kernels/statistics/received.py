"""Mean weight that a key receives from the queries that can see it.

Above ε (usually 0.3) at the first key, the head has an attention sink there. NaN at a key that no
query can see.
"""

from operator import attrgetter

from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.request import Request
from headscope.kernels.statistic import Statistic
from headscope.kernels.visibility import Visibility


def finish(total: Tensor, visibility: Visibility, request: Request) -> Tensor:
    """Divide by the number of queries that see the key; 0 / 0 is NaN."""
    return total / visibility.query_counts[:, None]


def from_dense(dense: DenseAttention) -> Tensor:
    """Average each column over its visible entries."""
    return dense.weights.sum(dim=-2) / dense.visible.sum(dim=-2)


STATISTIC = Statistic(
    name="received",
    dims=("key",),
    merge="sum",
    units="share",
    high=1.0,
    formula="α_k = mean of P_ik over the queries i that can see key k",
    source="When Attention Sink Emerges in Language Models (Gu et al. 2024)",
    triton=("columns",),
    doc=__doc__,
    panel=attrgetter("key_sum"),
    dense=from_dense,
    reductions=("key_sum",),
    finish=finish,
)
