"""Share of a learned sink in each row.

What the weights of the keys lack to 1: the model was trained to leave this share unspent. 0 in
models without learned sinks.
"""

from torch import Tensor

from headscope.kernels.dense_attention import Whole
from headscope.kernels.panels.panel import Panel
from headscope.kernels.statistic import Statistic


def of_panel(panel: Panel) -> Tensor:
    """Read it off the row's normaliser."""
    return panel.sunk


def of_whole(whole: Whole) -> Tensor:
    """Take the last outcome."""
    return whole.outcomes.softmax(dim=-1)[..., -1]


STATISTIC = Statistic(
    name="sink_mass",
    dims=("query",),
    merge="row",
    units="share",
    low=0.0,
    high=1.0,
    scale="sequential",
    formula="exp(sink - lse_i) = 1 - Σ_j P_ij",
    source="gpt-oss-120b & gpt-oss-20b Model Card (OpenAI 2025)",
    execution="E0",
    doc=__doc__,
    panel=of_panel,
    dense=of_whole,
    distribution=True,
)
