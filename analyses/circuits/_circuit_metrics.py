"""What circuits of edges are worth: faithfulness, and its areas over the share of edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._interventions.ablation import Array
from headscope.analyses._interventions.edge_patching import patching, score
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.analyses._stats.bootstrap import TAIL, draws, percentiles
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedTask

Mask = NDArray[np.bool_]
RESAMPLES = 1000
# Shares of all edges that circuits are measured at (Mueller et al., MIB, 2504.13151).
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

Ends = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Measured:
    """Metric of the clean and of the corrupted prompts, and with circuits alone.

    ``clean`` and ``corrupted`` are (prompt,), ``circuits`` (prompt, circuit).
    """

    clean: Array
    corrupted: Array
    circuits: Array

    @property
    def gap(self) -> Array:
        """Metric of the clean prompts less that of the corrupted ones (prompt,)."""
        return self.clean - self.corrupted

    @property
    def above(self) -> Array:
        """Metric of circuits less that of the corrupted prompts (prompt, circuit)."""
        return self.circuits - self.corrupted[:, None]

    def part(self, prompts: slice) -> Measured:
        """Return a part with some of the prompts."""
        return Measured(self.clean[prompts], self.corrupted[prompts], self.circuits[prompts])


def measure(model: Model, task: EncodedTask, metric: str, circuits: list[Mask]) -> Measured:
    """Run a task with each circuit alone: all other edges patched from the corrupted prompt."""
    answers = AnswerMetric(metric, task.questions)
    with patching(model, task) as split:
        edges = split.graph.edges
        # All edges, none, and of circuits that are the same only one.
        packed: dict[bytes, int] = {}
        indices: list[int] = []
        masks: list[Mask] = []
        for circuit in (edges, edges & False, *circuits):
            key = np.packbits(circuit).tobytes()
            if key not in packed:
                packed[key] = len(masks)
                masks.append(edges & ~circuit)
            indices.append(packed[key])
        scores = np.full((len(task), len(masks)), np.nan)
        for prompts, run in split.batches():
            scores[prompts] = score(run, answers, prompts, np.stack(masks))
            del run
    scores = scores[:, indices]
    return Measured(scores[:, 0], scores[:, 1], scores[:, 2:])


def cpr(faithfulness: Array) -> Array:
    """Return the area of faithfulness over the share of edges (..., share)."""
    return np.asarray(np.trapezoid(_from_none(faithfulness), (0.0, *SHARES), axis=-1))


def cmd(faithfulness: Array) -> Array:
    """Return the area between faithfulness and 1 over the share of edges (..., share).

    >>> float(cmd(np.array([1.0] * 10)))
    0.0005
    """
    gap = np.abs(1 - _from_none(faithfulness))
    return np.asarray(np.trapezoid(gap, (0.0, *SHARES), axis=-1))


def interval(
    above: Array, below: Array, seed: int, function: Callable[[Array], Array] = np.asarray
) -> Ends:
    """Return a function of ratios of means, with its 95 % interval over prompts.

    ``above`` is (prompt, ...), ``below`` (prompt,); prompts of both are resampled together. NaN
    ends with one prompt.
    """
    flat = above.reshape(len(above), -1)
    shape = above.shape[1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        point = function((flat.mean(0) / below.mean()).reshape(shape))
        if len(flat) < 2:
            missing = np.full(np.shape(point), np.nan)
            return point, missing, missing.copy()
        weights = draws(len(flat), RESAMPLES, seed)
        ratios = (weights @ flat) / (weights @ below)[:, None]
        values = function(ratios.reshape(RESAMPLES, *shape))
    lower, upper = percentiles(values.reshape(RESAMPLES, -1), TAIL)
    return point, lower.reshape(np.shape(point)), upper.reshape(np.shape(point))


def _from_none(faithfulness: Array) -> Array:
    """Prepend the point without edges, where the value is 0."""
    return np.concatenate([np.zeros_like(faithfulness[..., :1]), faithfulness], -1)
