"""Variables: the dims and attrs of what a capture holds besides statistics, and of these."""

from __future__ import annotations

from typing import Any

from headscope.kernels import statistics

KEPT = {
    "q": ("Queries, after their rotation", ("head", "query", "size")),
    "k": ("Keys, after their rotation", ("kv_head", "key", "size")),
    "v": ("Values", ("kv_head", "key", "size")),
    "z": ("Output of every head, after the edits", ("head", "query", "size")),
    "resid": ("Residual stream before each block and after the last", ("query", "channel")),
}


def attrs_of(name: str) -> dict[str, Any]:
    """Describe a variable: what it is, its units, its bounds and its source."""
    if name in KEPT:
        return {"long_name": KEPT[name][0], "units": "activation", "scale": "diverging"}
    one = statistics.load(name)
    attrs: dict[str, Any] = {
        "long_name": one.doc.strip().splitlines()[0].rstrip("."),
        "units": one.units,
        "scale": one.scale,
        "source": one.source,
    }
    for bound, value in (("low", one.low), ("high", one.high)):
        if value is not None:
            attrs[bound] = float(value)
    return attrs
