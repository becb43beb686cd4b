"""The graph of a circuit: which of its edges are drawn, as a figure, a table and a file."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headscope import viz
from headscope.app.report import head_kinds
from headscope.app.report.scores import interval_text
from headscope.viz import graph

BOUNDS = ("_lower", "_upper")
# What says where the edges of a file come from.
PROVENANCE = ("model", "revision", "task", "n_prompts", "analysis")


def graphs(results: Mapping[str, xr.Dataset]) -> dict[str, xr.DataArray]:
    """Return the edges that analyses have scored, by ``analysis.variable``.

    Of several variables of the same edges the first that most of them have is drawn; the others,
    such as the effect of patching some of them, are columns of its table.
    """
    scored = {}
    for analysis, result in results.items():
        names = [name for name in variables(result) if graph.accepts(result[name])]
        if names and _joins_heads(result[names[0]]):
            name = max(names, key=lambda name: int(result[name].count()))
            scored[f"{analysis}.{name}"] = result[name]
    return scored


def variables(result: xr.Dataset) -> list[str]:
    """List the variables of the edges of a result, without the ends of intervals."""
    return [name for name in viz.variables(result) if result[name].dims == ("edge",)]


def _joins_heads(array: xr.DataArray) -> bool:
    """Return whether edges join components, not the tokens of a text."""
    return "source_head" in array.coords and "source_position" not in array.coords


def ends(array: xr.DataArray) -> tuple[list[str], list[str]]:
    """Return the names of both ends of every edge.

    >>> sides = {f"{side}_{part}": ("edge", [at]) for at, side in enumerate(("source", "target"))
    ...          for part in ("layer", "head")}
    >>> ends(xr.DataArray([1.0], dims="edge", coords=sides))
    (['L0H0'], ['L1H1'])
    """
    source, target = (
        [graph.node_name(node) for node in graph.ends(array, side)] for side in ("source", "target")
    )
    return source, target


def nodes(array: xr.DataArray) -> list[str]:
    """List the nodes, layer by layer."""
    placed = {node for side in ("source", "target") for node in graph.ends(array, side)}
    return [graph.node_name(node) for node in sorted(placed)]


def heads(array: xr.DataArray) -> dict[str, tuple[int, int]]:
    """Return the heads among the nodes by name, in the order of their layers."""
    placed = {
        graph.node_name(node): node[:2]
        for side in ("source", "target")
        for node in graph.ends(array, side)
        if node[1] >= 0
    }
    return dict(sorted(placed.items(), key=lambda item: item[1]))


def strongest(array: xr.DataArray, count: int | None = None) -> list[int]:
    """Return the indices of the edges with the largest absolute scores, of all that have one."""
    sizes = np.abs(array.values.astype(float))
    order = np.argsort(-np.nan_to_num(sizes), kind="stable")
    ranked: list[int] = order[np.isfinite(sizes[order])].tolist()
    return ranked[:count]


def shown(
    array: xr.DataArray, count: int, pinned: Sequence[str] = (), expanded: Sequence[str] = ()
) -> NDArray[np.intp]:
    """Return the indices of the edges that are drawn, the strongest first.

    Parameters
    ----------
    array
        Scores (edge).
    count
        The strongest so many are drawn.
    pinned
        Of these, only edges on a path through one of these nodes, if there are any.
    expanded
        All edges of these nodes are drawn, the weak ones too.

    Examples
    --------
    >>> sides = {"source": ("edge", ["a", "b", "a"]), "target": ("edge", ["b", "c", "c"])}
    >>> sides |= {f"{side}_layer": ("edge", [0, 0, 0]) for side in ("source", "target")}
    >>> edges = xr.DataArray([3.0, 2.0, 1.0], dims="edge", coords=sides)
    >>> shown(edges, 1), shown(edges, 1, expanded=["c"]), shown(edges, 3, pinned=["b"])
    (array([0]), array([0, 1, 2]), array([0, 1]))
    """
    order = strongest(array)
    links = list(zip(*ends(array), strict=True))
    chosen = order[:count]
    if pinned:
        drawn = [links[at] for at in chosen]
        above, below = (_reached(drawn, pinned, back=back) for back in (True, False))
        chosen = [at for at in chosen if links[at][1] in above or links[at][0] in below]
    all_of = {at for at, link in enumerate(links) if {*link} & {*expanded}}
    return np.array([at for at in order if at in {*chosen} | all_of], dtype=np.intp)


def _reached(links: Sequence[tuple[str, str]], start: Sequence[str], *, back: bool) -> set[str]:
    """Return the nodes that are reached from some, along the edges or against them."""
    reached, queue = {*start}, deque(start)
    while queue:
        node = queue.popleft()
        for source, target in links:
            near, far = (target, source) if back else (source, target)
            if near == node and far not in reached:
                reached.add(far)
                queue.append(far)
    return reached


def summary(
    result: xr.Dataset, name: str, edges: NDArray[np.intp], count: int, pinned: Sequence[str]
) -> str:
    """Return how many edges are drawn, and which are not."""
    array = result[name]
    weakest = float(np.abs(array.values[edges]).min())
    total = int(result.attrs.get("edges", array.size))
    sentences = [
        f"Drawn: {edges.size} of the {array.size} edges of this result, the weakest "
        f"{viz.measured(weakest, str(array.attrs.get('units', '')))}."
    ]
    if hidden := len({*strongest(array, count)} - {*edges.tolist()}):
        sentences.append(
            f"Hidden: {hidden} of the strongest {count}, on no path through {', '.join(pinned)}."
        )
    if total > array.size:
        sentences.append(f"Of the model's {total} edges the others are not kept in this result.")
    return " ".join(sentences)


def table(result: xr.Dataset, name: str) -> pd.DataFrame:
    """Return the edges of a result as a table: ends, a score, and what else is known of them."""
    source, target = ends(result[name])
    columns: dict[str, Any] = {"from": source, "to": target}
    if "input" in result.coords:
        columns["input"] = [str(letter) or "—" for letter in result["input"].values]
    for variable in dict.fromkeys([name, *variables(result)]):
        array = result[variable]
        title, units = (str(array.attrs.get(part, "")) for part in ("long_name", "units"))
        columns[f"{title} ({units})"] = array.values.astype(float)
        bounds = [f"{variable}{end}" for end in BOUNDS]
        if bounds[0] in result:
            lower, upper = (result[bound].values for bound in bounds)
            columns[f"{title}, 95 % interval"] = list(map(interval_text, lower, upper))
    if "drawn" in result.coords:
        columns["in the random sample"] = result["drawn"].values.astype(bool)
    return pd.DataFrame(columns)


def file(result: xr.Dataset, name: str, run: str) -> str:
    """Return the edges as CSV: ends, every variable with its interval and units, provenance."""
    source, target = ends(result[name])
    columns: dict[str, Any] = {"run": run}
    columns |= {key: result.attrs[key] for key in PROVENANCE if key in result.attrs}
    columns |= {"source": source, "target": target}
    columns |= {key: result[key].values for key in ("input", "drawn") if key in result.coords}
    for variable in dict.fromkeys([name, *variables(result)]):
        for part in (variable, *(f"{variable}{end}" for end in BOUNDS)):
            if part in result:
                columns[part] = result[part].values
        columns[f"{variable}_units"] = result[variable].attrs.get("units", "")
    return pd.DataFrame(columns).to_csv(index=False)


def figure(
    result: xr.Dataset,
    name: str,
    marked: Collection[str],
    results: Mapping[str, xr.Dataset],
) -> Any:
    """Draw the edges of a result; a mark of a node holds its name, that of an edge its source's.

    ``results`` are those of the run: what they call a head stands in the hover text of its node.
    """
    array = result[name]
    lower, upper = viz.interval(result, name)
    drawn = graph.figure(array, lower=lower, upper=upper, edges=array.size, marked=marked)
    marks, points = drawn.data[-2:]
    marks.customdata = [[source] for source in ends(array)[0]]
    points.customdata = [[node] for node in points.text]
    kinds = head_kinds.collect(results).values()
    points.hovertext = [
        "<br>".join([text, *(kind.name for kind in kinds if node in kind.heads)])
        for node, text in zip(points.text, points.hovertext, strict=True)
    ]
    return drawn
