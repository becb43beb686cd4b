"""Principal components of the keys of a model, and its output with keys of fewer directions."""

import numpy as np
import xarray as xr

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._measurements import qk_rows
from headscope.analyses._measurements.qk_rows import Array
from headscope.probes.attention.rotary import Rotation
from headscope.probes.models.model import Model


def components(vectors: Array, variance: float) -> Array:
    """Count the principal components that hold a share of the variance (...).

    >>> components(np.diag([3.0, 1.0, 1.0]) @ np.eye(3), 1.0)
    array(2)
    """
    centred = vectors - vectors.mean(-2, keepdims=True)
    values = np.linalg.eigvalsh(np.swapaxes(centred, -1, -2) @ centred)[..., ::-1].clip(0)
    total = values.sum(-1, keepdims=True)
    share = np.cumsum(values, -1) / np.where(total > 0, total, 1.0)
    # All of the variance is held to rounding.
    return np.asarray((share < variance - 1e-12).sum(-1) + (total[..., 0] > 0))


def of_layer(capture: xr.Dataset, layer: int) -> list[Array]:
    """Return the kept keys of a layer, by prompt (kv_head, key, size)."""
    keys = capture.variables["k"].isel(layer=layer).transpose("prompt", "kv_head", "key", "size")
    return [
        keys[prompt, :, : int(length)].values.astype(np.float64)
        for prompt, length in enumerate(capture["length"].values)
    ]


def ranks(capture: xr.Dataset, turns: dict[int, Rotation], variance: float) -> tuple[Array, Array]:
    """Count components of keys as they are compared, and before their rotation (layer, kv_head)."""
    shape = (capture.sizes["layer"], capture.sizes["kv_head"])
    after, before = np.full(shape, np.nan), np.full(shape, np.nan)
    for layer, turn in turns.items():
        keys = of_layer(capture, layer)
        after[layer] = components(np.concatenate(keys, axis=1), variance)
        back = [turn.undo(vectors) for vectors in keys]
        before[layer] = components(np.concatenate(back, axis=1), variance)
    return after, before


def moved(model: Model, capture: xr.Dataset, counts: Array, checked: int, seed: int) -> Array:
    """Project all keys onto some directions: their components, or random ones (prompt, both).

    Returns how far the output distribution moves, in nats.
    """
    rng = np.random.default_rng(seed)
    groups = capture["kv_group"].values
    projectors: dict[int, tuple[Array, Array]] = {}
    for layer in model.geometry.attending:
        keys = np.concatenate(of_layer(capture, layer), axis=1)
        own, random = [], []
        for vectors, count in zip(keys, counts[layer].astype(int), strict=True):
            basis = np.linalg.eigh(np.cov(vectors.T))[1][:, ::-1][:, :count]
            drawn = np.linalg.qr(rng.normal(size=(keys.shape[-1], count)))[0]
            own.append(basis @ basis.T)
            random.append(drawn @ drawn.T)
        projectors[layer] = (np.stack(own)[groups], np.stack(random)[groups])
    divergences = []
    for prompt in range(min(checked, capture.sizes["prompt"])):
        whole = np.arange(int(capture["length"].values[prompt]))
        patterns: tuple[dict[tuple[int, int], Array], ...] = ({}, {})
        for layer, pair in projectors.items():
            rows = qk_rows.rows(capture, prompt, layer, whole, lse=False)
            for weights_of, projector in zip(patterns, pair, strict=True):
                # What all keys share adds the same to every logit of a row.
                products = rows.queries @ (rows.keys @ projector).transpose(0, 2, 1) * rows.scale
                for head, weights in enumerate(rows.weights(products)):
                    weights_of[layer, head] = weights
        edits = [pattern_substitution.fix(weights_of) for weights_of in patterns]
        divergences.append(pattern_substitution.divergences(model, capture, prompt, edits))
    return np.asarray(divergences)
