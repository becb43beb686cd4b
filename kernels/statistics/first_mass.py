"""Share of attention on the first keys.

The first ``first`` real keys of the sequence: padding on the left is not counted as a key. A key
outside the window has no weight.
"""

from torch import Tensor

from headscope.kernels.cpu.panel import Panel
from headscope.kernels.statistic import Statistic
from headscope.kernels.whole import Whole


def of_panel(panel: Panel) -> Tensor:
    """Add the weights of the first columns, or of the first real keys behind padding."""
    if panel.visibility.key_mask is None and panel.visibility.lengths is None:
        width = max(panel.request.first - panel.keys.start, 0)
        return panel.weights[..., :width].sum(dim=-1)
    keys = panel.visibility.first_keys(panel.request.first)
    keys = keys if keys.shape[1] == 1 else keys[:, panel.queries]
    return panel.at(keys).sum(dim=-1)


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
)
