"""Share of attention on the first keys.

The first ``first`` real keys of the sequence: padding on the left is not counted as a key. A key
outside the window has no weight.
"""

from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Take it from the panel, whose first keys may lie behind padding."""
    return panel.first_sum


def of_whole(whole: Whole) -> Tensor:
    """Add the weights of the keys whose rank among the real keys is small enough."""
    return (whole.weights * (whole.ranks < whole.request.first)).sum(dim=-1)


STATISTIC = Statistic(
    name="first_mass",
    dims=("query",),
    merge="average",
    units="share",
    low=0.0,
    high=1.0,
    scale="sequential",
    formula="Σ_{j < first} P_ij",
    source="Efficient Streaming Language Models with Attention Sinks (Xiao et al. 2023)",
    execution="E1",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    reductions=("first_sum",),
)
