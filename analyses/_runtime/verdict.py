"""Verdicts: what a result says about its claim, as a value beside the sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headscope.analyses._stats.effect_size import LEAST_PROMPTS, exceeds_zero
from headscope.kernels.formatting import amount, percent

# What moves the output by less, in nats, is no effect to speak of, and nothing is a share of it.
LEAST_NATS = 0.01
EVERY = slice(None)

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


def causal_verdict(
    above: ArrayLike, text: str, remark: str = "", claimed: slice | NDArray[Any] = EVERY
) -> Verdict:
    """Conclude from a causal check, of single heads and of groups of them by one rule.

    ``above`` (prompt,) or (prompt, comparison) has by how much an effect exceeds what it is held
    against, such as the effect of as many random heads. The check agrees where every comparison
    that is ``claimed`` lies above 0, by a t test corrected for all that were made; fewer than
    `LEAST_PROMPTS` prompts cannot tell. ``remark`` ends the sentence where it does not agree.
    """
    samples = np.asarray(above, dtype=float)
    samples = samples.reshape(len(samples), -1)
    count = int((~np.isnan(samples[:, claimed])).sum(0).min())
    if count < LEAST_PROMPTS:
        few = f"Too few prompts for a causal check ({count} of {LEAST_PROMPTS})"
        return Verdict("too_few", f"{few}: {text}.")
    if exceeds_zero(samples)[claimed].all():
        return Verdict("supported", f"Causal check agrees: {text}.")
    return Verdict("disagreement", f"Causal check does not agree: {text}{remark}.")


def interval_verdict(lower: float, above: str, not_above: str, unknown: str = "") -> Verdict:
    """Conclude from the lower end of an interval whether a number lies above 0."""
    if np.isnan(lower):
        return Verdict("too_few", unknown or not_above)
    return Verdict("supported", above) if lower > 0 else Verdict("disagreement", not_above)


def compare_shares(moved: NDArray[np.float64], edit: str, groups: tuple[str, str]) -> Verdict:
    """Conclude whether an edit does less of what ablation does in one group than in another.

    ``moved`` (prompt, 4) has nats of edit and ablation of the first group, then of the second. No
    share is stated of an ablation that is not shown to exceed `LEAST_NATS`: where it is that of the
    second group, the edit of the first must move less than its ablation. ``edit`` names the edit,
    ``groups`` where it is made.
    """
    means = moved.mean(0)
    measurable = exceeds_zero(moved[:, 1::2] - LEAST_NATS)
    if measurable.all():
        shares = means[::2] / means[1::2]
        # The share of every prompt to first order, whose mean is the share of the means.
        prompt_shares = shares + (moved[:, ::2] - shares * moved[:, 1::2]) / means[1::2]
        first, second = map(percent, shares)
        text = f"{edit} does {first} of what ablation does in {groups[0]}, {second} in {groups[1]}"
        return causal_verdict(prompt_shares[:, 1] - prompt_shares[:, 0], text)
    text = "; ".join(
        f"in {group} {edit} moves the output by {amount(means[at])} nats, ablation by "
        f"{amount(means[at + 1])}"
        for group, at in zip(groups, (0, 2), strict=True)
    )
    if not measurable[0]:
        return Verdict("too_few", f"Too little to take a share of: {text}.")
    return causal_verdict(moved[:, 1] - moved[:, 0], text)
