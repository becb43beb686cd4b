"""Gradients of attention in row panels: no query × key matrix, backwards either.

With logits L, weights P and g the gradient of the loss in each result,
dL_ij = P_ij (dP_ij - δ_i), where
dP_ij = g_z_i · v_j + Σ_s g_mass_is [key j in span s] - g_entropy_i log P_ij and
δ_i = g_z_i · z_i + Σ_s g_mass_is mass_is + g_entropy_i H_i - g_lse_i. A learned sink is one more
outcome, with dP = -g_entropy log P. Where each weight is a sigmoid, dL_ij = P_ij (1 - P_ij) dP_ij.
The weights are computed again, panel by panel, not kept.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.plan import Part
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.panels.scores import narrow
from headscope.kernels.statistics.span_mass import members

NEVER = -1e4
"""Logarithm of a weight that is 0 even in float64: finite, so that 0 · it stays 0."""


def differentiate(
    panels: Panels, results: Mapping[str, Tensor], upstream: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Propagate gradients of the results of an attention call to its inputs.

    FlashAttention, algorithm 4 (Dao et al. 2022), to which ``lse``, entropy and masses add terms.
    """
    # What is missing in a result is a constant.
    gradients = {
        name: gradient if name == "z" else torch.where(results[name].isfinite(), gradient, 0.0)
        for name, gradient in upstream.items()
    }
    gradients["delta"] = balance(results, gradients)
    scale, cap = panels.spec.scale, panels.spec.softcap
    assert scale is not None
    # Parts that share a KV head may run side by side: each group of heads has a sum of its own.
    groups = sorted({part.group.start for part in panels.parts()})
    empty = panels.q.new_empty(0, dtype=panels.precision)
    grad_q = empty.new_empty(panels.q.shape)
    grad_k = empty.new_zeros(len(groups), *panels.k.shape)
    grad_v = empty.new_zeros(len(groups), *panels.v.shape)
    grad_sinks = empty.new_zeros(panels.q.shape[:2])

    def work(part: Part, filled: Iterator[Panel]) -> None:
        heads, kv = (part.batch, part.heads), (groups.index(part.group.start), part.batch, part.kv)
        k = real_keys(panels, part)
        sum_k, sum_v = (sums[kv].view(*k.shape[:2], -1) for sums in (grad_k, grad_v))
        factor = scale / temperatures(panels, part.heads)
        for panel in filled:
            rows, keys = (*heads, panel.queries), panel.keys
            above = {
                name: blank(gradient[rows], panel.invalid_rows)
                for name, gradient in gradients.items()
            }
            if "z" in above:
                sum_v[:, keys].baddbmm_(flat(panel, panel.weights).mT, flat(panel, above["z"]))
            slope = descend(panel, above, panels.spec.sigmoid)
            if panel.sinks is not None:
                grad_sinks[heads] += descend_sinks(panel, above).sum(dim=-1)
            q = blank(panels.q[rows].to(k.dtype), panel.invalid_rows)
            if cap is not None:
                uncap(panel, slope, q * (scale / cap), k[:, keys])
            hold(panels, part, panel, slope)
            steps = flat(panel, slope)
            grad_q[rows] = torch.bmm(steps, k[:, keys]).view(q.shape).mul_(factor)
            sum_k[:, keys].baddbmm_(steps.mT, flat(panel, q * factor))

    panels.for_each_part(work)
    grads = {"q": grad_q}
    for name, sums in (("k", grad_k), ("v", grad_v)):
        grads[name] = sums[0] if len(sums) == 1 else sums.sum(dim=0)
    if panels.spec.sinks is not None:
        grads["sinks"] = (grad_sinks.sum(dim=0)[:, None, None] / temperatures(panels)).flatten()
    return grads


def balance(
    results: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> Float[Tensor, "batch head query"]:
    """Compute δ: what a row's normaliser takes off every dP of the row."""
    delta = torch.zeros_like(results["z"][..., 0])
    for name, gradient in gradients.items():
        if name == "lse":
            delta -= gradient
        else:
            delta += (gradient * results[name].nan_to_num()).view(*delta.shape, -1).sum(dim=-1)
    return delta


def descend(
    panel: Panel, above: Mapping[str, Tensor], sigmoid: bool
) -> Float[Tensor, "batch head query key"]:
    """Compute dL, the gradient in the finished logits, in the panel's scratch memory."""
    slope = panel.scratch
    if "z" in above:
        torch.bmm(flat(panel, above["z"]), panel.values.mT, out=flat(panel, slope))
    else:
        slope.zero_()
    if "span_mass" in above:
        assert panel.spans is not None
        masses = above["span_mass"]
        belongs = members(panel.spans, masses.shape[-1]).to(slope.dtype)
        slope.flatten(1, 2).baddbmm_(masses.flatten(1, 2), belongs.mT)
    if "entropy" in above:
        # The logits are not read again: their memory takes g log P.
        logs = panel.logits.sub_(panel.lse[..., None]).clamp_min_(NEVER)
        if panel.invalid_rows is not None:
            logs.masked_fill_(panel.invalid_rows[..., None], 0.0)
        slope.sub_(logs.mul_(above["entropy"][..., None]))
    if sigmoid:
        return slope.mul_(panel.weights).addcmul_(slope, panel.weights, value=-1)
    return slope.sub_(above["delta"][..., None]).mul_(panel.weights)


def descend_sinks(panel: Panel, above: Mapping[str, Tensor]) -> Float[Tensor, "batch head query"]:
    """Compute the gradient in the finished logit of the learned sink, for every query."""
    assert panel.sinks is not None
    slope = -above["delta"]
    if "entropy" in above:
        slope = slope - above["entropy"] * (panel.sinks - panel.lse)
    return blank(panel.sink_prob * slope, panel.invalid_rows)


def uncap(panel: Panel, slope: Tensor, q: Tensor, k: Tensor) -> None:
    """Multiply, in place, by the derivative of the soft cap: 1 - tanh² of score / cap."""
    # The finished logits hold more than the capped score, so that is computed again.
    share = torch.bmm(flat(panel, q), k.mT, out=flat(panel, panel.logits)).tanh_().square_()
    flat(panel, slope).addcmul_(flat(panel, slope), share, value=-1)


def hold(panels: Panels, part: Part, panel: Panel, slope: Tensor) -> None:
    """Set the rows of a fixed pattern to 0, in place: no score moves them."""
    edits = panels.spec.edits
    if edits is not None and edits.pattern is not None:
        rows = narrow(edits.pattern, part.batch, part.heads, panel.queries)[..., :1]
        slope.masked_fill_(~rows.isnan(), 0.0)


def temperatures(panels: Panels, heads: slice = slice(None)) -> Tensor | float:
    """Return the temperatures of some heads (head, 1, 1), or 1 where there is none."""
    edits = panels.spec.edits
    if edits is None or edits.temperature is None:
        return 1.0
    return edits.temperature.to(panels.precision)[heads, None, None]


def real_keys(panels: Panels, part: Part) -> Float[Tensor, "batch_kv_head key size"]:
    """Return the keys of a part, 0 at padding, which may hold NaN."""
    k = panels.k[part.batch, part.kv].to(panels.precision)
    if panels.spec.key_mask is not None:
        k = k.masked_fill(~panels.spec.key_mask[part.batch, None, :, None], 0.0)
    return k.flatten(0, 1)


def blank(
    rows: Float[Tensor, "batch head query *size"],
    invalid_rows: Bool[Tensor, "batch head query"] | None,
) -> Float[Tensor, "batch head query *size"]:
    """Set rows of queries that are padding or see no key to 0: 0 · NaN is NaN."""
    if invalid_rows is None:
        return rows
    return rows.masked_fill(invalid_rows.view(*invalid_rows.shape, *[1] * (rows.ndim - 3)), 0.0)


def flat(panel: Panel, rows: Tensor) -> Float[Tensor, "batch_kv_head row _"]:
    """Stack the query heads that share a KV head, and their queries, along one axis."""
    return rows.reshape(len(panel.values), -1, rows.shape[-1])
