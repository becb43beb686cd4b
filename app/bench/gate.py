"""The gate: what a contender computes is compared with the oracle before anything is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headscope.kernels.errors import InvalidInput


def compare(
    contender: str, output: str, sigma: float, got: Tensor, expected: Tensor, allowed: float
) -> dict[str, Any]:
    """Compare one output with the oracle's.

    Parameters
    ----------
    contender, output
        Who computed what.
    sigma
        Standard deviation of the logits.
    got, expected
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
    InvalidInput
        When the error is larger than allowed, or NaN is somewhere else.

    Examples
    --------
    >>> compare("ours", "lse", 1.0, torch.ones(3), torch.ones(3), 1e-6)["error"]
    0.0
    """
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    if not torch.equal(got.isnan(), expected.isnan()):
        raise InvalidInput(
            f"gate: {output} of {contender} has NaN elsewhere than the oracle; nothing is "
            "measured, report this with `headscope --version`"
        )
    got, expected = got.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0)
    difference = got - expected
    error = float(difference.abs().max())
    if output != "entropy":
        error /= max(float(expected.abs().max()), 1.0)
    if not error <= allowed:
        raise InvalidInput(
            f"gate: {output} of {contender} is off by {error:.2g}, allowed {allowed:.2g}; "
            "nothing is measured, report this with `headscope --version`"
        )
    return {
        "contender": contender,
        "output": output,
        "logit_deviation": sigma,
        "error": error,
        "relative": float(difference.norm() / expected.norm().clamp_min(1e-300)),
        "allowed": allowed,
    }


def same_keys(keys: Tensor, weights: Tensor) -> Tensor:
    """Look up the oracle's weights at the keys that a contender calls the largest.

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
    >>> same_keys(torch.tensor([[[[1.0, torch.nan]]]]), torch.tensor([[[[0.25, 0.75]]]]))
    tensor([[[[0.7500,    nan]]]])
    """
    keys = keys.detach().cpu()
    return weights.gather(3, keys.nan_to_num(nan=0.0).long()).masked_fill(
        keys.isnan(), float("nan")
    )
