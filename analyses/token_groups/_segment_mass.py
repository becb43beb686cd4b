"""Mass from segment to segment, what an even spread would give, and what cutting a link does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.next_token_loss import losses, predicts, tokens
from headscope.analyses._runtime.results import heads
from headscope.analyses._stats.length_trend import Array, mean
from headscope.kernels.api import Request
from headscope.probes.attention.forward import Reader, run
from headscope.probes.interventions import KnockOut
from headscope.probes.interventions.base import Edit
from headscope.probes.models.model import Model

Numbers = NDArray[np.int64]


def inputs(capture: xr.Dataset) -> list[Any]:
    """Return what the model reads of every prompt: token ids, or pixels."""
    if "pixels" in capture.coords:
        return list(capture["pixels"].values)
    return list(tokens(capture))


def members(numbers: Numbers, count: int) -> list[Numbers]:
    """List the positions of every segment."""
    return [np.flatnonzero(numbers == segment) for segment in range(count)]


def masses(model: Model, prompt: Any, numbers: Numbers, count: int, rows: list[Numbers]) -> Array:
    """Measure the mean mass of groups of queries on each segment (layer, head, group, segment).

    The kernel adds weights up over the keys of each segment, so there is no N×N map; here they are
    averaged over the queries of each group. NaN where a segment or a group is empty, and in layers
    without an attention map.
    ``numbers`` is the segment of every key, -1 for none; ``rows`` are the queries of every group.
    """
    result = np.full((model.layers, model.heads, len(rows), count), np.nan)
    request = Request(stats=("span_mass",), spans=torch.from_numpy(numbers)[None])

    def take(call: Any, outputs: Any, z: Any) -> None:
        mass = outputs["span_mass"][0].double().cpu().numpy()
        for group, queries in enumerate(rows):
            if len(queries):
                result[call.layer, :, group, : mass.shape[-1]] = mass[:, queries].mean(1)

    with torch.no_grad():
        run(model, _tensor(prompt), Reader(request, (), take), head=False)
    return np.asarray(np.clip(result, 0.0, 1.0))


def even(capture: xr.Dataset, numbers: Numbers, count: int, rows: list[Numbers]) -> Array:
    """Return the mean share of the visible keys in each segment (layer, 1, group, segment).

    It is the mass of a head that spreads its attention evenly over what it sees. NaN where no query
    of a group sees a key of the segment.
    """
    position = np.arange(len(numbers))
    belongs = numbers[:, None] == np.arange(count)
    before = np.concatenate([np.zeros((1, count)), belongs.cumsum(0)])
    layers = []
    for causal, window in zip(capture["causal"].values, capture["window"].values, strict=True):
        reach = len(position) if np.isnan(window) else int(window)
        low = np.maximum(position - reach + 1, 0)
        high = position + 1 if causal else np.minimum(position + reach, len(position))
        share = (before[high] - before[low]) / (high - low)[:, None]
        means = [share[group].mean(0) if len(group) else np.full(count, np.nan) for group in rows]
        layers.append(np.stack(means))
    shares = np.stack(layers)[:, None]
    return np.asarray(np.where(shares > 0, shares, np.nan))


class Hiding:
    """The effect of hiding keys from queries of one prompt, at every token.

    Of a model that predicts the next token, what it adds to the loss of each prediction, in nats;
    of another, how far the last hidden state of each token moves, relative to its length.
    """

    def __init__(self, capture: xr.Dataset, model: Model, prompt: Any) -> None:
        self.capture, self.model, self.prompt = capture, model, prompt
        self.predicting = predicting(capture)
        self.clean = self._read(())

    def effect(self, keys: Sequence[int], queries: Sequence[int] | None = None) -> Array:
        """Hide keys from queries (None: from all) in every head: the effect by token (query,)."""
        edit = KnockOut(heads=tuple(heads(self.capture)), keys=tuple(keys), queries=queries)
        changed = self._read((edit,)) - self.clean
        if self.predicting:
            return changed
        length = np.linalg.norm(self.clean, axis=-1)
        moved = np.linalg.norm(changed, axis=-1)
        return np.asarray(moved / np.where(length > 0, length, np.nan), dtype=np.float64)

    def _read(self, edits: tuple[Edit, ...]) -> Array:
        if self.predicting:
            return losses(self.model, self.prompt, edits)
        with torch.no_grad():
            state = run(
                self.model, _tensor(self.prompt), Reader(Request(stats=()), edits), head=False
            )
        return np.asarray(state[0].double().cpu().numpy())


def predicting(capture: xr.Dataset) -> bool:
    """Return whether a loss can be read: a causal model of tokens."""
    return "pixels" not in capture.coords and predicts(capture)


def units(capture: xr.Dataset) -> tuple[str, str, str]:
    """Return title, units and scale of what `Hiding` measures."""
    if predicting(capture):
        return "Loss that hiding adds", "nats a token", "diverging"
    return "Movement of the last hidden state", "share of its length", "sequential"


def mean_of(effect: Array, chosen: Sequence[int] | Numbers) -> float:
    """Average an effect over chosen tokens; NaN where none of them has one."""
    inside = np.asarray([position for position in chosen if position < len(effect)], dtype=np.int64)
    return float(mean(effect[inside]))


def _tensor(prompt: Any) -> Any:
    if isinstance(prompt, np.ndarray):
        return torch.from_numpy(prompt)[None]
    return torch.tensor([list(prompt)])
