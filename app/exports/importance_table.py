"""The heads of an importance analysis as a table: rank, verdict, types, and what methods say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from headscope import viz
from headscope.analyses._stats.effect_size import LEAST_PROMPTS
from headscope.app.exports import tables
from headscope.app.report.answer import IMPORTANCE, MAIN, METHODS, roles
from headscope.app.report.scores import TOO_FEW, heads_table
from headscope.kernels.formatting import MISSING

ABOVE, DETECTABLE, NONE = "above the null", "detectable", "no detectable effect"
# What a head may be called, and what that means.
VERDICTS = {
    ABOVE: "the interval of its mean ablation lies above the null",
    DETECTABLE: "its mean ablation differs from 0, the number of heads tested allowed for, but its "
    "interval does not lie above the null",
    NONE: "its mean ablation does not differ from 0, the number of heads tested allowed for, even "
    "where its own interval leaves 0 out",
    TOO_FEW: f"fewer than {LEAST_PROMPTS} prompts cannot tell",
    MISSING: "not ablated: no gradient ranks it first, and it is not in the random sample",
}


def rows(results: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return one row a head, the most important first.

    Columns ``rank`` (by mean ablation, equal values share it; missing where it was not measured),
    ``name``, ``layer``, ``head``, ``verdict``, ``types``, then the methods that the result holds
    and the ends of their intervals.
    """
    result = results[IMPORTANCE]
    columns = [
        key for name in METHODS for key in (name, f"{name}_lower", f"{name}_upper") if key in result
    ]
    table = heads_table({IMPORTANCE: result[columns]})
    table.columns = table.columns.str.removeprefix(f"{IMPORTANCE}.")
    ranks = viz.ranks(result[MAIN].transpose("layer", "head")).ravel()
    table.insert(0, "rank", pd.Series(ranks).astype("Int64"))
    detected = frozenset(str(result[MAIN].attrs.get("effect_heads", "")).split())
    above = frozenset(result.attrs.get("important_heads", ()))
    few = int(result.attrs["n_prompts"]) < LEAST_PROMPTS
    named = roles(results, result)

    def verdict(name: str, value: float) -> str:
        if not np.isfinite(value):
            return MISSING
        if few:
            return TOO_FEW
        return ABOVE if name in above else DETECTABLE if name in detected else NONE

    verdicts = list(map(verdict, table["name"], table[MAIN]))
    types = [", ".join(named.get(name, ())) for name in table["name"]]
    table.insert(4, "verdict", verdicts)
    table.insert(5, "types", types)
    return table.sort_values("rank", kind="stable", na_position="last", ignore_index=True)


def file(
    kind: str, results: Mapping[str, xr.Dataset], manifest: Mapping[str, Any], run: str
) -> bytes:
    """Return the table as the content of a file, with what each column is."""
    ranked = rows(results)
    described = tables.columns({IMPORTANCE: results[IMPORTANCE]})
    meanings = {name.removeprefix(f"{IMPORTANCE}."): meaning for name, meaning in described.items()}
    meanings = {name: meanings[name] for name in ranked.columns if name in meanings}
    about = {"model": manifest["model"], "revision": manifest["revision"], "run": run}
    table = tables.labelled(ranked, meanings, about)
    return tables.encode_table(kind, table, {"run": dict(manifest), "columns": meanings})
