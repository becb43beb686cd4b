"""Softmax of a panel in torch, a few rows at a time so that they stay in the cache."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.panels.logits import EXACT_ROWS, SHARP, Buffers, Logits, PanelResult
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.ranges import length, split_range
from headscope.kernels.visibility import MASKED, Block

CACHED = 3 << 16
"""Elements of the rows taken at once: these and a copy take 1.5 MB of a core's own cache."""
NEGLIGIBLE = -75.0
"""Logit, less the row's largest, below which a weight of a sharp panel is 0: under 3e-33. Denormal
weights would slow every later product down several times."""
NEED_LOGITS = frozenset({"logits", "topk_index", "topk_weights"})
"""Properties of a panel that need its logits beside the weights."""


@dataclass(eq=False)
class Softmax:
    """Softmax of the panels of some sequences and heads, with by-products such as the row maximum.

    ``scratch`` holds logits of float64, ``reductions`` names the properties of panels that are
    read. ``exact`` tells that the next panel is made in float64 at once: all of the one before was
    too coarse.
    """

    logits: Logits
    scratch: Scratch
    sigmoid: bool
    sinks: Float[Tensor, "head 1"] | None
    reductions: frozenset[str]
    exact: bool = False

    @cached_property
    def keeps_logits(self) -> bool:
        """Whether logits stay beside the weights, which else take their place."""
        return bool(self.reductions & NEED_LOGITS)

    def fill(self, block: Block, buffers: Buffers) -> PanelResult:
        """Convert the logits of a block into weights."""
        logits = buffers.panel
        weights = buffers.spare if self.keeps_logits else logits
        few = buffers.scratch.view(-1, logits.shape[-1])
        if self.exact:
            sharp = self.groups(block)
            self.recompute(block, logits, sharp)
            computed = self.normalize(logits, weights, few, sharp=True)
            self.exact = self.sharp(block, computed["max_logit"]) == sharp
        else:
            computed = self.normalize(self.logits.put(block, logits), weights, few)
            sharp = self.sharp(block, computed["max_logit"])
            for rows in sharp:
                exact = self.logits.exact(block, rows, self.scratch)
                if self.keeps_logits:
                    logits[:, :, rows] = exact
                for name, part in self.normalize(exact, exact, few, sharp=True).items():
                    computed[name][:, :, rows] = part
                weights[:, :, rows] = exact
            self.exact = sharp == self.groups(block)
        if self.sinks is not None:
            self.apply_sinks(weights, computed)

        def compute_logits() -> Tensor:
            if self.keeps_logits:
                return logits
            self.logits.put(block, buffers.spare)
            return self.recompute(block, buffers.spare, sharp)

        return PanelResult(weights, computed.pop("max_logit"), compute_logits, computed)

    def apply_sinks(self, weights: Tensor, computed: dict[str, Tensor]) -> None:
        """Apply the learned sinks to weights that sum to 1 over the keys, in place."""
        assert self.sinks is not None
        keys = -computed["max_prob"].log()
        computed["lse_minus_max"] = torch.logaddexp(keys, self.sinks - computed["max_logit"])
        share = torch.exp(keys - computed["lse_minus_max"])
        weights.mul_(share[..., None])
        for name in ("max_prob", "mean_minus_max"):
            if name in computed:
                computed[name].mul_(share)

    def recompute(self, block: Block, logits: Tensor, groups: list[slice]) -> Tensor:
        """Make the logits of some groups of rows in float64, in place."""
        for rows in groups:
            self.logits.exact(block, rows, self.scratch, out=logits[:, :, rows])
        return logits

    def groups(self, block: Block) -> list[slice]:
        """Split the rows of a block into groups."""
        return list(split_range(0, length(block.queries), EXACT_ROWS))

    def sharp(self, block: Block, max_logit: Float[Tensor, "batch head query"]) -> list[slice]:
        """List the groups of rows among which some have logits that float32 is too coarse for."""
        if max_logit.dtype != torch.float32:
            return []
        low, high = torch.aminmax(max_logit)
        if float(low) >= -SHARP and float(high) <= SHARP:
            return []
        # A row without a visible key peaks at MASKED, which does not depend on its precision.
        coarse = (max_logit.abs() > SHARP) & (max_logit > MASKED / 2)
        return [rows for rows in self.groups(block) if bool(coarse[:, :, rows].any())]

    def normalize(
        self, logits: Tensor, weights: Tensor, scratch: Tensor, *, sharp: bool = False
    ) -> dict[str, Float[Tensor, "batch head query"]]:
        """Convert logits into weights, which may take their place, and return by-products."""
        if self.sigmoid:
            max_logit = logits.amax(dim=-1)
            torch.sigmoid(logits, out=weights)
            return {"max_logit": max_logit}
        keys = logits.shape[-1]
        # Only a processor has a cache to keep to; a GPU would wait for many small calls.
        count = max(CACHED // keys, 1) if logits.device.type == "cpu" else len(scratch)
        rows = torch.split(logits.view(-1, keys), count)
        outputs = rows if weights is logits else torch.split(weights.view(-1, keys), count)
        few = scratch[:count]
        chunks: dict[str, list[Tensor]] = {"max_logit": [], "max_prob": []}
        if "entropy" in self.reductions:
            chunks["mean_minus_max"] = []
        for chunk, into in zip(rows, outputs, strict=True):
            if chunk.shape[0] < few.shape[0]:
                few = few[: chunk.shape[0]]
            max_logit = chunk.amax(dim=-1, keepdim=True)
            gap = torch.sub(chunk, max_logit, out=few)
            if sharp:
                torch.nn.functional.threshold(gap, NEGLIGIBLE, MASKED, inplace=True)
            torch.softmax(gap, dim=-1, out=into)
            chunks["max_logit"].append(max_logit)
            chunks["max_prob"].append(into.amax(dim=-1))
            if "mean_minus_max" in chunks:
                chunks["mean_minus_max"].append(gap.mul_(into).sum(dim=-1))
        return {name: torch.cat(parts).view(logits.shape[:3]) for name, parts in chunks.items()}
