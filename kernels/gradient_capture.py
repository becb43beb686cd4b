"""Attention times its gradient: through which keys a loss depends on a head, without N×N.

The attribution of query i and key j is G_ij = P_ij · ∂loss/∂P_ij = P_ij · dz_i · v_j, where dz is
the loss's gradient in ``z`` and every weight counts as free. It is signed: positive where more of
this weight raises the loss. The attributions of a query add up to z_i · dz_i.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels import inputs
from headscope.kernels.attention_spec import PLAIN, AttentionSpec
from headscope.kernels.errors import InvalidInput
from headscope.kernels.gradients import attributions
from headscope.kernels.panels.engine import PanelEngine
from headscope.kernels.panels.panel import Panel
from headscope.kernels.panels.plan import Part
from headscope.kernels.panels.row_panels import Panels
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.request import Request
from headscope.kernels.visibility import MASKED


def capture_gradient(
    q: Float[Tensor, "batch head query size"],
    k: Float[Tensor, "batch kv_head key size"],
    v: Float[Tensor, "batch kv_head key value_size"],
    dz: Float[Tensor, "batch head query value_size"],
    request: Request,
    spec: AttentionSpec = PLAIN,
) -> dict[str, Tensor]:
    """Compute statistics of attention times its gradient, with memory linear in the text.

    Parameters
    ----------
    q, k, v
        As in ``attend``.
    dz
        Gradient of the loss in the heads' outputs ``z``, after any gate.
    request
        Names from ``headscope.kernels.gradients.attributions.STATISTICS``, and their ``tile`` and
        ``k``.
        ``attribution`` (query): Σ_j G_ij. ``attribution_received`` (key): Σ_i G_ij.
        ``attribution_pooled`` (query_tile, key_tile): the sum over both tiles.
        ``attribution_topk`` (query, rank): the ``k`` of largest absolute value, with their sign;
        ``attribution_topk_key`` (query, rank): the positions of their keys.
    spec
        How scores become weights.

    Returns
    -------
    Every statistic asked for, (batch, head, *its dims), in float32 and in the loss's units. NaN at
    queries that are padding or see no key, at keys that no query sees, at query tiles of padding
    only, and at ranks beyond the keys that a query sees.

    References
    ----------
    Self-Attention Attribution (Hao et al. 2021). Generic Attention-model Explainability
    (Chefer et al. 2021).

    Examples
    --------
    >>> q = torch.zeros(1, 1, 2, 1)
    >>> v = torch.tensor([[[[1.0], [3.0]]]])
    >>> wanted = Request(stats=("attribution_received",))
    >>> capture_gradient(q, q, v, torch.ones(1, 1, 2, 1), wanted)["attribution_received"]
    tensor([[[1.5000, 1.5000]]])
    """
    inputs.check_tensors(q, k, v, inputs.DTYPES)
    if dz.shape != (expected := (*q.shape[:3], v.shape[3])):
        raise InvalidInput(f"dz: shape {tuple(dz.shape)}; give that of z, {expected}")
    chosen = [attributions.load(name) for name in dict.fromkeys(request.stats)]
    spec = spec.fit(q, k)
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        dz = dz.to(q.device, torch.float32)
        if spec.edits is not None and spec.edits.gate is not None:
            dz = dz * spec.edits.gate[:, :, None, None]
        # Attributions take the place of weights and logits: torch's panels hold both.
        both = frozenset({"weights", "logits"})
        panels = GradientPanels(q, k, v, spec, request, reductions=both, engine="panels", dz=dz)
        return PanelEngine(panels).run(chosen)


@dataclass(frozen=True, eq=False)
class GradientPanels(Panels):
    """Panels whose weights are attributions, and whose logits are their absolute values."""

    dz: Tensor = field(kw_only=True)

    def fill(self, part: Part, memory: Callable[[], Tensor], scratch: Scratch) -> Iterator[Panel]:
        """Multiply the weights of each panel by their gradient."""
        for panel in super().fill(part, memory, scratch):
            rows = self.dz[part.batch, part.heads, panel.queries]
            if panel.invalid_rows is not None:
                # 0 · NaN is NaN: what is at padding must not reach the product.
                rows = rows.masked_fill(panel.invalid_rows[..., None], 0.0)
            slope = panel.scratch.view(len(panel.values), -1, panel.scratch.shape[-1])
            torch.bmm(rows.reshape(*slope.shape[:2], -1), panel.values.mT, out=slope)
            panel.weights.mul_(panel.scratch)
            hidden = panel.logits <= MASKED / 2
            torch.abs(panel.weights, out=panel.logits).masked_fill_(hidden, MASKED)
            # A panel of its own: nothing computed from the weights may be left over.
            yield replace(panel)
