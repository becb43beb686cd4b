"""The graph of a circuit: which of its edges are drawn, as a figure and as a table."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from headscope import viz
from headscope.app.report.scores import interval_text
from headscope.viz import graph


def graphs(results: Mapping[str, xr.Dataset]) -> dict[str, xr.DataArray]:
    """Return the edges that analyses have scored, by ``analysis.variable``.

    Intervals and what belongs to another variable of the same edges, such as the effect of
    patching them, are columns of its table.
    """
    found = {}
    for name, result in results.items():
        scored = [str(each) for each in result.data_vars if graph.accepts(result[each])]
        own = [each for each in scored if not each.endswith(("_lower", "_upper"))]
        if own and _joins_heads(result[own[0]]):
            found[f"{name}.{own[0]}"] = result[own[0]]
    return found


def _joins_heads(array: xr.DataArray) -> bool:
    """Tell edges between components from those between the tokens of a text."""
    return "source_head" in array.coords and "source_position" not in array.coords


def ends(array: xr.DataArray) -> tuple[list[str], list[str]]:
    """Name both ends of every edge.

    >>> sides = {f"{side}_{part}": ("edge", [at]) for at, side in enumerate(("source", "target"))
    ...          for part in ("layer", "head")}
    >>> ends(xr.DataArray([1.0], dims="edge", coords=sides))
    (['L0H0'], ['L1H1'])
    """
    source, target = (
        [graph.node_name(node) for node in graph.ends(array, side)] for side in ("source", "target")
    )
    return source, target


def heads(array: xr.DataArray) -> dict[str, tuple[int, int]]:
    """Return the heads among the nodes by name, in the order of their layers."""
    found = {
        graph.node_name(node): node[:2]
        for side in ("source", "target")
        for node in graph.ends(array, side)
        if node[1] >= 0
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))


def shown(
    array: xr.DataArray, count: int, pinned: Sequence[str] = (), expanded: Sequence[str] = ()
) -> NDArray[np.intp]:
    """Return the places of the edges that are drawn, the strongest first.

    Parameters
    ----------
    array
        Scores (edge).
    count
        The strongest so many are drawn.
    pinned
        Of these, only edges on a way through one of these nodes, if there are any.
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
    sizes = np.abs(np.nan_to_num(array.values.astype(float)))
    order = np.argsort(-sizes, kind="stable")
    links = list(zip(*ends(array), strict=True))
    strong = order[:count].tolist()
    if pinned:
        some = [links[at] for at in strong]
        before, behind = (_reached(some, pinned, back=back) for back in (True, False))
        strong = [at for at in strong if links[at][1] in before or links[at][0] in behind]
    kept = {*strong, *(at for at, link in enumerate(links) if {*link} & {*expanded})}
    return np.array([at for at in order.tolist() if at in kept], dtype=np.intp)


def _reached(links: Sequence[tuple[str, str]], start: Sequence[str], *, back: bool) -> set[str]:
    """Return the nodes that are reached from some, along the edges or against them."""
    found, queue = {*start}, deque(start)
    while queue:
        node = queue.popleft()
        for one, two in links:
            here, there = (two, one) if back else (one, two)
            if here == node and there not in found:
                found.add(there)
                queue.append(there)
    return found


def table(result: xr.Dataset, name: str) -> pd.DataFrame:
    """Return the edges of a result as a table: ends, a score, and what else is known of them."""
    source, target = ends(result[name])
    columns: dict[str, list[str]] = {"from": source, "to": target}
    if "input" in result.coords:
        columns["as"] = [str(each) or "—" for each in result["input"].values]
    others = [str(each) for each in result.data_vars if result[each].dims == ("edge",)]
    for each in dict.fromkeys([name, *others]):
        if each.endswith(("_lower", "_upper")):
            continue
        array = result[each]
        title, units = (str(array.attrs.get(about, "")) for about in ("long_name", "units"))
        columns[f"{title} ({units})"] = [viz.amount(value) for value in array.values.tolist()]
        if f"{each}_lower" in result:
            low, high = (result[f"{each}_{end}"].values for end in ("lower", "upper"))
            columns[f"{title}, 95 % interval"] = list(map(interval_text, low, high))
    return pd.DataFrame(columns)


def figure(array: xr.DataArray) -> Any:
    """Draw edges; a mark of a node holds its name, that of an edge the name of its source."""
    drawn = graph.figure(array)
    nodes = [[name] for name in drawn.data[-1].text]
    drawn.data[-1].customdata = nodes
    drawn.data[-2].customdata = [[name] for name in ends(array)[0]]
    return drawn
