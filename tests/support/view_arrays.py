"""Arrays of any dims for the tests of views."""

import numpy as np
import xarray as xr

RNG = np.random.default_rng(7)
EDGE = {
    "source_layer": ("edge", [0, 0, 1]),
    "source_head": ("edge", [1, 2, 0]),
    "target_layer": ("edge", [1, 2, 2]),
    "target_head": ("edge", [0, 3, 1]),
}
POINT = {
    "x": ("point", [0.0, 1.0, 2.0]),
    "y": ("point", [5.0, 3.0, 4.0]),
    "kind": ("point", ["query", "key", "query"]),
    "label": ("point", ["a", " the", "<b>"]),
}


def array(*sizes: tuple[str, int], **attrs: object) -> xr.DataArray:
    dims, shape = tuple(name for name, _ in sizes), tuple(size for _, size in sizes)
    meaning = {"long_name": "Some score.", "units": "share", "scale": "sequential"}
    coords = EDGE if "edge" in dims else POINT if "point" in dims else None
    values, attrs = RNG.uniform(0.1, 0.9, shape), {**meaning, **attrs}
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


LAYERS, HEADS = ("layer", 3), ("head", 4)
