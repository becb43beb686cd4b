"""Torch's way from logits to weights: a few rows at a time, which stay in the processor's cache."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.panels.logits import EXACT_ROWS, SHARP, Buffers, Filled, Logits
from headscope.kernels.panels.scratch import Scratch
from headscope.kernels.visibility import MASKED, Block

CACHED = 3 << 16
"""Elements of the rows taken at once: these and a copy take 1.5 MB of a core's own cache."""
NEGLIGIBLE = -75.0
"""Logit, less the row's largest, below which a weight of a sharp panel is 0: under 3e-33. Denormal
weights would slow every later product down several times."""
LOOKS = frozenset({"logits", "leaders", "leader_weights"})
"""Properties of a panel that need its logits beside the weights."""


@dataclass(eq=False)
class Softmax:
    """The weights of some sequences and heads, panel by panel, and what comes to light on the way.

    Parameters
    ----------
    logits
        Where the logits come from.
    scratch
        Memory for logits of float64.
    sigmoid
        Whether each weight is the sigmoid of its logit.
    sinks
        Logits of the heads' learned sinks, if any.
    wanted
        Which properties of the panels are read.
    exact
        Whether the next panel is made in float64 at once: all of the one before was too coarse.
    """

    logits: Logits
    scratch: Scratch
    sigmoid: bool
    sinks: Float[Tensor, "head 1"] | None
    wanted: frozenset[str]
    exact: bool = False

    @cached_property
    def apart(self) -> bool:
        """Whether logits stay beside the weights, which else take their place."""
        return bool(self.wanted & LOOKS)

    def fill(self, block: Block, buffers: Buffers) -> Filled:
        """Turn the logits of a block into weights.

        Parameters
        ----------
        block
            Which queries and keys.
        buffers
            Memory for the weights and for a few rows, and for the logits where they stay.
        """
        logits = buffers.panel
        weights = buffers.spare if self.apart else logits
        few = buffers.scratch.view(-1, logits.shape[-1])
        if self.exact:
            sharp = self.groups(block)
            self.sharpen(block, logits, sharp)
            known = self.turn(logits, weights, few, sharp=True)
            self.exact = self.sharp(block, known["peak"]) == sharp
        else:
            known = self.turn(self.logits.put(block, logits), weights, few)
            sharp = self.sharp(block, known["peak"])
            for rows in sharp:
                exact = self.logits.exact(block, rows, self.scratch)
                if self.apart:
                    logits[:, :, rows] = exact
                for name, part in self.turn(exact, exact, few, sharp=True).items():
                    known[name][:, :, rows] = part
                weights[:, :, rows] = exact
            self.exact = sharp == self.groups(block)
        if self.sinks is not None:
            self.drain(weights, known)

        def score() -> Tensor:
            if self.apart:
                return logits
            self.logits.put(block, buffers.spare)
            return self.sharpen(block, buffers.spare, sharp)

        return Filled(weights, known.pop("peak"), score, known)

    def drain(self, weights: Tensor, known: dict[str, Tensor]) -> None:
        """Give the learned sinks their share of weights that sum to 1 over the keys, in place."""
        assert self.sinks is not None
        keys = -known["top"].log()
        known["surplus"] = torch.logaddexp(keys, self.sinks - known["peak"])
        left = torch.exp(keys - known["surplus"])
        weights.mul_(left[..., None])
        for name in ("top", "drop"):
            if name in known:
                known[name].mul_(left)

    def sharpen(self, block: Block, logits: Tensor, groups: list[slice]) -> Tensor:
        """Make the logits of some groups of rows in float64, in place."""
        for rows in groups:
            self.logits.exact(block, rows, self.scratch, out=logits[:, :, rows])
        return logits

    def groups(self, block: Block) -> list[slice]:
        """Cut the rows of a block into groups."""
        count = block.queries.stop - block.queries.start
        return [
            slice(first, min(first + EXACT_ROWS, count)) for first in range(0, count, EXACT_ROWS)
        ]

    def sharp(self, block: Block, peak: Float[Tensor, "batch head query"]) -> list[slice]:
        """List the groups of rows among which some have logits that float32 is too coarse for."""
        if peak.dtype != torch.float32:
            return []
        low, high = torch.aminmax(peak)
        if float(low) >= -SHARP and float(high) <= SHARP:
            return []
        # A row without a visible key peaks at MASKED, which says nothing of its precision.
        coarse = (peak.abs() > SHARP) & (peak > MASKED / 2)
        return [rows for rows in self.groups(block) if bool(coarse[:, :, rows].any())]

    def turn(
        self, logits: Tensor, weights: Tensor, scratch: Tensor, *, sharp: bool = False
    ) -> dict[str, Float[Tensor, "batch head query"]]:
        """Turn logits into weights, which may take their place, and tell what else is known.

        Parameters
        ----------
        logits, weights
            Those of whole rows, contiguous.
        scratch
            Memory for as many rows as are taken at once.
        sharp
            Whether small weights are left out.
        """
        if self.sigmoid:
            peak = logits.amax(dim=-1)
            torch.sigmoid(logits, out=weights)
            return {"peak": peak}
        keys = logits.shape[-1]
        # Only a processor has a cache to keep to; a GPU would wait for many small calls.
        count = max(CACHED // keys, 1) if logits.device.type == "cpu" else len(scratch)
        rows = torch.split(logits.view(-1, keys), count)
        made = rows if weights is logits else torch.split(weights.view(-1, keys), count)
        few = scratch[:count]
        found: dict[str, list[Tensor]] = {"peak": [], "top": []}
        if "entropy" in self.wanted:
            found["drop"] = []
        for one, into in zip(rows, made, strict=True):
            if one.shape[0] < few.shape[0]:
                few = few[: one.shape[0]]
            peak = one.amax(dim=-1, keepdim=True)
            gap = torch.sub(one, peak, out=few)
            if sharp:
                torch.nn.functional.threshold(gap, NEGLIGIBLE, MASKED, inplace=True)
            torch.softmax(gap, dim=-1, out=into)
            found["peak"].append(peak)
            found["top"].append(into.amax(dim=-1))
            if "drop" in found:
                found["drop"].append(gap.mul_(into).sum(dim=-1))
        return {name: torch.cat(parts).view(logits.shape[:3]) for name, parts in found.items()}
