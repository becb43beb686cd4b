"""Lenses on every head and on the stream behind every layer, judged on held-out prompts."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
import xarray as xr

from headscope.analyses._measurements import residual_writes
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.head_roles import _linear_lens
from headscope.analyses.head_roles._linear_lens import Judge, Judged
from headscope.probes.attention import projections
from headscope.probes.models.model import Model

LENSES = ("untrained", "trained", "shuffled")
WORDS = 4
"""Words that are named of a head."""
LEAST_LIFT = 1e-4
"""Nats by which a lens raises a word that is named; below is rounding."""


@dataclass
class Lens:
    """One lens on every head: KL and agreement (prompt, layer, head), and its words by head."""

    distance: Array
    agrees: Array
    words: dict[tuple[int, int], list[int]] = field(default_factory=dict)


def judge_heads(
    model: Model, capture: xr.Dataset, judge: Judge, order: torch.Tensor, ridge: float
) -> dict[str, Lens]:
    """Judge the lenses of every head."""
    shape = (capture.sizes["prompt"], model.layers, model.heads)
    outwards = projections.read(model, ("o",))
    writes = residual_writes.head_writes(model)
    targets = torch.cat([judge.final, judge.final[order]], dim=1)
    width = judge.final.shape[1]
    lenses = {name: Lens(*np.full((2, *shape), np.nan)) for name in LENSES}
    for layer in model.geometry.attending:
        z = capture["z"].isel(layer=layer).transpose("prompt", "query", "head", "size")
        features = judge.folds.rows(z).float()
        fitted = _linear_lens.predicted(features, targets, judge.folds, judge.judged, ridge)
        norm, outward = writes[layer].norm, outwards.of(layer, "o")
        for head in range(model.heads):
            written = features[judge.judged, head].double() @ outward[head]
            if norm is not None:
                written = norm.linear(written)
            judged = {
                "untrained": judge.untrained(written.float()),
                "trained": judge.trained(fitted[:, head, :width]),
                "shuffled": judge.trained(fitted[:, head, width:]),
            }
            for name, lens in lenses.items():
                lens.distance[:, layer, head] = judged[name].distance.numpy()
                lens.agrees[:, layer, head] = judged[name].agrees.numpy()
                lens.words[layer, head] = _most(judged[name])
    return lenses


def judge_streams(
    model: Model, capture: xr.Dataset, judge: Judge, ridge: float
) -> tuple[Array, Array]:
    """Return the KL of logit lens and tuned lens behind every layer (prompt, layer)."""
    distances = np.full((2, capture.sizes["prompt"], model.layers), np.nan)
    for layer in range(model.layers):
        stream = _linear_lens.stream(capture, judge.folds, layer + 1)
        normed = judge.normed(stream)
        fitted = _linear_lens.predicted(
            normed[:, None], judge.final, judge.folds, judge.judged, ridge
        )
        distances[0, :, layer] = judge.untrained(stream[judge.judged]).distance.numpy()
        distances[1, :, layer] = judge.trained(fitted[:, 0]).distance.numpy()
    return distances[0], distances[1]


def _most(judged: Judged) -> list[int]:
    """Return the words that a lens raises most, or that it most often puts first."""
    if judged.lift is None:
        return [word for word, _ in Counter(judged.first.tolist()).most_common(WORDS)]
    most, words = judged.lift.topk(min(WORDS, len(judged.lift)))
    return words[most > LEAST_LIFT].tolist()
