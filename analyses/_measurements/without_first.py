"""Rows without their first token: attention renormalised over all keys but the first.

Many heads of real models park nearly all their weight on the first token, a sink. Then its entropy
is near 0, its distance the place of the query and its span the whole text, whatever the head does
with the rest. With the weights P of a row, its mass ``p`` on the first token and the other weights
``Q_j = P_j / (1 − p)``, entropy and mean distance follow from those of the whole row:

``H' = (H + p log p) / (1 − p) + log(1 − p)`` and ``μ' = (μ − p d) / (1 − p)``

where d is the distance to the first token. A learned sink stays an outcome. Rows with less than
`LEAST` on other keys are left out: float32 holds too little of them.
"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._stats.length_trend import Array, mean, per_query, visible
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import percent

# What a row must leave for other keys than the first.
LEAST = 1e-3
# Numbers without the first token come first where it has so much more of the attention of all
# heads than if every row were even.
LARGE = 0.25
# What the names, titles and conventions of such variables end with.
SUFFIX = "_without_first"
TITLE = ", without the first token"
RULE = (
    "; attention renormalised over all keys but the first token, of rows with "
    f"{percent(LEAST)} or more on those"
)


def mass(capture: xr.Dataset) -> Array:
    """Return the mass on the first token (prompt, layer, head, query), NaN where it has all."""
    if int(capture.attrs.get("first", 1)) != 1:
        raise NotApplicable(
            f"capture: first={capture.attrs['first']} keys are counted as one mass; capture with "
            "first=1 for what attention is without the first token"
        )
    masses = per_query(capture, "first_mass")
    return np.where(masses <= 1 - LEAST, masses, np.nan)


def first_dominates(capture: xr.Dataset) -> bool:
    """Return whether the first token has so much mass that numbers without it come first."""
    mass, even = _shares(capture)
    return mass - even > LARGE


def dominance_note(capture: xr.Dataset, outcome: str = "heads are judged without it") -> str:
    """Describe why numbers without the first token come first; empty where they do not."""
    if not first_dominates(capture):
        return ""
    mass, even = map(percent, _shares(capture))
    return (
        f"{mass} of the attention lies on the first token ({even} if it were even), so {outcome}. "
    )


def _shares(capture: xr.Dataset) -> tuple[float, float]:
    """Return the mean mass on the first token, and that of even rows; of rows that see others."""
    masses, keys = per_query(capture, "first_mass"), visible(capture)[:, :, None]
    rows = ~np.isnan(masses) & (others(capture) > 0)[:, :, None]
    even = np.where(_sees_first(capture)[:, :, None], 1 / keys, 0.0)
    mass, even = (mean(np.where(rows, shares, np.nan).ravel()) for shares in (masses, even))
    return float(mass), float(even)


def entropy(raw: Array, first: Array) -> Array:
    """Return the entropy of rows without their first key, from entropy and mass, in nats."""
    rest = 1 - first
    with np.errstate(divide="ignore", invalid="ignore"):
        renormalized = (raw + np.where(first > 0, first * np.log(first), 0.0)) / rest + np.log(rest)
    return np.maximum(renormalized, 0.0)


def distance(mean_distance: Array, first: Array, clip: float = np.inf) -> Array:
    """Return the mean distance of rows without their first key, from mean distance and mass."""
    to_first = np.minimum(np.arange(mean_distance.shape[-1]), clip)
    return np.maximum((mean_distance - first * to_first) / (1 - first), 0.0)


def largest(weights: Array, first: Array) -> Array:
    """Return the k − 1 largest weights of rows without their first key, from their k largest.

    ``weights`` (…, k) fall from the largest; the first key's, if among them, is the one left out.
    """
    if weights.shape[-1] < 2:
        raise NotApplicable(
            "capture: topk holds one weight a row, and without the first token there may be none; "
            "capture with k=2 or more"
        )
    # Both are sums of float32: the first key's own weight must not count as one above it.
    rank = (weights > 1.0001 * first[..., None]).sum(-1, keepdims=True)
    ranks = np.arange(weights.shape[-1] - 1)
    kept = np.where(ranks < rank, weights[..., :-1], weights[..., 1:])
    return np.asarray(kept / (1 - first)[..., None])


def strength(histogram: Array, first: Array, edges: Array) -> Array:
    """Return the weight by distance (…, query, bin) of rows without their first key.

    ``edges`` are the smallest distances of the bins.
    """
    bins = np.searchsorted(edges, np.arange(histogram.shape[-2]), side="right") - 1
    at_first = first[..., None] * (bins[:, None] == np.arange(len(edges)))
    return np.asarray(np.maximum(histogram - at_first, 0.0) / (1 - first)[..., None])


def others(capture: xr.Dataset) -> Array:
    """Count the keys but the first that each query sees (prompt, layer, query)."""
    return visible(capture) - _sees_first(capture)


def _sees_first(capture: xr.Dataset) -> NDArray[np.bool_]:
    """Return which queries have the first key in their window (prompt, layer, query)."""
    shape = visible(capture).shape
    return np.broadcast_to(~(np.arange(shape[-1]) >= capture["window"].values[:, None]), shape)
