"""Scores of heads over the training of a toy, through capture, as `timeline` joins them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from headscope.analyses._runtime.results import GRID, SHARE, Results
from headscope.analyses.series import joined
from headscope.analyses.series.state import State
from headscope.probes import capture, load_model

Targets = Mapping[str, Sequence[Sequence[Sequence[int]]]]


def follow(
    training: Iterable[tuple[int, Any]], prompts: Sequence[Sequence[int]], targets: Targets
) -> xr.Dataset:
    """Score every head at every step by its weight on each kind of target, over prompts."""
    states, results = [], {}
    for step, module in training:
        # The module is trained on; the numbers are taken before it is.
        result = capture(load_model(module), prompts, stats=("target_mass",), targets=targets)
        scored = Results(result)
        for name in targets:
            mass = result["target_mass"].sel(target=name).transpose("prompt", *GRID, "query")
            known = ~np.isnan(mass.values).all((1, 2, 3))
            scored.add_mean(name, GRID, np.nanmean(mass.values[known], axis=-1), name, *SHARE)
        label = f"step{step}"
        states.append(State(module, label, label, step))
        results[label] = scored.dataset()
    return joined.join(states, results, {})
