"""Share of attention on the target keys of each query.

Targets are chosen for every query, such as the keys after earlier occurrences of its token. The
weights of all its occurrences are added. NaN where a query has no target.
"""

import torch
from torch import Tensor

from headscope.kernels.dense_attention import DenseAttention
from headscope.kernels.panels.panel import Panel
from headscope.kernels.request import NO_KEY, Request
from headscope.kernels.statistic import Statistic


def targets_of(request: Request, length: int) -> range:
    """Number the targets of the request."""
    return range(0 if request.targets is None else request.targets.shape[1])


def from_panel(panel: Panel) -> Tensor:
    """Gather the weights of all occurrences and add them."""
    assert panel.targets is not None
    targets = panel.targets.transpose(1, 2)
    weights = torch.unflatten(panel.at(targets.flatten(2)), 3, targets.shape[2:])
    absent = torch.all(targets == NO_KEY, dim=-1)
    return weights.sum(dim=-1).masked_fill(absent[:, None], float("nan"))


def from_dense(dense: DenseAttention) -> Tensor:
    """Contract the weights with a matrix of ones at the targets."""
    assert dense.request.targets is not None
    targets = dense.request.targets
    chosen = torch.zeros(*targets.shape[:3], dense.weights.shape[-1] + 1, dtype=torch.float64)
    chosen.scatter_(3, torch.where(targets == NO_KEY, dense.weights.shape[-1], targets), 1.0)
    chosen = chosen[..., :-1]
    mass = torch.einsum("bhqk,btqk->bhqt", dense.weights, chosen)
    has_target = chosen.sum(dim=-1).transpose(1, 2)[:, None] > 0
    return torch.where(has_target, mass, torch.nan)


STATISTIC = Statistic(
    name="target_mass",
    dims=("query", "target"),
    merge="average",
    units="share",
    high=1.0,
    formula="Σ_{j in targets(i)} P_ij",
    source="In-context Learning and Induction Heads (Olsson et al. 2022)",
    triton=("gathers",),
    doc=__doc__,
    panel=from_panel,
    dense=from_dense,
    labels={"target": targets_of},
)
