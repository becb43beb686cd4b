"""Verdicts: what a result says about its claim, as a value beside the sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import TAIL, bootstrap, draws
from headscope.kernels.formatting import amount, percent

# What moves the output by less, in nats, is no effect to speak of, and nothing is a share of it.
LEAST_NATS = 0.01

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


def compare_shares(
    moved: NDArray[np.float64], what: str, groups: tuple[str, str], seed: int
) -> Verdict:
    """Conclude whether an edit does less of what ablation does in one group than in another.

    ``moved`` (prompt, 4) has nats of edit and ablation of the first group, then of the second. No
    share is stated of an ablation whose interval reaches below `LEAST_NATS`: where it is that of
    the second group, the edit of the first must move less than its ablation. ``what`` names the
    edit, ``groups`` where it is made.
    """
    if len(moved) < 2:
        return Verdict("too_few", f"One prompt has no interval: {what} is not compared.")
    means, above = moved.mean(0), bootstrap(moved, seed=seed)[1] > LEAST_NATS
    resampled = draws(len(moved), 1000, seed) / len(moved) @ moved
    if above[1] and above[3]:
        gap = resampled[:, 2] / resampled[:, 3] - resampled[:, 0] / resampled[:, 1]
        first, second = (percent(means[at] / means[at + 1]) for at in (0, 2))
        text = f"{what} does {first} of what ablation does in {groups[0]}, {second} in {groups[1]}"
        return causal_verdict(float(np.quantile(gap, TAIL)) > 0, text)
    text = "; ".join(
        f"in {group} {what} moves the output by {amount(means[at])} nats, ablation by "
        f"{amount(means[at + 1])}"
        for group, at in zip(groups, (0, 2), strict=True)
    )
    if not above[1]:
        return Verdict("too_few", f"Too little to take a share of: {text}.")
    return causal_verdict(float(np.quantile(resampled[:, 1] - resampled[:, 0], TAIL)) > 0, text)
