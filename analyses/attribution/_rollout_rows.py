"""Rows of rollout from queries and keys, layer by layer: no map is ever whole."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from headscope.analyses._relevance._attention_flow import step
from headscope.analyses._runtime.options import require_one_text
from headscope.analyses._runtime.results import require_maps
from headscope.kernels.api import AttentionSpec, Request, attend
from headscope.kernels.errors import NotApplicable

TOLERANCE = 1e-3


def check(capture: xr.Dataset) -> None:
    """Refuse a capture from which rows do not follow."""
    for name in ("q", "k", "lse"):
        if name not in capture:
            raise NotApplicable(f"capture: no {name}; rows need capture(..., keep=('q', 'k'))")
    require_one_text(capture.attrs.get("attention", "self"), "rows", ("self", "encoder"))
    if "position_bias" in capture.coords:
        raise NotApplicable(
            "capture: rows know no position bias, which this model adds to its logits"
        )
    require_maps(capture, "rollout")
    if capture.attrs.get("reweighted"):
        raise NotApplicable(
            "edits: the weights of this capture were edited, and q and k do not say how"
        )


def follow(
    capture: xr.Dataset, prompt: int, positions: Sequence[int], **mixing: Any
) -> NDArray[np.float64]:
    """Multiply output positions by the mixed maps of all layers, last layer first (row, key).

    ``mixing`` are the options of `_attention_flow.mix`; by default heads are averaged and the
    residual stream is mixed in, ``Â = rownorm(mean_h A + I)``.

    Source: Abnar & Zuidema, Quantifying Attention Flow in Transformers (2005.00928).
    """
    length = int(capture["length"].values[prompt])
    rows = torch.zeros(1, 1, length, len(positions))
    for number, position in enumerate(positions):
        rows[0, 0, position, number] = 1.0
    for layer in reversed(range(capture.sizes["layer"])):
        part = capture.isel(layer=layer, prompt=prompt)
        q, k, variant = _call(part, length)
        _check(part, q, k, variant)
        rows = step(rows, q, k, variant, **mixing)
    return rows[0, 0].T.double().numpy()


def _call(
    part: xr.Dataset, length: int
) -> tuple[Float[Tensor, "1 head key size"], Float[Tensor, "1 head key size"], AttentionSpec]:
    q = part["q"].transpose("head", "query", "size").values[:, :length]
    k = part["k"].transpose("kv_head", "key", "size").values[:, :length]
    row_of = {int(name): row for row, name in enumerate(part["kv_head"].values)}
    k = k[[row_of[int(group)] for group in part["kv_group"].values]]
    window, softcap = float(part["window"]), float(part["softcap"])
    sinks = part["sink_logit"].values if "sink_logit" in part.coords else np.full(len(q), np.nan)
    slopes = part["alibi_slope"].values if "alibi_slope" in part.coords else None
    variant = AttentionSpec(
        scale=float(part["logit_scale"]),
        causal=bool(part["causal"]),
        window=None if np.isnan(window) else int(window),
        softcap=None if np.isnan(softcap) else softcap,
        slopes=None if slopes is None else torch.from_numpy(slopes),
        sinks=None if np.isnan(sinks).any() else torch.from_numpy(sinks),
    )
    return torch.from_numpy(np.ascontiguousarray(q))[None], torch.from_numpy(k)[None], variant


def _check(part: xr.Dataset, q: Tensor, k: Tensor, variant: AttentionSpec) -> None:
    """Refuse weights that something else than q and k went into: the captured lse would differ."""
    # The last query with all keys is a text of its own, in causal order alone.
    rows = slice(-1 if variant.causal else 0, None)
    recomputed = attend(q[:, :, rows], k, k[..., :1], Request(stats=("lse",)), variant)["lse"][0]
    lse = part["lse"].transpose("head", "query").values[:, : q.shape[2]][:, rows]
    off = np.abs(recomputed.numpy() - lse).max(axis=1)
    if off.max() > TOLERANCE:
        head = int(part["head"].values[int(off.argmax())])
        raise NotApplicable(
            f"capture: the weights of L{int(part['layer'])}H{head} do not follow from its q and k; "
            "capture without edits of the weights"
        )
