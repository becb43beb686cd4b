"""Sink topology: one reference point, many, or one at each end of the text.

The weight above ε that heads park on keys is a distribution over the tokens of a prompt. It is
centralised where one token holds most of it, bidirectional where the first and the last token hold
most of it together and neither alone, distributed otherwise. Its effective number of reference
points is exp(entropy): 1 for one token, n for n tokens alike. With it comes the positional encoding
of the model, which the paper relates to the topology: rotary to centralised, scaled rotary to
distributed, absolute positions of an encoder to bidirectional.

Sources: What Are You Sinking? A Geometric Approach on Attention Sink, for the three kinds (the
thresholds on shares here are headscope's own); Gu et al. (2410.10781) for α.
"""

from collections import Counter
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements.received import (
    largest,
    lengths_of,
    rule,
    steady_weight,
    token_texts,
)
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, SHARE, ZERO_TO_ONE, Results, require
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.sink_behavior._position_encoding import positional_encoding
from headscope.probes.models.model import Model

NEEDS = ("received",)
SUPPORTS = {"encoder", "vision", "hybrid", "sigmoid"}

SOURCE = "What Are You Sinking? A Geometric Approach on Attention Sink"
PLACES = ("first token", "last token", "strongest other", "rest")
KINDS = ("centralised", "bidirectional", "distributed", "none")
ALPHA = "Gu et al. 2410.10781"
BETWEEN = "largest α_k, 1 < k < T"
LAST = "α_T; missing where order is causal: only the last query sees it"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    epsilon: Annotated[float, Between(0, 1)] = 0.3,
    most: Annotated[float, Between(0.5, 1)] = 0.75,
    least_queries: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Classify the sinks of a model: centralised, distributed or bidirectional.

    Parameters
    ----------
    capture, model
        Capture with ``received`` (prompt, layer, head, key), and its model, whose config and
        modules name the positional encoding.
    epsilon
        Mean weight above which a key counts as a sink of a head, 0 to 1.
    most
        Share of all sink weight that one token (or both ends together) must hold, 0.5 to 1.
    least_queries
        Keys seen by fewer queries than this do not count; in causal order the last keys.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``sink_share`` (place; share of all sink weight), ``reference_points`` (effective
    number of tokens that hold it), ``topology_share`` (kind; share of prompts), and ``at_first``,
    ``at_last``, ``elsewhere`` (layer, head; α at the first and the last token, and the largest at
    any other), with 95 % intervals over prompts. The attributes ``topology`` (of most prompts) and
    ``positional_encoding`` go together.
    """
    require(capture, NEEDS, "sink_topology", ("self", "encoder"))

    alpha = steady_weight(capture, least_queries)
    lengths = lengths_of(capture)
    sink_weights = np.where(alpha > epsilon, alpha, 0.0).sum((1, 2))
    shares = np.stack(
        [_shares(weights, int(end)) for weights, end in zip(sink_weights, lengths, strict=True)]
    )
    kinds = [_kind(prompt, most) for prompt in shares]
    counted = np.array([[kind == name for name in KINDS] for kind in kinds], dtype=np.float64)
    first, last, elsewhere = _ends(alpha, lengths)

    convention = (
        f"keys with α_k > ε = {epsilon:g}, seen by ≥ {least_queries} queries{rule(capture)}"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    results.add_means(
        ("topology_share", ("kind",), counted, "Sink topology of the prompts",
         ("share of prompts", *ZERO_TO_ONE),
         f"centralised: one token holds ≥ {most:g} of the weight of sinks; "
         f"bidirectional: first and last together, neither alone; {convention}"),
        ("sink_share", ("place",), np.nan_to_num(shares), "Where the weight of sinks lies",
         ("share of sink weight", *ZERO_TO_ONE),
         f"Σ over heads of α_k at {convention}; all 0 where a prompt has no sink"),
        ("reference_points", (), _points(sink_weights), "Effective number of reference points",
         ("tokens", "sequential", 0),
         f"exp of the entropy of sink weight over tokens, 0 without sinks; {convention}"),
    )  # fmt: skip
    for name, values, place, meaning in (
        ("at_first", first, "the first token", f"α_1; {convention}"),
        ("at_last", last, "the last token", LAST),
        ("elsewhere", elsewhere, "one token between the ends", f"{BETWEEN}; {convention}"),
    ):
        if name != "at_last" or not np.isnan(values).all():
            title = f"Weight parked on {place}"
            results.add_mean(name, GRID, values, title, *SHARE, convention=meaning, source=ALPHA)
    topology, count = Counter(kinds).most_common(1)[0]
    encoding = positional_encoding(capture, model)
    return results.dataset(
        {"kind": list(KINDS), "place": list(PLACES)},
        topology=topology,
        positional_encoding=encoding,
        reference_tokens=_named(capture, sink_weights),
        note=f"Sink topology: {topology} in {count} of {len(kinds)} prompts; positions: "
        f"{encoding}. A statistic of the pattern; what the sinks do: `sink_calibration`.",
    )


def _shares(weights: Array, end: int) -> Array:
    """Return the share of sink weight at each place; NaN without sinks."""
    total = weights.sum()
    if not total:
        return np.full(len(PLACES), np.nan)
    between = weights[1 : end - 1]
    best = between.max(initial=0.0)
    last = weights[end - 1] if end > 1 else 0.0
    return np.asarray([weights[0], last, best, between.sum() - best], dtype=np.float64) / float(
        total
    )


def _kind(shares: Array, most: float) -> str:
    if np.isnan(shares).any():
        return "none"
    if shares[:3].max() >= most:
        return "centralised"
    return "bidirectional" if shares[:2].sum() >= most else "distributed"


def _points(weights: Array) -> Array:
    """Return exp(entropy) of every prompt's sink weight, 0 without sinks."""
    total = weights.sum(-1, keepdims=True)
    share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.where(total[:, 0] > 0, np.exp(-(share * logs).sum(-1)), 0.0)


def _ends(alpha: Array, lengths: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Return α at the first key, at the last, and the largest between (prompt, layer, head)."""
    prompts = list(zip(alpha, lengths, strict=True))
    last = np.stack([weights[..., end - 1] for weights, end in prompts])
    between = np.stack([largest(weights[..., 1 : end - 1]) for weights, end in prompts])
    return alpha[..., 0], last, between


def _named(capture: xr.Dataset, sink_weights: Array) -> list[dict[str, Any]]:
    """List the token with most sink weight in each of the first prompts."""
    tokens = token_texts(capture)
    named = []
    for prompt, weights in enumerate(sink_weights[:8]):
        if weights.sum():
            position = int(weights.argmax())
            token = "" if tokens is None else str(tokens[prompt, position])
            share = round(float(weights[position] / weights.sum()), 4)
            named.append({"prompt": prompt, "position": position, "token": token, "share": share})
    return named
