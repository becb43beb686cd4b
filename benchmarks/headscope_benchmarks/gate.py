"""The gate: what a baseline computes is compared with the oracle before anything is timed."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headscope.kernels.api import attend_dense
from headscope.kernels.errors import HeadscopeError
from headscope_benchmarks.shapes import request
from headscope_benchmarks.timing import Call

END = "nothing is measured, report this with `headscope --version`"


def oracle(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Compute every statistic of the benchmark, and the pattern, densely in float64."""
    spec = request(q.shape[2])
    return attend_dense(q, k, v, replace(spec, stats=(*spec.stats, "pattern")))


def check(
    calls: Mapping[str, Call],
    expected: Mapping[str, Tensor],
    sigma: float,
    allowed: Callable[[str, str], float],
) -> list[dict[str, Any]]:
    """Compare every output of calls with the oracle's.

    Parameters
    ----------
    calls
        Calls by baseline.
    expected
        The oracle's outputs.
    sigma
        Standard deviation of the logits.
    allowed
        Largest error of a baseline and an output.

    Returns
    -------
    Rows of `compare`.

    Raises
    ------
    HeadscopeError
        When one is off.
    """
    rows = []
    for baseline, call in calls.items():
        for output, values in call().items():
            right = expected[output]
            if output == "topk_key":
                right, values = expected["topk"], weights_at(values, expected["pattern"])
            rows.append(compare(baseline, output, sigma, values, right, allowed(baseline, output)))
    return rows


def compare(
    baseline: str, output: str, sigma: float, values: Tensor, expected: Tensor, allowed: float
) -> dict[str, Any]:
    """Compare one output with the oracle's.

    Parameters
    ----------
    baseline, output
        Who computed what.
    sigma
        Standard deviation of the logits.
    values, expected
        The values and the oracle's, with NaN at the same places.
    allowed
        Largest error: absolute for the entropy, in nats; otherwise relative to the largest value,
        to 1 where that is less.

    Returns
    -------
    A row: ``error`` as above and ``relative``, the norm of the difference over the norm of the
    oracle's values.

    Raises
    ------
    HeadscopeError
        When the error is larger than allowed, or NaN is somewhere else.

    Examples
    --------
    >>> compare("ours", "lse", 1.0, torch.ones(3), torch.ones(3), 1e-6)["error"]
    0.0
    """
    values, expected = values.detach().cpu().double(), expected.detach().cpu().double()
    if not torch.equal(values.isnan(), expected.isnan()):
        raise HeadscopeError(
            f"gate: {output} of {baseline} has NaN elsewhere than the oracle; {END}"
        )
    values, expected = values.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0)
    difference = values - expected
    error = float(difference.abs().max())
    if output != "entropy":
        error /= max(float(expected.abs().max()), 1.0)
    if not error <= allowed:
        raise HeadscopeError(
            f"gate: {output} of {baseline} is off by {error:.2g}, allowed {allowed:.2g}; {END}"
        )
    return {
        "contender": baseline,
        "output": output,
        "logit_deviation": sigma,
        "error": error,
        "relative": float(difference.norm() / expected.norm().clamp_min(1e-300)),
        "allowed": allowed,
    }


def weights_at(keys: Tensor, weights: Tensor) -> Tensor:
    """Look up the oracle's weights at the keys that a baseline calls the largest.

    Two keys of nearly the same weight may change places in float32; their weights may not differ.

    Parameters
    ----------
    keys
        Key indices (batch, head, query, rank), NaN where a query sees fewer.
    weights
        The oracle's whole pattern (batch, head, query, key).

    Returns
    -------
    Weights (batch, head, query, rank), NaN where there is no key.

    Examples
    --------
    >>> weights_at(torch.tensor([[[[1.0, torch.nan]]]]), torch.tensor([[[[0.25, 0.75]]]]))
    tensor([[[[0.7500,    nan]]]])
    """
    keys = keys.detach().cpu()
    return weights.gather(3, keys.nan_to_num(nan=0.0).long()).masked_fill(
        keys.isnan(), float("nan")
    )
