"""The heads that stand out in each score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from headscope import viz
from headscope.app.report.scores import ABOVE, Score, collect, indexed

if TYPE_CHECKING:
    from rich.table import Table

TOP = 3


@dataclass(frozen=True)
class Finding:
    """A head that stands out in a score, with the ends of its interval, NaN where it has none.

    ``evidence`` is ``"causal"`` where the number comes from an intervention, else
    ``"correlational"``; ``effect`` says of an intervention whether the head's effect is above its
    null, among all heads, or that the prompts are too few to tell. ``rank`` is 1 for the largest
    ``of`` the heads with a value, and ``tied`` heads share it, this one included.
    """

    analysis: str
    variable: str
    title: str
    units: str
    evidence: str
    effect: str
    rank: int
    of: int
    tied: int
    name: str
    layer: int
    head: int
    value: float
    lower: float
    upper: float


def findings(results: Mapping[str, xr.Dataset], top: int = TOP) -> list[Finding]:
    """List the heads that stand out: the first `top` of every (layer, head) score.

    Diverging scores are ranked by how far they are from 0. A head without a value, or at exactly
    0, does not stand out.

    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"))
    >>> [best] = findings({"sinks": xr.Dataset({"sink": mass})}, top=1)
    >>> best.name, best.rank, best.of
    ('L0H1', 1, 2)
    """
    return [finding for score in collect(results).values() for finding in _best(score, top)]


def strongest(results: Mapping[str, xr.Dataset]) -> Finding | None:
    """Return the head that stands out most: furthest from the others in its score, in deviations.

    Heads that an intervention shows to have an effect go before those that only look so.

    >>> mass = xr.DataArray([[0.1, 0.2, 0.1, 0.9]], dims=("layer", "head"))
    >>> strongest({"sinks": xr.Dataset({"sink": mass})}).name
    'L0H3'
    """
    scores = collect(results)
    first = [best for score in scores.values() for best in _best(score, 1) if best.tied == 1]

    def distance(finding: Finding) -> tuple[bool, float]:
        score = scores[f"{finding.analysis}.{finding.variable}"]
        values = np.asarray(score.array.values, dtype=float)
        off = abs(finding.value - float(np.nanmean(values))) / (float(np.nanstd(values)) or 1.0)
        return finding.effect == ABOVE, off

    return max(first, key=distance, default=None)


def findings_table(results: Mapping[str, xr.Dataset], top: int = TOP) -> Table:
    """Return the findings for a terminal: a row a score, its first heads with their values."""
    from rich import box
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Heads that stand out", title_justify="left")
    table.add_column("score (* from an intervention; ? not above its null, or too few prompts)")
    for rank in range(top):
        table.add_column(f"#{rank + 1}", no_wrap=True)
    analysis = ""
    for members in by_score(findings(results, top)).values():
        first = members[0]
        if first.analysis != analysis:
            analysis = first.analysis
            table.add_row(f"[bold]{analysis}[/bold]")
        mark = "* " if first.evidence == "causal" else "  "
        cells = [
            f"{finding.name}{'?' if finding.effect not in ('', ABOVE) else ''} "
            f"{viz.amount(finding.value)}"
            for finding in members
        ]
        table.add_row(Padding(mark + escape(first.title), (0, 0, 0, 2)), *cells)
    return table


def by_score(members: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Group findings by their score, in order."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in members:
        groups.setdefault((finding.analysis, finding.variable), []).append(finding)
    return groups


def records(members: Iterable[Finding]) -> list[dict[str, object]]:
    """Return findings as JSON can hold them: no NaN."""
    return [
        {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(finding).items()
        }
        for finding in members
    ]


def _best(score: Score, top: int) -> list[Finding]:
    """Return the first heads of a score."""
    array = indexed(score.array)
    values = np.asarray(array.values, dtype=float)
    ranks = np.asarray(score.ranks().values, dtype=float)
    shown = np.isfinite(values) & (values != 0)
    order = [at for at in np.argsort(ranks, axis=None, kind="stable").tolist() if shown.flat[at]]
    analysis, variable = score.key.split(".", 1)
    members = []
    for row, column in (divmod(at, values.shape[1]) for at in order[:top]):
        layer, head = int(array["layer"][row]), int(array["head"][column])
        lower, upper = (
            float("nan") if end is None else float(end.values[row, column])
            for end in (score.lower, score.upper)
        )
        members.append(
            Finding(
                analysis=analysis,
                variable=variable,
                title=score.title.rstrip("."),
                units=str(array.attrs.get("units", "")),
                effect=score.effect(viz.head_name(layer, head)),
                evidence="causal" if score.is_causal else "correlational",
                rank=int(ranks[row, column]),
                tied=score.tied(row, column),
                of=int(np.isfinite(values).sum()),
                name=viz.head_name(layer, head),
                layer=layer,
                head=head,
                value=float(values[row, column]),
                lower=lower,
                upper=upper,
            )
        )
    return members
