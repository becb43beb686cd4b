"""Lookback ratios of generated tokens, and a detector of hallucinations from them."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import Array


def ratios(generated: xr.Dataset, prefix: int) -> Array:
    """Return the lookback ratio of every generated token (prompt, step, layer, head).

    ``c / (c + n)``: c is the mean weight of a context position, n that of a position of the answer
    (the prefix and what is written so far), in the row that decides the token. NaN beyond the end
    of an answer. ``generated`` comes from `headscope.probes.generate` with ``span_mass`` and the
    same ``prefix``, 1 or more: without it the first token divides by no position at all.

    Source: Chuang et al., Lookback Lens (2407.07071).
    """
    mass = generated["span_mass"].transpose("span", "prompt", "query", "layer", "head")
    before, after = (
        mass.sel(span=span).values.astype(np.float64) for span in ("prompt", "generated")
    )
    written = generated["generated"].transpose("prompt", "query").values
    result = np.full((len(written), int(written.sum(1).max()), *before.shape[2:]), np.nan)
    for prompt, flags in enumerate(written):
        rows = np.flatnonzero(flags) - 1
        context = rows[0] + 1 - prefix
        near = (rows + 1 - context)[:, None, None]
        back, own = before[prompt, rows] / context, after[prompt, rows] / near
        with np.errstate(invalid="ignore", divide="ignore"):
            result[prompt, : len(rows)] = back / (back + own)
    return result


def windowed(values: Array, width: int) -> Array:
    """Average each step with those before it, ``width`` steps at most (prompt, step, ...)."""
    steps = [
        values[:, max(0, step + 1 - width) : step + 1].mean(1) for step in range(values.shape[1])
    ]
    return np.stack(steps, axis=1)


def log_odds(values: Array) -> Array:
    """Return log(c / n) of ratios c / (c + n): heads that all but always attend back still differ.

    >>> log_odds(np.array([0.5])).tolist()
    [0.0]
    """
    # float32 sums hold no smaller share than this of the weight.
    inside = np.clip(values, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(inside) - np.log1p(-inside))


class Detector:
    """Logistic regression on the lookback of all heads.

    Features are ratios or log odds (sample, layer, head), ``standardized`` ones divided by their
    spread over the training samples; heads without a number (no attention) are left out. Where all
    samples are hallucinated, or none is, there is nothing to learn.
    """

    def __init__(self, features: Array, truth: NDArray[np.bool_], standardized: bool) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        flat = features.reshape(len(features), -1)
        self.present = ~np.isnan(flat).any(0)
        self.shape = features.shape[1:]
        self.model: Any = None
        if truth.all() or not truth.any():
            return
        steps = [StandardScaler()] if standardized else []
        self.model = make_pipeline(*steps, LogisticRegression(max_iter=1000))
        self.model.fit(flat[:, self.present], truth)

    def probability(self, features: Array) -> Array:
        """Return the probability that each sample is hallucinated; NaN where nothing was learnt."""
        if self.model is None:
            return np.full(len(features), np.nan)
        flat = features.reshape(len(features), -1)[:, self.present]
        return np.asarray(self.model.predict_proba(flat)[:, 1], dtype=np.float64)

    @property
    def weights(self) -> Array:
        """Coefficient of every head (layer, head): positive where attending back is suspicious."""
        weights = np.full(self.present.shape, np.nan)
        if self.model is not None:
            weights[self.present] = self.model[-1].coef_[0]
        return weights.reshape(self.shape)
