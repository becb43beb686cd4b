"""Massive activations: a few huge numbers in the residual stream, and the sinks they make.

An activation is massive when its magnitude is above 100 and at least 1,000 times the median
magnitude of the residual stream at that place between two blocks (one prompt, all tokens and
channels). They stand at the same few channels of the first token and of a few others, which are
the tokens that heads sink into; the values at such a token are small, so a head that looks there
adds little. The causal number is the loss with them set to zero, and to their mean over the
prompts, where they are first massive: they act as a constant where only the first does harm.

Sources: Sun et al., Massive Activations in Large Language Models (2402.17762); See What You Are
Told: Visual Attention Sink; Gu et al. (2410.10781) for the norm of the values at the sink.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._measurements.received import steady_weight
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, require, variable

if TYPE_CHECKING:
    from headscope.analyses.sink_behavior._outliers import Found, Stream
    from headscope.probes.models.model import Model

NEEDS = ("received",)

SOURCE = "Sun et al. 2402.17762"
SINKS = "Gu et al. 2410.10781"
CONDITIONS = ("intact", "massive set to zero", "massive set to mean", "others set to zero")
GROUPS = ("massive", "sinks", "massive and sinks")
# How many activations are listed.
LISTED = 32


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    least: float = 100.0,
    ratio: float = 1000.0,
    epsilon: float = 0.3,
    least_queries: int = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Locate massive activations, join them with sink tokens, and set them to zero and to mean.

    Parameters
    ----------
    capture
        Capture with ``received``, which says where heads sink.
    model
        Model that was captured; the residual stream is watched in one more pass over the prompts,
        and changed in one a condition where there is something to change.
    least
        Magnitude above which an activation may be massive.
    ratio
        How many times the median magnitude of its prompt and boundary it must reach.
    epsilon
        Mean weight above which a key counts as a sink of a head, 0 to 1.
    least_queries
        Keys seen by fewer queries than this do not count as sinks.
    seed
        Seed of the bootstrap over prompts and of the other places that are set to zero.

    Returns
    -------
    Dataset with ``magnitude`` (size, boundary; the three largest and the median magnitude before
    each block and after the last), ``first_value_norm`` and ``sink_value_norm`` (layer, head; norm
    of the value at the first key, and at the key that the head parks most on, over the mean norm
    of the other keys), ``tokens`` (group; how many tokens of a prompt hold massive activations, are
    sinks, are both), ``loss`` (condition; nats a token), all with 95 % intervals over prompts, and
    ``token_magnitude`` (query; largest magnitude at each token of the first prompt). The attribute
    ``massive`` lists (prompt, boundary, position, channel) with token, value and weight received.

    Raises
    ------
    HeadscopeError
        When the capture lacks ``received``, an option is out of range, the blocks of the model are
        not found, or the thresholds are so low that nearly everything passes.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> result = execute("massive", load_model("headscope/bundled"), [[0, 5, 6, 7]])
    >>> result.attrs["massive"]
    []
    """
    from headscope.analyses._interventions.next_token_loss import tokens
    from headscope.analyses.sink_behavior import _outliers

    options.at_least("least", least, 0)
    options.at_least("ratio", ratio, 0)
    options.between("epsilon", epsilon, 0, 1)
    options.at_least("least_queries", least_queries, 1)
    require(capture, NEEDS, "massive")
    options.one_text(capture.attrs.get("attention", "self"), "massive")

    ids = tokens(capture)
    stream = _outliers.look(model, ids, least, ratio)
    alpha = steady_weight(capture, least_queries)
    sinks = np.where(np.isnan(alpha), -1.0, alpha).max((1, 2)) > epsilon
    massive = np.zeros_like(sinks)
    for one in stream.found:
        massive[one.prompt, one.position] = True
    counts = np.stack([massive.sum(1), sinks.sum(1), (massive & sinks).sum(1)], axis=1)
    rule = f"|x| > {least:g} and ≥ {ratio:g} × the median of its prompt and boundary"
    loss, note = _losses(capture, model, ids, stream.found, seed)
    grid = ("layer", "head")
    first, parked = _norms(capture, stream.norms, alpha)
    variables: dict[str, xr.Variable] = {
        **averaged(
            "magnitude", ("size", "boundary"), stream.sizes.transpose(0, 2, 1),
            "Magnitudes in the residual stream", "activation", "sequential", 0, seed=seed,
            convention="boundary b is before block b, the last after all", source=SOURCE,
        ),
        "token_magnitude": variable(
            ("query",), stream.first, "Largest magnitude at a token", "activation", "sequential", 0,
            convention="first prompt; largest over channels and boundaries", source=SOURCE,
        ),
        **averaged(
            "first_value_norm", grid, first, "Norm of the value at the first token",
            "times the mean of the others", "sequential", 0, seed=seed, source=SINKS,
            convention="‖v_1‖ over the mean ‖v_j‖ of the other keys, before the output projection",
        ),
        **averaged(
            "sink_value_norm", grid, parked, "Norm of the value where a head parks most weight",
            "times the mean of the others", "sequential", 0, seed=seed, source=SINKS,
            convention=f"key k of largest α_k among keys seen by ≥ {least_queries} queries (the "
            "first where none is); ‖v_k‖ over the mean of the other keys",
        ),
        **averaged(
            "tokens", ("group",), counts, "Tokens with massive activations and sink tokens",
            "tokens a prompt", "sequential", 0, seed=seed, source=SOURCE,
            convention=f"massive: {rule}; sink: α_k > ε = {epsilon:g} in any head",
        ),
        **averaged(
            "loss", ("condition",), loss, "Loss with massive activations changed", "nats a token",
            "sequential", 0, seed=seed, source=SOURCE, evidence="causal", note=note,
            convention="set where they are first massive; mean over the tokens where that channel "
            "is massive; others: as many other places of the same prompts and boundaries",
        ),
    }  # fmt: skip
    listed = _listed(capture, stream, alpha, sinks)
    size = float(np.nanmax(stream.sizes))
    note = (
        f"{len(stream.found)} massive activations ({rule}) in {len(ids)} prompts; the largest "
        f"magnitude is {size:.4g}. {int(counts[:, 2].sum())} of {int(counts[:, 0].sum())} tokens "
        f"with massive activations are sinks, of {int(counts[:, 1].sum())} sink tokens. {note}"
    )
    coords: dict[str, Any] = {
        "size": list(_outliers.SIZES),
        "boundary": np.arange(model.layers + 1),
        "group": list(GROUPS),
        "condition": list(CONDITIONS),
        "query": np.arange(len(ids[0])),
    }
    if "token" in capture.coords:
        words = capture["token"].transpose("prompt", "query").values[0, : len(ids[0])]
        coords["token"] = ("query", words.astype(str))
    return dataset(capture, variables, coords, massive=listed, note=note)


def _norms(
    capture: xr.Dataset, norms: NDArray[np.float64], alpha: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the norm at the first and at the most received key over that of the others."""
    wide = norms[:, :, capture["kv_group"].values.astype(int), : alpha.shape[-1]]
    best = np.where(np.isnan(alpha), -1.0, alpha).argmax(-1)
    known = ~np.isnan(wide)
    total, count = np.where(known, wide, 0.0).sum(-1), known.sum(-1)

    def relative(at: NDArray[np.int64]) -> NDArray[np.float64]:
        one = np.take_along_axis(wide, at[..., None], axis=-1)[..., 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = one / ((total - one) / (count - 1))
        return np.where(np.isfinite(found), found, np.nan)

    return relative(np.zeros_like(best)), relative(best)


def _losses(
    capture: xr.Dataset, model: Model, ids: list[list[int]], found: list[Found], seed: int
) -> tuple[NDArray[np.float64], str]:
    """Return the loss of every prompt under every condition, and what they say."""
    from headscope.analyses._interventions.next_token_loss import mean_loss, predicts
    from headscope.analyses._stats.bootstrap import bootstrap
    from headscope.analyses.sink_behavior import _outliers

    result = np.full((len(ids), len(CONDITIONS)), np.nan)
    if not predicts(capture):
        return result, "No loss: the model is not causal, so its logits predict no next token."
    mean = _outliers.means(found)
    drawn = _outliers.others(found, ids, model.module.config.get_text_config().hidden_size, seed)
    plans = (
        (found, dict.fromkeys(found, 0.0)),
        (found, {one: mean[one.boundary, one.channel] for one in found}),
        (drawn, dict.fromkeys(drawn, 0.0)),
    )
    for prompt, one in enumerate(ids):
        result[prompt, 0] = mean_loss(model, one)
        for column, (places, values) in enumerate(plans if found else (), start=1):
            with _outliers.setting(model, prompt, places, values):
                result[prompt, column] = mean_loss(model, one)
    if not found:
        return result, "There is nothing to set to zero or to the mean."
    change, lower, upper = bootstrap(result[:, 1:] - result[:, :1], seed=seed)
    said = (
        f"Loss changes by {change[0]:+.3f} nats a token with them at zero, {change[1]:+.3f} at "
        f"their mean, {change[2]:+.3f} with as many other activations at zero."
    )
    if len(ids) < 2:
        return result, f"INCONCLUSIVE (one prompt has no interval). {said}"
    apart = lower[0] > 0 or upper[0] < 0
    matters = apart and abs(change[0]) > np.abs(change[1:]).max()
    return result, ("Causal check agrees. " if matters else "DISAGREEMENT. ") + said


def _listed(
    capture: xr.Dataset,
    stream: Stream,
    alpha: NDArray[np.float64],
    sinks: NDArray[np.bool_],
) -> list[dict[str, Any]]:
    """Describe the largest massive activations, with what their tokens receive."""
    best = sorted(stream.found, key=lambda one: -abs(one.value))[:LISTED]
    words = (
        capture["token"].transpose("prompt", "query").values if "token" in capture.coords else None
    )
    result = []
    for one in best:
        weight = alpha[one.prompt, :, :, one.position]
        known = weight[~np.isnan(weight)]
        result.append(
            {
                "prompt": one.prompt,
                "boundary": one.boundary,
                "position": one.position,
                "channel": one.channel,
                "token": "" if words is None else str(words[one.prompt, one.position]),
                "value": round(one.value, 4),
                "median": float(f"{stream.sizes[one.prompt, one.boundary, -1]:.4g}"),
                "sink": bool(sinks[one.prompt, one.position]),
                "received": round(float(known.max()), 4) if known.size else None,
            }
        )
    return result
