"""Verdicts: what a result says about its claim, as a value beside the sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import bootstrap

State = Literal["supported", "not_supported", "disagreement", "too_few"]
# The state that counts where several are joined is the first of these.
SEVERITY: tuple[State, ...] = ("disagreement", "too_few", "not_supported", "supported")


@dataclass(frozen=True)
class Verdict:
    """A conclusion: its state, and the sentences that users read.

    ``disagreement``: a causal number contradicts a correlational one, or two methods each other.
    ``too_few``: the sample cannot tell.
    """

    state: State
    text: str

    def __post_init__(self) -> None:
        if self.state not in SEVERITY:
            raise ValueError(f"state: {self.state!r} is not one of {', '.join(SEVERITY)}")

    def __and__(self, other: Verdict) -> Verdict:
        """Join two verdicts on one result; the more severe state counts.

        >>> (Verdict("supported", "It is.") & Verdict("disagreement", "It is not.")).state
        'disagreement'
        """
        state = min(self.state, other.state, key=SEVERITY.index)
        return Verdict(state, f"{self.text} {other.text}".strip())


def causal_verdict(agrees: bool, text: str, remark: str = "") -> Verdict:
    """Conclude from a causal check; the remark ends the sentence where it does not agree."""
    if agrees:
        return Verdict("supported", f"Causal check agrees: {text}.")
    return Verdict("disagreement", f"Causal check does not agree: {text}{remark}.")


def interval_verdict(lower: float, above: str, not_above: str, unknown: str = "") -> Verdict:
    """Conclude from the lower end of an interval whether a number lies above 0."""
    if np.isnan(lower):
        return Verdict("too_few", unknown or not_above)
    return Verdict("supported", above) if lower > 0 else Verdict("disagreement", not_above)


def compare_losses(
    less: NDArray[np.float64], more: NDArray[np.float64], seed: int, text: str
) -> Verdict:
    """Conclude from two losses (prompt,) whether the second is the larger one, as claimed."""
    if len(less) < 2:
        return Verdict("too_few", f"One prompt has no interval: {text}")
    lower = float(bootstrap(more - less, seed=seed)[1])
    return causal_verdict(lower > 0, text.removesuffix("."))
