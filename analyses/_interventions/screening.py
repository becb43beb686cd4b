"""Screening: where a model has many heads, which of them are worth an ablation.

Gradients rank all heads in a few passes. Ablated are the heads that any of the rankings puts first
or that an analysis singles out, and a random sample of the others, which says what the screening
misses. A head that is not ablated is missing from the result, never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from headscope.analyses._interventions import head_gradients
from headscope.analyses._interventions.head_sets import Head
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._runtime.results import top
from headscope.kernels.formatting import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float
    from torch import Tensor

    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

# A model with no more heads than FEW has all of them ablated. Else the FIRST of every ranking, and
# SAMPLE of the others.
FEW, FIRST, SAMPLE = 64, 16, 16

ALL = "all {total} heads"
SOME = (
    "{ablated} of {total} heads: {first} that stand out or that a gradient ranks first, and "
    "{drawn} of the others, drawn at random"
)
_COUNTS = re.compile("|".join(re.sub(r"{\w+}", r"\\d+", text) for text in (ALL, SOME)))


def without_counts(convention: str) -> str:
    """Return a convention without which heads were ablated.

    Those that were not are missing, so that scores of two runs mean the same head by head.
    """
    return _COUNTS.sub("heads", convention)


@dataclass(frozen=True)
class Screen:
    """Which heads are ablated, and which of them were drawn at random from those ranked lower."""

    heads: Bool[Tensor, "layer head"]
    sample: Bool[Tensor, "layer head"]
    total: int

    @property
    def complete(self) -> bool:
        """Whether every head is ablated."""
        return int(self.heads.sum()) == self.total

    @property
    def convention(self) -> str:
        """Return which heads are ablated, as a part of a convention."""
        ablated, drawn = int(self.heads.sum()), int(self.sample.sum())
        if self.complete:
            return ALL.format(total=self.total)
        return SOME.format(ablated=ablated, total=self.total, first=ablated - drawn, drawn=drawn)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Number of heads that each ablated one represents (layer, head); NaN elsewhere.

        The sample stands for all heads that nothing ranks first.
        """
        drawn = int(self.sample.sum())
        lower = self.total - int(self.heads.sum()) + drawn
        weights = np.where(self.sample.numpy(), lower / max(drawn, 1), 1.0)
        return np.where(self.heads.numpy(), weights, np.nan)

    def missed(self, above: NDArray[np.bool_], bar: str = "the null") -> str:
        """Return how many heads the screening may have missed.

        ``above`` marks the heads (layer, head) that the result singles out, those above ``bar``.
        """
        from scipy.stats import binomtest

        if self.complete:
            return ""
        drawn = int(self.sample.sum())
        if not drawn:
            return f"Ablated were {self.convention}; exhaustive=true ablates all."
        count = int((above & self.sample.numpy()).sum())
        rest = self.total - int(self.heads.sum())
        upper = binomtest(count, drawn).proportion_ci().high
        return (
            f"Ablated were {self.convention}. {count or 'None'} of the {drawn} lie above {bar}, "
            f"so that of the {rest} heads not ablated up to {percent(upper)} may, too (95 % "
            "interval); exhaustive=true ablates all."
        )


def screen(
    model: Model,
    task: EncodedTask,
    metric: str,
    stand_ins: Sequence[Float[Tensor, ...]] = (),
    *,
    also: Sequence[Head] = (),
    exhaustive: bool = False,
    seed: int = 0,
) -> Screen:
    """Choose the heads to ablate on a task.

    They are ranked by the gate gradient, and for each of ``stand_ins`` by the linear estimate of
    putting it in place of the head's output: one vector a head (layer, head, size) or the outputs
    on other prompts (prompt, layer, head, query, size). ``also`` are heads that the analysis itself
    singles out. The sample is drawn with ``seed``.
    """
    attending = torch.zeros(model.layers, model.heads, dtype=torch.bool)
    attending[model.geometry.attending] = True
    total = int(attending.sum())
    if exhaustive or total <= FEW:
        return Screen(attending, torch.zeros_like(attending), total)
    smooth = differentiable(metric)
    rankings = [head_gradients.gate_gradient(model, task, smooth).mean(0)]
    longest = max(map(len, task.ids))
    for values in stand_ins:
        if values.ndim == 3:
            values = values[None, :, :, None].expand(len(task), -1, -1, longest, -1)
        rankings.append(head_gradients.patch_gradient(model, task, smooth, values).mean(0))
    chosen = torch.zeros_like(attending)
    for layer, head in (
        *also,
        *(head for ranking in rankings for head in top(np.abs(ranking), FIRST)),
    ):
        chosen[layer, head] = True
    # In an order of all heads, so that screens of one model draw much the same.
    order = np.random.default_rng(seed).permutation(chosen.numel())
    drawn = [at for at in order.tolist() if bool((attending & ~chosen).flatten()[at])][:SAMPLE]
    sample = torch.zeros_like(attending)
    sample.view(-1)[drawn] = True
    return Screen(chosen | sample, sample, total)
