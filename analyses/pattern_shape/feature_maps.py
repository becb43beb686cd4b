"""Feature maps: the weights of each head under linear attention, by spikiness and monotonicity.

Linear attention puts ``φ(q)·φ(k) / Σ φ(q)·φ(k')`` in the place of the softmax. From the queries and
keys of each head the weights under several maps φ are computed at a few queries. Spikiness is
``1 − H / log n``; monotonicity is the rank correlation, within a row, of the weights with the
scores q·k: 1 where a larger score always means a larger weight, as for the softmax. Maps that lose
both are why linear attention needs training. Distance is half the sum of absolute differences from
the head's own weights over the keys, 0 to 1.

Source: The Hedgehog & the Porcupine (spikiness and monotonicity of feature maps).
"""

from typing import Annotated

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import Results, attending, label, require
from headscope.analyses._stats.length_trend import Array, length_note
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount

NEEDS = ("lse",)
KEEP = ("q", "k")
QUICK = {"prompts": 2}
SUPPORTS = {"encoder", "vision", "hybrid"}

SOURCE = "The Hedgehog & the Porcupine"
MAPS = ("softmax", "taylor", "elu", "relu")
ABOUT = {
    "softmax": "exp(q·k)",
    "taylor": "1 + q·k + (q·k)²/2",
    "elu": "φ(x) = elu(x) + 1",
    "relu": "φ(x) = max(x, 0)",
}
# Title, unit, scale and lower bound of each measure; the upper one is 1.
MEASURES = {
    "monotonicity": ("Rank correlation of weights with scores", "ρ", "diverging", -1),
    "spikiness": ("Spikiness of the weights, 1 − H / log n", "share", "sequential", 0),
    "distance": ("Distance from the head's own weights", "share", "sequential", 0),
}
LEAST = 4
TOLERANCE = 1e-3


def run(
    capture: xr.Dataset,
    *,
    queries: Annotated[int, AtLeast(1)] = 8,
    prompts: Annotated[int, AtLeast(1)] = 8,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the weights under linear feature maps with those of the softmax, head by head.

    Parameters
    ----------
    capture
        Capture with the kept ``q`` and ``k``, and with ``lse``.
    queries
        Queries that are measured, spread over the second half of each prompt.
    prompts
        Prompts that are measured, from the first on.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``monotonicity`` and ``map_spikiness`` (layer, head, feature_map) and
    ``map_distance`` (layer, head, feature_map; from the head's own weights), and their means over
    heads ``mean_monotonicity``, ``mean_spikiness`` and ``mean_distance`` (feature_map), with 95 %
    intervals over prompts.
    """
    require(capture, (*NEEDS, *KEEP), "feature_maps", ("self", "encoder", "decoder"))
    if int(capture["length"].min()) < 2 * LEAST:
        raise NotApplicable(
            f"prompts: the shortest has {int(capture['length'].min())} tokens; "
            f"give {2 * LEAST} or more"
        )

    count = min(prompts, capture.sizes["prompt"])
    measured = _measures(capture, count, queries)
    convention = (
        f"{queries} queries of the second half of {count} prompts of {length_note(capture)}; "
        + "; ".join(f"{name}: {formula}" for name, formula in ABOUT.items())
    )
    results = Results(capture, seed=seed, convention=convention, source=SOURCE)
    for values, (name, (title, units, scale, low)) in zip(measured, MEASURES.items(), strict=True):
        own = name if name == "monotonicity" else f"map_{name}"
        over, average = np.nanmean(values, axis=(1, 2)), f"{title}, mean over heads"
        results.add_mean(own, ("layer", "head", "feature_map"), values, title, units, scale, low, 1)
        results.add_mean(f"mean_{name}", ("feature_map",), over, average, units, scale, low, 1)
    spiky, ordered = (
        results[name].values.tolist() for name in ("mean_spikiness", "mean_monotonicity")
    )
    means = "; ".join(
        f"{name} {amount(spikiness)} and {amount(monotonicity)}"
        for name, spikiness, monotonicity in zip(MAPS, spiky, ordered, strict=True)
    )
    return results.dataset(
        {"feature_map": list(MAPS)},
        note=(
            f"Spikiness and monotonicity by map, means over heads: {means}. Scores of weights that "
            "no model was run with: what a head of even weights costs is in `concentration`."
        ),
    )


def _measures(capture: xr.Dataset, count: int, queries: int) -> Array:
    """Return the measures of the first prompts (measure, prompt, layer, head, feature_map)."""
    shape = (len(MEASURES), count, capture.sizes["layer"], capture.sizes["head"], len(MAPS))
    measured = np.full(shape, np.nan)
    for prompt, length in enumerate(capture["length"].values[:count]):
        positions = np.unique(np.linspace(length // 2, length - 1, queries).astype(int))
        for layer in np.flatnonzero(attending(capture)):
            measured[:, prompt, layer] = _layer(capture, prompt, int(layer), positions)
    return measured


def _layer(capture: xr.Dataset, prompt: int, layer: int, positions: NDArray[np.int64]) -> Array:
    """Return the measures of the heads of a layer (measure, head, feature_map), mean of queries."""
    rows = qk_rows.rows(capture, prompt, layer, positions)
    root, cap = np.sqrt(rows.scale), rows.softcap
    measured = np.empty((len(MEASURES), len(rows.queries), len(positions), len(MAPS)))
    for head, row in np.ndindex(measured.shape[1:3]):
        keys, query = rows.keys[head, rows.visible[row]] * root, rows.queries[head, row] * root
        scores = keys @ query
        capped = scores if np.isnan(cap) else cap * np.tanh(scores / cap)
        own = np.exp(capped - rows.lse[head, row])
        if abs(own.sum() - 1) > TOLERANCE and "sink_logit" not in capture.coords:
            raise NotApplicable(
                f"capture: the weights of {label((layer, head))} do not follow from its q and k; "
                "feature maps need scores without a bias or an edit"
            )
        weights = _weights(query, keys, scores, own)
        measured[:, head, row] = (
            _rank_correlations(weights, scores),
            1 - _entropy(weights) / np.log(len(scores)),
            np.abs(weights - weights[0]).sum(-1) / 2,
        )
    return np.asarray(measured.mean(2))


def _weights(query: Array, key: Array, scores: Array, own: Array) -> Array:
    """Return the weights of one row under each map (feature_map, key); even where all are 0."""

    def elu(x: Array) -> Array:
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))

    rows = np.stack([
        own,
        1 + scores + scores**2 / 2,
        elu(key) @ elu(query),
        np.maximum(key, 0) @ np.maximum(query, 0),
    ])  # fmt: skip
    total = rows.sum(-1, keepdims=True)
    return np.where(total > 0, rows / np.where(total > 0, total, 1), 1 / rows.shape[-1])


def _entropy(weights: Array) -> Array:
    logs = np.log(np.where(weights > 0, weights, 1.0))
    return np.asarray(-(weights * logs).sum(-1))


def _rank_correlations(weights: Array, scores: Array) -> Array:
    """Return the rank correlation of each row of weights with the scores, 0 where one is even."""
    from scipy.stats import rankdata

    ranks = rankdata(scores) - (len(scores) + 1) / 2
    correlations = []
    for row in weights:
        own = rankdata(row) - (len(row) + 1) / 2
        size = np.sqrt((own**2).sum() * (ranks**2).sum())
        correlations.append((own * ranks).sum() / size if size > 0 else 0.0)
    return np.array(correlations)
