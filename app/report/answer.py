"""The answer of a run, which its report begins with: important heads, methods, what disagrees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import xarray as xr

from headscope import viz
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.analyses._stats.rank_correlation import most_different, ranked
from headscope.app.report import head_kinds
from headscope.app.report.findings import Finding, strongest
from headscope.app.report.scores import GRID, interval_text
from headscope.kernels.formatting import ordinal

IMPORTANCE = "importance"
# What the heads are ranked by, which is held against the null.
MAIN = "mean_ablation"
# Scores of importance whose ranking of the heads is compared, and their short names; the first are
# columns of the table of heads.
METHODS = {
    "mean_ablation": "mean ablation",
    "zero_ablation": "zero ablation",
    "resample_ablation": "resample ablation",
    "gate_gradient": "gate gradient",
    "sink_free_ablation": "mean, not first token",
    "integrated_gradient": "integrated gradient",
}
# Variables that hold the interval of an agreement, by its two methods.
AGREEMENTS = {
    frozenset(("gate_gradient", "zero_ablation")): "gate_vs_zero",
    frozenset(("gate_gradient", "mean_ablation")): "gate_vs_mean",
    frozenset(("integrated_gradient", "zero_ablation")): "integrated_vs_zero",
    frozenset(("zero_ablation", "mean_ablation")): "zero_vs_mean",
    frozenset(("zero_ablation", "resample_ablation")): "zero_vs_resample",
}
PARTING = ("gate_gradient", "zero_ablation")
# Rows of the table of heads; where no head is important, of the largest effects.
MOST, FEWEST = 8, 5
COLUMNS = 4
ROLES = 3
LONGEST = 320


@dataclass(frozen=True)
class Row:
    """A head of the answer: rank by mean ablation, name, roles, and what each method says."""

    rank: str
    name: str
    roles: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Flag:
    """A caveat of a result: ``kind`` is a label, ``text`` the reason."""

    analysis: str
    kind: str
    text: str


@dataclass(frozen=True)
class Importance:
    """Findings of a head importance analysis."""

    task: str
    n: int
    metric: str
    units: str
    intact: str
    interval: str
    null: str
    conclusion: str
    methods: tuple[str, ...]
    rows: tuple[Row, ...]
    more: int
    agreement: tuple[tuple[tuple[float, str], ...], ...]
    measured: str
    most_different: str


@dataclass(frozen=True)
class Answer:
    """The first screen of a report; ``finding`` is shown where importance was not measured."""

    importance: Importance | None
    finding: Finding | None
    flags: tuple[Flag, ...] = field(default=())


def answer(results: Mapping[str, xr.Dataset]) -> Answer:
    """Find the answer in the results of a run."""
    summary = importance(results)
    finding = None if summary else strongest(results)
    return Answer(summary, finding, tuple(_flags(results)))


def importance(results: Mapping[str, xr.Dataset]) -> Importance | None:
    """Return the findings of the analysis `importance` of a run; None where it has no result."""
    measured = results.get(IMPORTANCE)
    if measured is None or MAIN not in measured:
        return None
    return _importance(measured, roles(results, measured))


def _importance(result: xr.Dataset, named: Mapping[str, list[str]]) -> Importance:
    """Read the result of `importance`."""
    n = int(result.attrs["n_prompts"])
    methods = [name for name in METHODS if name in result]
    important = [] if n < LEAST_PROMPTS else list(result.attrs.get("important_heads", ()))
    ranks = viz.ranks(result[MAIN].transpose(*GRID))
    order = [at for at in np.argsort(ranks, axis=None) if np.isfinite(ranks.flat[at])]
    rows = [_row(result, divmod(int(at), ranks.shape[1]), ranks, methods, named) for at in order]
    listed = [row for row in rows if row.name in important] or rows[:FEWEST]
    intact, (lower, upper) = result["intact"], viz.interval(result, "intact")
    heads, measured = ranks.size, len(order)
    null = float(result["null_ablation"])
    gate, zero = (result[name].transpose(*GRID).values for name in PARTING)
    return Importance(
        task=str(result.attrs.get("task", "")),
        n=n,
        metric=str(intact.attrs["long_name"]).removeprefix("Intact "),
        units=str(intact.attrs.get("units", "")),
        intact=viz.amount(intact),
        interval="" if lower is None or upper is None else interval_text(lower, upper),
        null=viz.amount(null) if math.isfinite(null) else "",
        conclusion=_conclusion(n, important, measured),
        methods=tuple(METHODS[name] for name in methods),
        rows=tuple(listed[:MOST]),
        more=len(listed[MOST:]),
        agreement=_agreement(result, methods),
        measured=f"{measured} of {heads} heads were ablated" if measured < heads else "",
        most_different="; ".join(most_different(gate, zero)),
    )


def _conclusion(n: int, important: list[str], measured: int) -> str:
    if n < LEAST_PROMPTS:
        return (
            f"Too few prompts ({n}, of at least {LEAST_PROMPTS}) to call a head important; "
            "the largest effects are"
        )
    if not important:
        return (
            f"None of {measured} heads is important: no mean ablation lies above the null; largest"
        )
    heads = "1 head is" if len(important) == 1 else f"{len(important)} heads are"
    return f"{heads} important, of {measured} ablated"


def _row(
    result: xr.Dataset,
    head: tuple[int, int],
    ranks: np.ndarray,
    methods: list[str],
    named: Mapping[str, list[str]],
) -> Row:
    """Return the row of one head: the result of every method."""
    name = viz.head_name(int(result["layer"][head[0]]), int(result["head"][head[1]]))
    at = dict(zip(GRID, head, strict=True))
    numbers = []
    for method in methods[:COLUMNS]:
        lower, upper = viz.interval(result, method)
        interval = ""
        if lower is not None and upper is not None:
            interval = interval_text(lower.isel(at), upper.isel(at))
        numbers.append((viz.amount(result[method].isel(at)), interval))
    tied = int((ranks == ranks[head]).sum())
    return Row(
        ordinal(int(ranks[head]), tied), name, tuple(named.get(name, ())[:ROLES]), tuple(numbers)
    )


def _agreement(result: xr.Dataset, methods: list[str]) -> tuple[tuple[tuple[float, str], ...], ...]:
    """Write what every method agrees with those before it."""
    cells = {
        pair: (rho, interval_text(*ends))
        for pair, (rho, *ends) in agreements(result, methods).items()
    }
    return tuple(
        tuple(cells[earlier, method] for earlier in methods[:at])
        for at, method in enumerate(methods)
    )


def agreements(
    result: xr.Dataset, methods: Sequence[str]
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Rank-correlate every two methods, over the heads that both have measured.

    Returned are Spearman's ρ and the ends of its interval by pair, as `importance` holds them; one
    that it has not made an interval of has NaN for its ends.
    """
    scores = {name: np.abs(np.asarray(result[name].transpose(*GRID))).ravel() for name in methods}
    correlations: dict[tuple[str, str], tuple[float, float, float]] = {}
    for pair in combinations(methods, 2):
        agreement = AGREEMENTS.get(frozenset(pair), "")
        if agreement in result:
            ends = (float(end) for end in viz.interval(result, agreement) if end is not None)
            lower, upper = (*ends, math.nan, math.nan)[:2]
            correlations[pair] = (float(result[agreement]), lower, upper)
            continue
        first, second = (scores[method] for method in pair)
        measured = np.isfinite(first) & np.isfinite(second)
        correlations[pair] = (ranked(first[measured], second[measured]), math.nan, math.nan)
    return correlations


def roles(results: Mapping[str, xr.Dataset], measured: xr.Dataset) -> dict[str, list[str]]:
    """List the types of every head, those of few heads first; what most heads are says nothing."""
    heads = measured.sizes["layer"] * measured.sizes["head"]
    named: dict[str, list[str]] = {}
    for kind in sorted(head_kinds.collect(results).values(), key=lambda kind: len(kind.heads)):
        for head in kind.heads if 2 * len(kind.heads) <= heads else ():
            named.setdefault(head, []).append(kind.name)
    return named


def _flags(results: Mapping[str, xr.Dataset]) -> list[Flag]:
    """List what disagrees, what rests on too little, and what was not run."""
    flags = []
    for name, result in results.items():
        attrs = result.attrs
        text = str(attrs.get("verdict_text") or attrs.get("note", ""))
        if attrs.get("skipped"):
            flags.append(Flag(name, "not run", shortened(str(attrs["skipped"]))))
        elif attrs.get("verdict") == "disagreement":
            flags.append(Flag(name, "disagreement", shortened(text)))
        elif attrs.get("verdict") == "too_few":
            flags.append(Flag(name, "too few prompts", shortened(text)))
        elif "WARNING" in str(attrs.get("note", "")):
            flags.append(Flag(name, "warning", shortened(str(attrs["note"]))))
    return sorted(flags, key=lambda flag: flag.kind)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Shorten a text that is too long for a line, at the end of a word.

    >>> shortened("L0H0, L0H1, L0H2", 13)
    'L0H0, L0H1 …'
    """
    if len(text) <= longest:
        return text
    return text[: longest - 1].rsplit(" ", 1)[0].rstrip(",;") + " …"
