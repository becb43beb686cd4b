"""What is lost without the signals of a head's writers: margin, attention and metric."""

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions import ablation, pattern_substitution, read_removal
from headscope.analyses._interventions.read_removal import Removal
from headscope.analyses._measurements.score_terms import Scores
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.circuits import _pairs, _signal_trace
from headscope.analyses.circuits._signal_trace import SIDES, Firing
from headscope.probes.models.model import Model
from headscope.probes.prompts.tokens import EncodedTask

CONDITIONS = ("signals", "rest of these writes", "random, as long")


def lost_without(
    capture: xr.Dataset, model: Model, task: EncodedTask, scores: Scores,
    firings: list[Firing | None], draws: int, seed: int,
) -> dict[str, Array]:  # fmt: skip
    """Return what margin, attention and metric lose without the signals (prompt, condition).

    NaN on prompts where the score of the head is not above 0.
    """
    generator = torch.Generator().manual_seed(seed)
    names = ("margin", "attention", "metric")[: 2 if pattern_substitution.reason(capture) else 3]
    lost = {name: np.full((len(firings), len(CONDITIONS)), np.nan) for name in names}
    rows, fired = [], []
    for prompt, firing in enumerate(firings):
        if firing is None:
            continue
        parts = {
            side: _signal_trace.removed(scores, capture, prompt, firing, side) for side in SIDES
        }
        vectors = [[parts[side][kind] for side in SIDES] for kind in range(2)]
        vectors += [
            [
                _signal_trace.random_signal(scores, firing, side, parts[side][0], generator)
                for side in SIDES
            ]
            for _ in range(draws)
        ]
        pair, ids = firing.pair, task.ids[prompt]
        removals = [Removal()]
        for of_query, of_key in vectors:
            removals.append(Removal(of_query, _placed(of_key, pair.key, ids)))
        scores_without, weights = read_removal.rows_without(
            model, ids, firing.head, pair.query, removals
        )
        margin = scores_without[:, pair.key] - scores_without[:, pair.rival]
        for name, values in (("margin", margin), ("attention", weights[:, pair.key])):
            lost[name][prompt] = _conditions(values[0] - values[1:])
        rows.append(weights[1:])
        fired.append(prompt)
    if "metric" in lost and fired:
        queries = np.array([firing.pair.query for firing in firings if firing is not None])
        head = next(firing.head for firing in firings if firing is not None)
        part, metric = task.part(fired), _pairs.metric(task)
        moved = read_removal.metric_with(model, part, metric, head, queries, rows)
        intact = ablation.evaluate(model, part, metric=metric)
        lost["metric"][fired] = [
            _conditions(before - after) for before, after in zip(intact, moved, strict=True)
        ]
    return lost


def _placed(vector: torch.Tensor, at: int, ids: tuple[int, ...]) -> torch.Tensor:
    """Return a vector at one position of a text, nothing at the others."""
    rows = torch.zeros(len(ids), len(vector), dtype=vector.dtype)
    rows[at] = vector
    return rows


def _conditions(values: Array) -> Array:
    """Average the random vectors, which come last."""
    return np.asarray([*values[:2], values[2:].mean()])
