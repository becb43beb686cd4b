"""The forward pass of torch itself, and a check that its normalisers belong to our weights."""

import torch
from torch import Tensor

from headscope.kernels.errors import InvalidInput
from headscope.kernels.triton.first_pass import FirstPass
from headscope.kernels.triton.launch import LOG2E, Launch

SAMPLE = 16
"""Queries whose normaliser is recomputed."""
TOLERANCE = 1e-3
"""Largest |Σ_j P_ij - 1| of a sampled query."""


def run(launch: Launch) -> FirstPass:
    """Attend with torch's own fused attention; leaves z and lse."""
    q, k, v, spec = launch.q, launch.k, launch.v, launch.spec
    if spec.causal and q.shape[2] != k.shape[2]:
        raise InvalidInput(
            f"engine: torch's attention aligns {q.shape[2]} queries with the first of "
            f"{k.shape[2]} keys; use the fused forward pass"
        )
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    if q.device.type == "cpu":
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # torch's kernels take one KV head for each query head.
    k, v = (x.repeat_interleave(launch.group, dim=1) for x in (k, v))
    z, lse, *_ = attend(q, k, v, 0.0, spec.causal, scale=spec.scale)
    first = FirstPass(z.float(), lse.contiguous() * LOG2E, None, None)
    residual = norm_residual(launch, first.lse)
    if residual > TOLERANCE:
        raise RuntimeError(
            f"lse: weights of torch's forward pass sum to 1 ± {residual:.2g}; "
            "delete its entry from kernels/triton/measured.json"
        )
    return first


def norm_residual(launch: Launch, lse: Tensor) -> float:
    """Measure the largest |Σ_j P_ij - 1| over a few queries of every head."""
    queries, scale = launch.q.shape[2], launch.spec.scale
    assert scale is not None
    steps = torch.linspace(0, queries - 1, min(SAMPLE, queries), device=launch.q.device)
    rows = steps.long()
    q = torch.unflatten(launch.q[:, :, rows].float() * scale, 1, (-1, launch.group))
    logits = torch.einsum("bgrqd,bgkd->bgrqk", q, launch.k.float()).flatten(1, 2)
    key = torch.arange(launch.k.shape[2], device=rows.device)
    hidden = key >= launch.visibility.high[rows, None]
    gap = logits - lse[:, :, rows, None] / LOG2E
    sums = gap.masked_fill_(hidden, -torch.inf).exp_().sum(dim=-1)
    return float((sums - 1).abs().max())
