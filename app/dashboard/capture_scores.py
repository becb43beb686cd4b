"""Scores of heads that a capture itself holds, for runs without analyses."""

import numpy as np
import xarray as xr

from headscope.analyses._runtime.results import GRID, Results
from headscope.kernels import statistics

NAME = "capture"
# The first of these that a capture holds leads; each is one number a query.
STATISTICS = ("first_mass", "entropy", "max_weight", "distance", "recent_mass")


def summarize(capture: xr.Dataset) -> xr.Dataset:
    """Average the statistics of every head over queries, with an interval over prompts."""
    results = Results(capture)
    for name in STATISTICS:
        if name not in capture or set(capture[name].dims) != {"prompt", *GRID, "query"}:
            continue
        statistic = statistics.load(name)
        values = capture[name].transpose("prompt", *GRID, "query").values
        with np.errstate(invalid="ignore"):
            # Padding holds NaN; a layer without an attention map nothing else.
            present = np.isfinite(values).sum(-1)
            means = np.nansum(values, -1) / np.where(present, present, np.nan)
        results.add_mean(
            name, GRID, means, statistic.title, statistic.units, "sequential",
            statistic.low, statistic.high,
            convention="mean over the queries of a prompt, then over prompts",
            source=statistic.source, evidence="correlational",
        )  # fmt: skip
    return results.dataset(
        note="Statistics of the capture alone. Analyses say what the heads do and what is causal."
    )
