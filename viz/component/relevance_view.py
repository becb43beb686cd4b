"""Relevance view: the relevance of every token by several methods, one below the other."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from headscope.kernels.errors import InvalidInput, ResourceLimit
from headscope.viz._labels import shown_token
from headscope.viz.component.view import View, attribute

SPANS = 40_000
"""Tokens of all methods together that a page shows."""


def relevance_view(
    relevance: xr.DataArray, *, notes: Mapping[str, str] | None = None, causal: tuple[str, ...] = ()
) -> View:
    """Draw how relevant every token is, method by method, on the text itself.

    Tokens of positive relevance are underlined in full, those of negative relevance dotted;
    hovering a token shows its relevance by every method, a click locks it, and arrow keys move.

    Parameters
    ----------
    relevance
        Numbers with dims explainer and query, such as ``relevance`` of the analysis faithfulness;
        the coordinate ``token`` names the tokens. Each method is drawn on its own scale.
    notes
        Text behind the name of a method, by that name.
    causal
        Methods that intervene; they come first and are marked.

    Examples
    --------
    >>> tokens = ("query", [" a", " b"])
    >>> found = xr.DataArray([[0.5, -1]], dims=("explainer", "query"),
    ...                      coords={"explainer": ["Rollout"], "token": tokens})
    >>> relevance_view(found).data["rows"][0]["shares"]
    [0.5, -1.0]
    """
    if set(relevance.dims) != {"explainer", "query"} or "token" not in relevance.coords:
        raise InvalidInput(
            "relevance: a relevance view has dims explainer and query and the coordinate token, "
            f"not {relevance.dims}; select one prompt"
        )
    if relevance.size > SPANS:
        raise ResourceLimit(
            f"relevance: {relevance.size} tokens of all methods, and a page shows up to {SPANS}; "
            "select methods or a shorter text"
        )
    array = relevance.transpose("explainer", "query")
    rows = []
    for name, values in zip(array["explainer"].values.tolist(), array.values, strict=True):
        present = np.isfinite(values)
        if not present.any():
            continue
        largest = float(np.abs(values[present]).max()) or 1.0
        shares = [
            round(float(value) / largest, 3) if np.isfinite(value) else None for value in values
        ]
        rows.append(
            {
                "name": str(name), "note": (notes or {}).get(name, ""), "causal": name in causal,
                "shares": shares,
            }
        )  # fmt: skip
    rows.sort(key=lambda row: not row["causal"])
    tokens = [shown_token(token, longest=200) for token in array["token"].values.tolist()]
    return View(
        "relevance_view",
        {"title": attribute(relevance, "long_name", "Relevance"), "tokens": tokens, "rows": rows},
    )
