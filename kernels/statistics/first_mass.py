"""Share of attention on the first keys.

The first ``first`` real keys of the sequence: padding on the left is not counted as a key. A key
outside the window has no weight.
"""

from torch import Tensor

from headscope.kernels.panel import Panel
from headscope.kernels.statistic import Statistic
from headscope.kernels.whole import Whole


def of_panel(panel: Panel) -> Tensor:
    """Add the weights of the first columns, or of the first real keys behind padding."""
    if panel.visibility.key_mask is None:
        width = max(panel.request.first - panel.keys.start, 0)
        return panel.weights[..., :width].sum(dim=-1)
    keys = panel.visibility.first_keys(panel.request.first)
    return panel.at(keys[:, None]).sum(dim=-1)


def of_whole(whole: Whole) -> Tensor:
    """Add the weights of the keys whose rank among the real keys is small enough."""
    rank = whole.real_keys.long().cumsum(dim=-1)
    chosen = whole.real_keys & (rank <= whole.request.first)
    return (whole.weights * chosen[:, None, None]).sum(dim=-1)


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
