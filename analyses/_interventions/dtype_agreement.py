"""How far effects of ablations in bfloat16 agree with those in float32, on a sample of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from headscope.analyses._interventions.metrics import UNITS
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses._stats.rank_correlation import agreement
from headscope.kernels.formatting import amount, percent

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

# Below this rank correlation the order of the heads is not that of float32.
LEAST_RHO = 0.9
# The variable of a result that holds the effect of no head at all.
NULL = "null_ablation"


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of mean effects, with its interval over prompts, and what differs most.

    ``largest`` is the largest difference of the mean over prompts, ``effect`` the largest mean
    effect in float32, both in the unit of the metric.
    """

    metric: str
    sets: int
    prompts: int
    rho: float
    lower: float
    upper: float
    largest: float
    effect: float

    def numbers(self) -> dict[str, str | float]:
        """Return its numbers by name, without those that are missing."""
        return {name: value for name, value in asdict(self).items() if value == value}

    def verdict(self, null: float) -> Verdict:
        """Conclude from it; ``null`` is what an effect must exceed, NaN where none was measured."""
        if null > 0:
            share = f"{percent(self.largest / null)} of what an effect must exceed"
        else:
            share = f"the largest effect {amount(self.effect)}"
        interval = f" ({self.lower:.3f} to {self.upper:.3f})" if self.prompts > 1 else ""
        text = (
            f"{self.sets} sets of heads on {self.prompts} prompts measured in float32 too: "
            f"Spearman ρ {self.rho:.3f}{interval}, largest "
            f"difference {amount(self.largest)} {UNITS[self.metric]}, {share}."
        )
        # A comparison with NaN, where no effect varies, is no agreement.
        if self.rho >= LEAST_RHO and not self.largest > null:
            return Verdict("supported", f"Ablations in bfloat16 agree with float32; {text}")
        return Verdict("disagreement", f"Ablations in bfloat16 do not agree with float32; {text}")


def compare(low: NDArray[np.float64], whole: NDArray[np.float64], metric: str) -> Agreement:
    """Compare effects of the same sets (prompt, set) in bfloat16 and in float32."""
    means = low.mean(0), whole.mean(0)
    return Agreement(
        metric, whole.shape[1], len(whole), *agreement(low, whole, 0),
        float(np.abs(means[0] - means[1]).max()), float(np.abs(means[1]).max()),
    )  # fmt: skip


def state(result: xr.Dataset, used: list[Agreement]) -> None:
    """Write into a result how far the bfloat16 of its ablations agrees, where it has any."""
    if not used:
        return
    null = float(result[NULL]) if NULL in result else float("nan")
    outcome = used[0].verdict(null)
    for comparison in used[1:]:
        outcome &= comparison.verdict(null)
    result.attrs["effects_dtype"] = "bfloat16"
    result.attrs["effects_agreement"] = [comparison.numbers() for comparison in used]
    if outcome.state == "disagreement":
        result.attrs["verdict"] = "disagreement"
    result.attrs["note"] = f"{result.attrs.get('note', '')} {outcome.text}".strip()
