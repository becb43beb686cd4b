"""Export: every score of every head as a table, and the heads that stand out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from headscope import viz
from headscope.app.report.scores import GRID, Score, collect

if TYPE_CHECKING:
    from rich.table import Table

TOP = 3
ENTRIES = 8
"""Entries of a further dim that a row of the heads table has columns for."""


@dataclass(frozen=True)
class Finding:
    """A head that stands out in a score.

    Attributes
    ----------
    analysis, variable
        Where the score comes from.
    title, units
        What it measures.
    evidence
        ``"causal"`` where the number comes from an intervention, else ``"correlational"``.
    rank, of
        1 for the largest, among the heads with a value.
    tied
        Heads that share the rank, this one included.
    name, layer, head
        The head.
    value, lower, upper
        Its score and the 95 % interval, NaN where there is none.
    """

    analysis: str
    variable: str
    title: str
    units: str
    evidence: str
    rank: int
    of: int
    tied: int
    name: str
    layer: int
    head: int
    value: float
    lower: float
    upper: float


def heads_table(results: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return one row a head and one column a score.

    Parameters
    ----------
    results
        Results by the name of their analysis, as ``Run.results()`` gives them.

    Returns
    -------
    Columns ``name`` (``L5H1``), ``layer``, ``head``, then ``analysis.variable`` and the ends of
    its interval, ``analysis.variable_lower`` and ``analysis.variable_upper``. A variable with one
    further dim of few entries has a column for each of them, ``analysis.variable[entry]``; curves
    and matrices of heads, and entries that no head has a value for, stay in the results.

    Examples
    --------
    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"))
    >>> table = heads_table({"sinks": xr.Dataset({"sink": mass})})
    >>> print(*table.loc[1, ["name", "sinks.sink"]])
    L0H1 0.9
    """
    columns = [
        _column(f"{analysis}.{name}{f'[{entry}]' if entry else ''}", array.isel(place))
        for analysis, result in results.items()
        for name, array in result.items()
        for entry, place in entries(array)
        if not entry or bool(array.isel(place).notnull().any())
    ]
    if not columns:
        return pd.DataFrame(columns=["name", *GRID])
    table = pd.concat(columns, axis=1).sort_index()
    places = table.index.to_frame(index=False)
    names = [
        viz.head_name(layer, head)
        for layer, head in zip(places["layer"], places["head"], strict=True)
    ]
    named = pd.DataFrame({"name": names})
    return pd.concat([named, places, table.reset_index(drop=True)], axis=1)


def findings(results: Mapping[str, xr.Dataset], top: int = TOP) -> list[Finding]:
    """List the heads that stand out: the first `top` of every (layer, head) score.

    Diverging scores are ranked by how far they are from 0. A head without a value, or at exactly
    0, does not stand out.

    Parameters
    ----------
    results
        Results by the name of their analysis.
    top
        Heads a score.

    Examples
    --------
    >>> mass = xr.DataArray([[0.1, 0.9]], dims=("layer", "head"))
    >>> [best] = findings({"sinks": xr.Dataset({"sink": mass})}, top=1)
    >>> best.name, best.rank, best.of
    ('L0H1', 1, 2)
    """
    return [each for score in collect(results).values() for each in _best(score, top)]


def findings_table(results: Mapping[str, xr.Dataset], top: int = TOP) -> Table:
    """Return the findings for a terminal: a row a score, its first heads with their values."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Heads that stand out", title_justify="left")
    table.add_column("score (* from an intervention)")
    for place in range(top):
        table.add_column(f"#{place + 1}", no_wrap=True)
    shown = ""
    for (analysis, _), members in by_score(findings(results, top)).items():
        if analysis != shown:
            table.add_row(f"[bold]{analysis}[/bold]")
            shown = analysis
        first = members[0]
        mark = "* " if first.evidence == "causal" else "  "
        cells = [f"{each.name} {viz.amount(each.value)}" for each in members]
        table.add_row(Padding(mark + _plain(first.title), (0, 0, 0, 2)), *cells)
    return table


def by_score(found: list[Finding]) -> dict[tuple[str, str], list[Finding]]:
    """Group findings by their score, in order."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for each in found:
        groups.setdefault((each.analysis, each.variable), []).append(each)
    return groups


def records(found: list[Finding]) -> list[dict[str, object]]:
    """Return findings as JSON can hold them: no NaN."""
    return [
        {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(each).items()
        }
        for each in found
    ]


def _plain(text: str) -> str:
    # Square brackets are markup to rich.
    return text.replace("[", r"\[")


def entries(array: xr.DataArray) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the scores of heads that an array holds: what each is called, and its place.

    One without a name where there are no dims but layer and head; one an entry of a short list;
    none where it is no score of heads, or a curve or a matrix a head.

    Examples
    --------
    >>> kinds = xr.DataArray([[[0.1]], [[0.9]]], dims=("kind", *GRID), coords={"kind": ["a", "b"]})
    >>> list(entries(kinds))
    [('a', {'kind': 0}), ('b', {'kind': 1})]
    """
    rest = [str(dim) for dim in array.dims if dim not in GRID]
    if not set(GRID) <= set(array.dims) or len(rest) > 1:
        return
    if not rest:
        yield "", {}
    for dim in rest:
        if array.sizes[dim] <= ENTRIES:
            for index in range(array.sizes[dim]):
                one = array.isel({dim: index})
                yield str(one[dim].item()) if dim in one.coords else f"{dim} {index}", {dim: index}


def _column(name: str, array: xr.DataArray) -> pd.Series[float]:
    located = _located(array.transpose(*GRID))
    index = pd.MultiIndex.from_product(
        [located["layer"].values.tolist(), located["head"].values.tolist()], names=GRID
    )
    return pd.Series(np.asarray(located.values, dtype=float).ravel(), index=index, name=name)


def _located(array: xr.DataArray) -> xr.DataArray:
    """Give layers and heads that have no coordinate their index."""
    bare = [dim for dim in GRID if dim not in array.coords]
    return array.assign_coords({dim: np.arange(array.sizes[dim]) for dim in bare})


def _best(score: Score, top: int) -> list[Finding]:
    values = np.asarray(score.array.values, dtype=float)
    ranks = np.asarray(score.ranks().values, dtype=float)
    shown = np.isfinite(values) & (values != 0)
    order = [at for at in np.argsort(ranks, axis=None, kind="stable").tolist() if shown.flat[at]]
    analysis, variable = score.key.split(".", 1)
    located = _located(score.array)
    found = []
    for at in order[:top]:
        row, column = divmod(at, values.shape[1])
        layer, head = int(located["layer"].values[row]), int(located["head"].values[column])
        sides = [
            float("nan") if side is None else float(side.values[row, column])
            for side in (score.lower, score.upper)
        ]
        found.append(
            Finding(
                analysis=analysis,
                variable=variable,
                title=score.title.rstrip("."),
                units=str(score.array.attrs.get("units", "")),
                evidence="causal" if score.is_causal else "correlational",
                rank=int(ranks[row, column]),
                tied=int((ranks == ranks[row, column]).sum()),
                of=int(np.isfinite(values).sum()),
                name=viz.head_name(layer, head),
                layer=layer,
                head=head,
                value=float(values[row, column]),
                lower=sides[0],
                upper=sides[1],
            )
        )
    return found
