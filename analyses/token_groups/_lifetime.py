"""What every key receives from near, from afar and at the end of a text, without any N×N map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.models.model import Model

STATS = ("received", "received_later", "received_last")


@dataclass(frozen=True)
class Received:
    """Weight of every key of one causal prompt (layer, head, key).

    ``total`` is the sum over all queries, ``near`` over those within the window; ``far`` the mean
    over the queries beyond it times the keys that these see, 0 without any; ``end`` the same over
    the last queries of the text, as many as the window has tokens.
    """

    total: Array
    near: Array
    far: Array
    end: Array


def received(model: Model, ids: Sequence[int], window: int, reach: Array) -> Received:
    """Read what every key of a causal prompt receives.

    ``window`` includes the query's own token; ``reach`` is the number of keys that a query of each
    layer sees at most (layer,), NaN where there is no limit.
    """
    length = len(ids)
    sums = {name: np.full((model.layers, model.heads, length), np.nan) for name in STATS}

    def take(call: Any, outputs: Any, z: Any) -> None:
        for name in STATS:
            sums[name][call.layer] = outputs[name][0].double().cpu().numpy()

    request = Request(stats=STATS, horizon=(0, window - 1), last=window)
    with torch.no_grad():
        run(model, torch.tensor([list(ids)]), Reader(request, (), take), head=False)

    position = np.arange(length)
    limit = np.where(np.isnan(reach), length, reach)[:, None]
    queries = np.minimum(length - position, limit)
    close = np.minimum(queries, window)
    total = sums["received"] * queries[:, None]
    near = sums["received_later"] * close[:, None]
    visible = np.minimum(position + 1, limit)
    before = np.concatenate([np.zeros((len(reach), 1)), visible.cumsum(1)], axis=1)
    first, stop = (position + close).astype(int), (position + queries).astype(int)
    beyond = np.maximum(queries - close, 1)
    keys = (np.take_along_axis(before, stop, 1) - np.take_along_axis(before, first, 1)) / beyond
    far = np.maximum(total - near, 0.0) / beyond[:, None] * keys[:, None]
    # A key out of sight of the last queries gets nothing from them.
    hidden = np.isnan(sums["received_last"]) & ~np.isnan(sums["received"])
    end = np.where(hidden, 0.0, sums["received_last"])
    return Received(total, near, far, end * visible[:, -window:].mean(1)[:, None, None])


def judge(weights: Received, alive: float) -> NDArray[np.int64]:
    """Class every key: 0 window, 1 local, 2 global (layer, head, key).

    >>> zero = np.zeros((1, 1, 3))
    >>> far, end = zero + [0.0, 1.0, 1.0], zero + [0.0, 0.0, 1.0]
    >>> judge(Received(zero, zero, far, end), 0.5).tolist()
    [[[0, 1, 2]]]
    """
    return np.where(weights.end >= alive, 2, np.where(weights.far >= alive, 1, 0))
