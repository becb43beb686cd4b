"""One head in short: its causal effect in a sentence, its types, its ranks, and what disagrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope import analyses, viz
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.app.report import head_kinds
from headscope.app.report.answer import IMPORTANCE, METHODS
from headscope.app.report.head_kinds import Kind
from headscope.app.report.scores import ABOVE, TOO_FEW, Score, interval_text
from headscope.kernels.formatting import ordinal

# The causal score that speaks first where a run has it, and the one that stands in for all.
MAIN, STAND_IN = f"{IMPORTANCE}.mean_ablation", "head_types.induction"
BARS = 6
# Where two rankings part: in the top share by one, in the bottom share by the other.
TOP, BOTTOM = 0.1, 0.5
RULE = (
    "Rule: among the top tenth of the heads by one and in the lower half by the other, of scores "
    "in the same units."
)
CHECKS = {
    "supported": "causal check agrees",
    "disagreement": "causal check disagrees",
    "not_supported": "causal check finds none",
    "too_few": "too few prompts to check",
}


@dataclass(frozen=True)
class Standing:
    """A head in one score: value, rank (1 for the largest), sharers of it, heads with a value.

    ``below`` is the share of the other heads with a smaller value, so that a head that shares the
    first rank with half of them is not at the top.
    """

    score: Score
    value: float
    rank: int
    tied: int
    of: int
    below: float

    @property
    def rank_text(self) -> str:
        """The rank in words, such as ``1st of 270``."""
        return f"{ordinal(self.rank, self.tied)} of {self.of}"


def standing(
    score: Score, layer: int, head: int, among: NDArray[np.bool_] | None = None
) -> Standing | None:
    """Rank a head in a score, by its index in the grid; None where it has no value.

    ``among`` tells which heads (layer, head) to rank it among; all, where it is left out.
    """
    values = np.asarray(score.array.values, dtype=float)
    if among is not None:
        values = np.where(among, values, np.nan)
    size = np.abs(values) if score.array.attrs.get("scale") == "diverging" else values
    at_head, measured = size[layer, head], int(np.isfinite(size).sum())
    if not np.isfinite(at_head):
        return None
    larger, smaller = int((size > at_head).sum()), int((size < at_head).sum())
    return Standing(
        score, float(values[layer, head]), larger + 1, measured - larger - smaller, measured,
        smaller / max(measured - 1, 1),
    )  # fmt: skip


def leading(scores: Mapping[str, Score]) -> str:
    """Return the score that a run opens with: causal where one has an effect, else induction."""
    shown = [key for key, score in scores.items() if score.with_effect]
    for key in (*(key for key in (MAIN,) if key in shown), *shown, STAND_IN):
        if key in scores:
            return key
    return next(iter(scores))


def top_head(score: Score) -> tuple[int, int]:
    """Return the index of the first head of a score; (0, 0) where none has a value."""
    ranks = score.ranks().values
    first = int(np.nanargmin(ranks)) if np.isfinite(ranks).any() else 0
    return first // ranks.shape[1], first % ranks.shape[1]


def causal_score(scores: Mapping[str, Score]) -> Score | None:
    """Return the main causal score of a run: mean ablation, else one with a verdict."""
    causal = {key: score for key, score in scores.items() if score.is_causal}
    tested = [score for score in causal.values() if score.with_effect]
    return causal.get(MAIN) or next(iter([*tested, *causal.values()]), None)


def causal_sentence(
    results: Mapping[str, xr.Dataset], scores: Mapping[str, Score], layer: int, head: int
) -> str:
    """Describe in one sentence what an intervention on a head does, or that none was made."""
    score = causal_score(scores)
    if score is None:
        return "No causal number in this run: no head was ablated or patched."
    analysis, variable = score.key.split(".", 1)
    result, entry = results[analysis], standing(score, layer, head)
    labelled = [
        int(score.array[dim][at]) if dim in score.array.coords else at
        for dim, at in (("layer", layer), ("head", head))
    ]
    name = viz.head_name(labelled[0], labelled[1])
    method = METHODS.get(variable, "") if analysis == IMPORTANCE else ""
    if entry is None:
        convention = str(score.array.attrs.get("convention", ""))
        return (
            f"{method.capitalize() or score.title} was not measured for this head ({convention})."
        )
    ends = [float(end[layer, head]) for end in (score.lower, score.upper) if end is not None]
    n = result.attrs.get("n_prompts")
    tail = f"{entry.rank_text}; {_effect(result, score, name)} (n = {n})."
    if not method or "intact" not in result:
        units = str(score.array.attrs.get("units", ""))
        interval = f" (95 % interval {interval_text(*ends)})" if ends else ""
        return f"{score.title}: {viz.measured(entry.value, units)}{interval}, {tail}"
    metric = str(result["intact"].attrs["long_name"]).removeprefix("Intact ")
    subject = f"the {result.attrs.get('task', '')} {metric}".replace("  ", " ")
    of = f"of {viz.amount(result['intact'])}"
    measured = bool(ends) and all(map(np.isfinite, ends))
    if measured and ends[0] <= 0 <= ends[1]:
        # A loss counts as positive there, a change of the metric reads the other way round.
        change = f"{viz.amount(-entry.value)} {interval_text(-ends[1], -ends[0])} {of}"
        head_of = f"{method.capitalize()} changes {subject} by {change}"
        return f"{head_of}: no detectable change (the 95 % interval holds 0), {tail}"
    verb = "lowers" if entry.value > 0 else "raises"
    interval = f" (95 % interval {interval_text(*sorted(map(abs, ends)))})" if measured else ""
    size = viz.amount(abs(entry.value))
    return f"{method.capitalize()} {verb} {subject} by {size}{interval} {of}, {tail}"


def _effect(result: xr.Dataset, score: Score, name: str) -> str:
    """Return whether an effect is above its null, with the null where the result holds it."""
    effect = score.effect(name)
    if effect == TOO_FEW:
        return f"too few prompts (of at least {LEAST_PROMPTS}) to tell it from chance"
    phrase = "above the null" if effect == ABOVE else "not above the null"
    null = float(result["null_ablation"]) if "null_ablation" in result else float("nan")
    return f"{phrase} ({viz.amount(null)})" if score.key == MAIN and np.isfinite(null) else phrase


def kinds_of(results: Mapping[str, xr.Dataset], name: str) -> list[Kind]:
    """List the types of a head, those of few heads first."""
    kinds = [kind for kind in head_kinds.collect(results).values() if name in kind.heads]
    return sorted(kinds, key=lambda kind: len(kind.heads))


def disagreement(scores: Mapping[str, Score], layer: int, head: int) -> str:
    """Describe in one line where rankings differ for a head; empty where they agree (``RULE``)."""
    causal = causal_score(scores)
    if causal is None:
        return ""
    parted: list[tuple[float, str]] = []
    for score in scores.values():
        if score.is_causal or score.array.attrs.get("units") != causal.array.attrs.get("units"):
            continue
        # Where few heads were ablated, both rankings are of those.
        among = np.isfinite(causal.array.values) & np.isfinite(score.array.values)
        by_causal = standing(causal, layer, head, among)
        by_score = standing(score, layer, head, among)
        if by_causal is None or by_score is None:
            continue
        low, high = sorted((by_causal.below, by_score.below))
        if low < BOTTOM and high >= 1 - TOP:
            ranks = (
                f"{by_score.rank_text} by “{score.title}” (correlational), {by_causal.rank_text} by"
            )
            parted.append((high - low, f"Rankings disagree: {ranks} “{causal.title}” (causal)."))
    return max(parted, default=(0.0, ""))[1]


def highest(scores: Mapping[str, Score], layer: int, head: int) -> list[Standing]:
    """List where a head stands highest: the best score of each family, the best six of those."""
    family = {name: group for group, members in analyses.families().items() for name in members}
    best: dict[str, Standing] = {}
    for score in scores.values():
        rank = standing(score, layer, head)
        group = family.get(score.key.split(".", 1)[0], "")
        if rank is not None and (group not in best or rank.below > best[group].below):
            best[group] = rank
    return sorted(best.values(), key=lambda entry: -entry.below)[:BARS]
