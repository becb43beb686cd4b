"""A lens on the attention pattern: one window of one head, recomputed exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from headscope.kernels.refusal import Refused

CELLS = 2048 * 2048


def pattern(
    capture: xr.Dataset,
    layer: int,
    head: int,
    prompt: int = 0,
    queries: slice | None = None,
    keys: slice | None = None,
) -> xr.DataArray:
    """Recompute the attention weights of one head from its queries, keys and lse.

    Parameters
    ----------
    capture
        A capture with ``keep=("q", "k")`` and the statistic ``lse``.
    layer, head
        The head.
    prompt
        Row of the prompt.
    queries, keys
        Window of positions; the whole prompt without them. In cross-attention queries are of the
        target and keys of the source.

    Returns
    -------
    The weights, dims query, key, between 0 and 1; 0 where a query cannot see a key. Coords:
    query and key positions, token (query) and key_token (key).

    Raises
    ------
    Refused
        Where q, k or lse are missing, weights were edited, the head or prompt does not exist, the
        window is empty or larger than 2048 × 2048.

    Examples
    --------
    >>> from headscope.probes import capture, load_model
    >>> model = load_model("headscope/bundled")
    >>> found = capture(model, [[0, 5, 6, 5]], stats=("lse",), keep=("q", "k"))
    >>> pattern(found, layer=0, head=0).sum("key").round(4).values.tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    for name in ("q", "k", "lse"):
        if name not in capture:
            raise Refused(
                f"capture: no {name}; a pattern needs capture(..., stats=('lse', ...), "
                "keep=('q', 'k'))"
            )
    if capture.attrs.get("reweighted"):
        raise Refused(
            "edits: the weights of this capture were edited, and q, k and lse do not tell how; "
            "capture stats=('pattern',) with the same edits"
        )
    one = _pick(capture, layer, head, prompt)
    length = int(one("length"))
    crossed = "key_length" in capture.coords
    rows = _positions("queries", queries, length)
    columns = _positions("keys", keys, int(one("key_length")) if crossed else length)
    if len(rows) * len(columns) > CELLS:
        raise Refused(
            f"queries, keys: {len(rows)} × {len(columns)} weights; narrow them to 2048 × 2048"
        )
    query, key = one("q")[rows].astype(np.float64), one("k")[columns].astype(np.float64)
    logits = query @ key.T * float(one("logit_scale"))
    softcap, window = float(one("softcap")), float(one("window"))
    if not np.isnan(softcap):
        logits = softcap * np.tanh(logits / softcap)
    if "position_bias" in capture.coords:
        reach = capture.sizes["relative"] // 2
        logits += one("position_bias")[columns[None, :] - rows[:, None] + reach].astype(np.float64)
    if "alibi_slope" in capture.coords:
        logits -= float(one("alibi_slope")) * np.abs(rows[:, None] - columns[None, :])
    weights = np.exp(logits - one("lse")[rows].astype(np.float64)[:, None])
    seen = np.ones_like(weights, dtype=bool)
    if bool(one("causal")):
        seen &= columns[None, :] <= rows[:, None]
    if not np.isnan(window):
        seen &= columns[None, :] > rows[:, None] - window
        if not bool(one("causal")):
            seen &= columns[None, :] < rows[:, None] + window
    tokens = one("token")
    return xr.DataArray(
        np.where(seen, weights, 0.0).astype(np.float32),
        dims=("query", "key"),
        name="pattern",
        coords={
            "query": rows,
            "key": columns,
            "token": ("query", tokens[rows]),
            "key_token": ("key", (one("key_token") if crossed else tokens)[columns]),
        },
        attrs={
            "long_name": f"Attention of L{layer}H{head}",
            "units": "probability",
            "scale": "sequential",
            "low": 0.0,
            "high": 1.0,
            "attention": str(capture.attrs.get("attention", "self")),
            "layer": int(layer),
            "head": int(head),
            "prompt": int(prompt),
        },
    )


def _pick(capture: xr.Dataset, layer: int, head: int, prompt: int) -> Callable[[str], Any]:
    """Return a function that reads one variable for one head and prompt."""
    for name, value in (("layer", layer), ("head", head)):
        if value not in capture[name].values:
            raise Refused(f"{name}: no {value} in this capture; it has {_range(capture[name])}")
    if not 0 <= prompt < capture.sizes["prompt"]:
        raise Refused(f"prompt: no {prompt}; the capture has 0 to {capture.sizes['prompt'] - 1}")
    place = {
        "prompt": prompt,
        "layer": int(np.flatnonzero(capture["layer"].values == layer)[0]),
        "head": int(np.flatnonzero(capture["head"].values == head)[0]),
    }
    group = int(capture["kv_group"].values[place["head"]])
    place["kv_head"] = int(np.flatnonzero(capture["kv_head"].values == group)[0])

    def read(name: str) -> Any:
        # Variables, not the whole Dataset: analyses ask for many heads, one row each.
        return capture.variables[name].isel(place, missing_dims="ignore").values

    return read


def _range(coordinate: Any) -> str:
    return f"{int(coordinate.min())} to {int(coordinate.max())}"


def _positions(field: str, window: slice | None, length: int) -> Any:
    found = np.arange(length)[window if window is not None else slice(None)]
    if len(found) == 0:
        raise Refused(f"{field}: {window} holds no position; the prompt has {length} tokens")
    return found
