"""Build the Dataset of a capture: variables with their attrs, coordinates, and the provenance."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.kernels import statistics
from headscope.probes.capturing import binning
from headscope.probes.capturing.array_writer import ArrayWriter
from headscope.probes.capturing.coords import LayerCoords, token_coords
from headscope.probes.capturing.options import CaptureOptions

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.prompt_batch import Prompts

KEPT = {
    "q": "Queries, after their rotation",
    "k": "Keys, after their rotation",
    "v": "Values",
    "z": "Output of every head, after the edits",
    "resid": "Residual stream before each block and after the last",
}
CONVENTION = (
    "weights are the softmax over the keys a query can see, position 0 is the first token "
    "(<bos> where there is one), NaN beyond the length of a prompt"
)


def build_dataset(writer: ArrayWriter, layers: LayerCoords, padding: str) -> xr.Dataset:
    """Lay names, coords and attrs over the arrays of a capture; nothing is copied."""
    variables = {
        name: (dims, writer.arrays[name], attrs_of(name)) for name, dims in writer.dims.items()
    }
    attrs = provenance(writer.model, writer.prompts, writer.options, padding)
    return xr.Dataset(variables, coords=_coords(writer, layers), attrs=attrs)


def attrs_of(name: str) -> dict[str, Any]:
    """Describe a variable: what it is, its units, its bounds and its source."""
    if name in KEPT:
        return {"long_name": KEPT[name], "units": "activation", "scale": "diverging"}
    statistic = statistics.load(name)
    attrs: dict[str, Any] = {
        "long_name": statistic.doc.strip().splitlines()[0].rstrip("."),
        "units": statistic.units,
        "scale": statistic.scale,
        "source": statistic.source,
    }
    for bound, value in (("low", statistic.low), ("high", statistic.high)):
        if value is not None:
            attrs[bound] = float(value)
    return attrs


def _coords(writer: ArrayWriter, layers: LayerCoords) -> dict[str, Any]:
    """Collect the coordinates of tokens, layers, heads and of the dims of the statistics."""
    model = writer.model
    coords: dict[str, Any] = {
        "layer": np.arange(model.layers),
        "head": np.arange(model.heads),
        "kv_group": ("head", np.arange(model.heads) // (model.heads // model.kv_heads)),
        **binning.position_coords(token_coords(model, writer.prompts), writer.width),
        **layers.coords(),
    }
    used = {dim for dims in writer.dims.values() for dim in dims}
    if writer.width > 1:
        starts = np.arange(0, writer.longest, writer.width)
        coords.update({dim: starts for dim in binning.DIMS if dim in used})
    if "kv_head" in used:
        coords["kv_head"] = np.arange(model.kv_heads)
    labels = writer.labels(writer.longest)
    return coords | {dim: np.array(names) for dim, names in labels.items()}


def provenance(
    model: Model, prompts: Prompts, options: CaptureOptions, padding: str
) -> dict[str, Any]:
    """Describe where a capture comes from, for its attrs."""
    request = options.request
    return {
        "model": model.name,
        "revision": model.revision,
        "architecture": model.architecture,
        "attention": model.attention,
        "dtype": str(model.dtype).removeprefix("torch."),
        "task": prompts.task,
        "seed": prompts.seed,
        "n_prompts": len(prompts.ids),
        "prompts_sha256": prompts.digest(),
        "stats": list(options.stats),
        "first": request.first,
        "tile": request.tile,
        "clip": "" if request.clip is None else request.clip,
        "recent": request.recent,
        "share": request.share,
        "k": request.k,
        "horizon": list(request.horizon),
        "last": request.last,
        "edits": json.dumps([edit.describe() for edit in options.edits]) if options.edits else "",
        "reweighted": options.reweighted,
        "bins": "" if options.bins is None else options.bins,
        "bin_width": binning.width_of(options.bins, max(prompts.longest)),
        "padding": padding,
        "convention": CONVENTION,
        "headscope": version("headscope"),
    }
