"""Rows of logits and weights of every head, for chosen queries, from kept queries and keys."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._runtime import options
from headscope.kernels.errors import NotApplicable

Array = NDArray[np.float64]
KEEP = ("q", "k")


def chosen(length: int, count: int, skip: int) -> NDArray[np.int64]:
    """Choose up to ``count`` query positions, evenly, the last one always, the first never."""
    first = min(skip, length - 1)
    positions = np.linspace(length - 1, first, min(count, length - first))
    return np.unique(positions.round().astype(np.int64))


def refuse_other(capture: xr.Dataset, analysis: str) -> None:
    """Refuse attention of two texts, and weights that do not follow from queries and keys."""
    options.require_one_text(capture.attrs.get("attention", "self"), analysis)
    if capture.attrs.get("reweighted"):
        raise NotApplicable(
            "edits: the weights of this capture were edited; capture without these edits"
        )


@dataclass(frozen=True)
class Rows:
    """Some queries of one layer and prompt, and all keys.

    Attributes
    ----------
    queries, keys
        Vectors, dims head, row, size and head, key, size: query heads of a group share their keys.
    positions
        Positions of the queries.
    scale, softcap
        How products become logits; no cap is NaN.
    bias
        What a position bias or ALiBi adds to the logits, dims head, row, key, or 1, 1, 1.
    visible
        Keys that each query sees, dims row, key.
    lse
        Log of the normaliser, dims head, row; a learned sink is in it.
    """

    queries: Array
    keys: Array
    positions: NDArray[np.int64]
    scale: float
    softcap: float
    bias: Array
    visible: NDArray[np.bool_]
    lse: Array

    @property
    def chosen_keys(self) -> Array:
        """Keys at the positions of the queries, dims head, row, size."""
        return self.keys[:, self.positions]

    def products(self) -> Array:
        """Return the scaled products of queries and keys (head, row, key): no cap, no bias."""
        return np.asarray(self.queries @ self.keys.transpose(0, 2, 1) * self.scale)

    def weights(self, products: Array | None = None) -> Array:
        """Return the attention weights (head, row, key), 0 where a key is not seen.

        With products of one's own they are normalised anew, in place of the captured normaliser.
        """
        own = products is None
        logits = self.products() if products is None else products
        if not np.isnan(self.softcap):
            logits = self.softcap * np.tanh(logits / self.softcap)
        logits = np.where(self.visible, logits + self.bias, -np.inf)
        lse = self.lse if own else np.logaddexp.reduce(logits, axis=-1)
        return np.asarray(np.exp(logits - lse[..., None]))


def rows(
    capture: xr.Dataset, prompt: int, layer: int, positions: NDArray[np.int64], *, lse: bool = True
) -> Rows:
    """Read the rows of the queries at some positions from the kept ``q`` and ``k`` and ``lse``.

    ``prompt`` and ``layer`` are indices. Without ``lse`` there are no weights.
    """
    of_layer = _at(capture, prompt, layer)
    length = int(capture["length"].values[prompt])
    window = float(capture["window"].values[layer])
    row_of = {int(name): row for row, name in enumerate(capture["kv_head"].values)}
    groups = [row_of[int(group)] for group in capture["kv_group"].values]
    keys = np.arange(length)
    distance = positions[:, None] - keys[None, :]
    visible = np.ones(distance.shape, dtype=bool)
    if bool(capture["causal"].values[layer]):
        visible &= distance >= 0
    if not np.isnan(window):
        visible &= np.abs(distance) < window
    return Rows(
        queries=of_layer("q", "head", "query")[:, positions],
        keys=of_layer("k", "kv_head", "key")[groups, :length],
        positions=positions,
        scale=float(capture["logit_scale"].values[layer]),
        softcap=float(capture["softcap"].values[layer]),
        bias=_bias(capture, layer, -distance),
        visible=visible,
        lse=of_layer("lse", "head", "query")[:, positions] if lse else np.empty(0),
    )


def _bias(capture: xr.Dataset, layer: int, offset: NDArray[np.int64]) -> Array:
    """Return what is added to the logits at each offset of a key from its query."""
    bias = np.zeros((1, 1, 1))
    for name in ("position_bias", "alibi_slope"):
        if name not in capture.coords or np.isnan(capture[name].values[layer]).any():
            continue
        table = capture[name].values[layer].astype(np.float64)
        if name == "position_bias":
            bias = bias + table[:, offset + capture.sizes["relative"] // 2]
        else:
            bias = bias - table[:, None, None] * np.abs(offset)
    return np.asarray(bias)


def _at(capture: xr.Dataset, prompt: int, layer: int) -> Any:
    def read(name: str, *dims: str) -> Array:
        # Variables, not the whole Dataset: a capture may be a file larger than memory.
        variable = capture.variables[name].isel(prompt=prompt, layer=layer)
        return np.asarray(variable.transpose(*dims, ...).values, dtype=np.float64)

    return read
