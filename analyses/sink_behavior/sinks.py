"""Attention sinks: heads that park their attention on a few tokens.

For key position k of a prompt of T tokens, ``α_k = 1/(T − k + 1) · Σ_{i ≥ k} A[i, k]`` is the mean
weight that the key gets from the queries that can see it. A head sinks into k when ``α_k > ε``; the
sink rate is the share of heads that sink into the first token. It depends on T, on ε and on whether
the prompt starts with a BOS token, so all three are stated with the result. Without causal order
every query sees every key, and α_k is the mean over all queries; in cross-attention keys are tokens
of the source, queries of the target. Rows of sigmoid attention do not sum to one: they are divided
by their sums first, and the convention says so.

Sources: Gu et al., When Attention Sink Emerges in Language Models (2410.10781); Yu et al.,
Unveiling and Harnessing Hidden Attention Sinks (ACT), for sinks at every key position.
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements import received
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import (
    SHARE,
    ZERO_TO_ONE,
    Results,
    label,
    named,
    require,
    top,
)
from headscope.analyses._stats.length_trend import Array, mean
from headscope.kernels.formatting import amount, percent

NEEDS = ("received",)
SUPPORTS = {"encoder", "cross", "vision", "hybrid", "sigmoid"}

SOURCE = "Gu et al. 2410.10781"
HIDDEN = f"ACT; {SOURCE}"
NOTE = (
    "Where attention goes, not what it does: a head that parks its weight may be idle or may use "
    "the sink as a default"
)
CONTROLS = (
    "its causal number is the ablation in `importance`. The rate depends on the prompts: "
    "`sink_controls` has it for random and repeated tokens."
)
PERCENT = ("%", "sequential", 0, 100)
# How many sink tokens are named.
TOKENS = 8


def run(
    capture: xr.Dataset,
    *,
    epsilon: Annotated[float, Between(0, 1)] = 0.3,
    least_queries: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by the weight that its queries park on the first token and on any other.

    Parameters
    ----------
    capture
        Capture with ``received`` (prompt, layer, head, key).
    epsilon
        Mean weight above which a key counts as a sink of a head, 0 to 1.
    least_queries
        Keys seen by fewer queries than this are left out of everything but the first-token score:
        near the end of a prompt α_k averages so few queries that a previous-token head looks like
        a sink.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``sink`` (layer, head; mean α_1, share of weight), ``later_sink`` (layer, head;
    mean over prompts of the largest α_k after the first key), ``sink_rate`` (percent of heads and
    prompts with α_1 > ε), ``later_sink_rate`` (percent with α_k > ε at any later key: hidden
    sinks), ``key_share`` (key; share of heads above ε), ``key_received`` (key; mean α_k over heads
    and prompts), and ``token_share``, ``token_received`` (query; the same two over the tokens of
    the first prompt). Means over prompts carry a 95 % interval.
    """
    require(capture, NEEDS, "sinks")

    alpha = received.weight(capture)
    lengths = received.lengths_of(capture)
    first = alpha[..., 0]
    steady = received.steady_weight(capture, least_queries)
    above = _above(steady, epsilon)

    order = "" if received.causal(capture).all() else "; no causal order: α_k is over all queries"
    prompts = f"{_convention(lengths)}; {_opening(capture)}{order}{received.rule(capture)}"
    convention = f"share of heads with mean weight on key 1 above ε = {epsilon:g}; {prompts}"
    enough = f"over keys seen by ≥ {least_queries} queries; {prompts}"
    results = Results(capture, seed=seed, source=SOURCE)
    rate = mean(_above(first, epsilon), (1, 2)) * 100
    later = received.largest(steady[..., 1:])
    later_rate = mean(_above(later, epsilon), (1, 2)) * 100
    results.add_means(
        ("sink", ("layer", "head"), first, "Weight parked on the first token", SHARE,
         f"α_1, the mean weight on key 1 of the queries that see it; {prompts}"),
        ("later_sink", ("layer", "head"), later, "Weight parked on one later token", SHARE,
         f"largest α_k, k ≥ 2, {enough}", HIDDEN),
        ("sink_rate", (), rate, "Sink rate", PERCENT, convention),
        ("later_sink_rate", (), later_rate, "Sink rate of later tokens (hidden sinks)", PERCENT,
         f"share of heads with α_k above ε = {epsilon:g}; largest α_k, k ≥ 2, {enough}", HIDDEN),
        ("key_share", ("key",), mean(above, (1, 2)), "Heads that sink into a key position",
         ("share of heads", *ZERO_TO_ONE), f"share of heads with α_k > {epsilon:g}, {enough}"),
        ("key_received", ("key",), mean(steady, (1, 2)), "Mean weight that a key position receives",
         SHARE, f"mean of α_k over heads and prompts, {enough}", "ACT"),
    )  # fmt: skip
    length = int(capture["key_length"][0]) if "key_length" in capture.coords else int(lengths[0])
    results.add_all(
        ("token_share", ("query",), mean(above[0], (0, 1))[:length], "Heads that sink into a token",
         ("share of heads", *ZERO_TO_ONE)),
        ("token_received", ("query",), mean(steady[0], (0, 1))[:length],
         "Mean weight that a token receives", SHARE),
        convention="first prompt; the axis names the token that receives" + received.rule(capture),
    )  # fmt: skip
    scores = {name: results[name].values for name in ("sink", "later_sink")}
    return results.dataset(
        {"key": np.arange(alpha.shape[-1]), **received.token_axis(capture, length)},
        convention=convention,
        heads_by_type={name: named(score, score > epsilon) for name, score in scores.items()},
        sink_tokens=_tokens(received.token_texts(capture), above),
        note=f"{_outcome(results, epsilon)} {NOTE}"
        + (f"; {CONTROLS}" if capture.attrs.get("attention", "self") == "self" else "."),
    )


def _outcome(results: Results, epsilon: float) -> str:
    """Describe how many heads have a sink, and which have the strongest."""
    rate, later = (float(results[name].values) for name in ("sink_rate", "later_sink_rate"))
    text = f"{percent(rate / 100)} of the heads put more than {amount(epsilon)} of their weight on"
    scores = results["sink"].values
    best = [f"{label(head)} {amount(scores[head])}" for head in top(scores, 3)]
    text += f" the first token (most: {', '.join(best)})"
    return f"{text}, {percent(later / 100)} on a later one."


def _above(values: Array, epsilon: float) -> Array:
    return np.where(np.isnan(values), np.nan, values > epsilon)


def _tokens(tokens: NDArray[Any] | None, above: Array) -> list[dict[str, Any]]:
    """List the tokens that are sinks of most heads, at any position, best first."""
    if tokens is None:
        return []
    shares = mean(above, (1, 2))
    by_word: dict[str, list[float]] = {}
    for token, value in zip(tokens.ravel(), shares.ravel(), strict=True):
        if not np.isnan(value):
            by_word.setdefault(str(token), []).append(float(value))
    sinks = [
        (float(np.mean(values)), token) for token, values in by_word.items() if max(values) > 0
    ]
    return [
        {"token": token, "times": len(by_word[token]), "share_of_heads": round(share, 4)}
        for share, token in sorted(sinks, reverse=True)[:TOKENS]
    ]


def _convention(lengths: NDArray[np.int64]) -> str:
    low, high = int(lengths.min()), int(lengths.max())
    return f"T = {low}" if low == high else f"T = {low} … {high} tokens"


def _opening(capture: xr.Dataset) -> str:
    tokens = received.token_texts(capture)
    if tokens is None:
        return "opening token not recorded"
    openings = sorted({str(token) for token in tokens[:, 0]})
    shown = ", ".join(repr(token) for token in openings[:3])
    return f"prompts open with {shown}" + (" and others" if len(openings) > 3 else "")
