"""Massive activations: a few huge numbers in the residual stream, and the sinks they make.

An activation is massive when its magnitude is above 100 and at least 1,000 times the median
magnitude of the residual stream at that boundary between two blocks (one prompt, all tokens and
channels). They occur at the same few channels of the first token and of a few others, which are the
tokens that heads sink into; the values at such a token are small, so a head that attends to it adds
little. The causal number is the loss with them set to zero, and to their mean over the prompts,
where they are first massive: they act as a constant where only the first does harm.

Sources: Sun et al., Massive Activations in Large Language Models (2402.17762); See What You Are
Told: Visual Attention Sink; Gu et al. (2410.10781) for the norm of the values at the sink.
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.next_token_loss import mean_loss, predicts, tokens
from headscope.analyses._measurements.received import rule as row_rule
from headscope.analyses._measurements.received import steady_weight, token_axis, token_texts
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, Results, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.sink_behavior import _outliers
from headscope.kernels.formatting import amount
from headscope.probes.models.model import Model

NEEDS = ("received",)
SUPPORTS = {"encoder", "hybrid", "sigmoid"}

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
    least: Annotated[float, AtLeast(0)] = 100.0,
    ratio: Annotated[float, AtLeast(0)] = 1000.0,
    epsilon: Annotated[float, Between(0, 1)] = 0.3,
    least_queries: Annotated[int, AtLeast(1)] = 16,
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
        Seed of the bootstrap over prompts and of the other activations that are set to zero.

    Returns
    -------
    Dataset with ``magnitude`` (size, boundary; the three largest and the median magnitude before
    each block and after the last), ``first_value_norm`` and ``sink_value_norm`` (layer, head; norm
    of the value at the first key, and at the key that the head parks most on, over the mean norm
    of the other keys), ``tokens`` (group; how many tokens of a prompt hold massive activations, are
    sinks, are both), ``loss`` (condition; nats a token), all with 95 % intervals over prompts, and
    ``token_magnitude`` (query; largest magnitude at each token of the first prompt). The attribute
    ``massive`` lists (prompt, boundary, position, channel) with token, value and weight received.
    """
    require(capture, NEEDS, "massive", ("self",))

    ids = tokens(capture)
    stream = _outliers.locate(model, ids, least, ratio)
    alpha = steady_weight(capture, least_queries)
    sinks = np.asarray((alpha > epsilon).any((1, 2)))
    massive = np.zeros_like(sinks)
    for activation in stream.massive:
        massive[activation.prompt, activation.position] = True
    counts = np.stack([massive.sum(1), sinks.sum(1), (massive & sinks).sum(1)], axis=1)
    rule = f"|x| > {least:g} and ≥ {ratio:g} × the median of its prompt and boundary"
    loss = _losses(capture, model, ids, stream.massive, seed)
    verdict, remark = _outcome(capture, stream.massive, loss)
    first, parked = _norms(capture, stream.norms, alpha)

    results = Results(capture, seed=seed, source=SOURCE)
    times = ("times the mean of the others", "sequential", 0)
    results.add_means(
        ("magnitude", ("size", "boundary"), stream.sizes.transpose(0, 2, 1),
         "Magnitudes in the residual stream", ("activation", "sequential", 0),
         "boundary b is before block b, the last after all"),
        ("first_value_norm", GRID, first, "Norm of the value at the first token", times,
         "‖v_1‖ over the mean ‖v_j‖ of the other keys, before the output projection", SINKS),
        ("sink_value_norm", GRID, parked, "Norm of the value where a head parks most weight", times,
         f"key k of largest α_k among keys seen by ≥ {least_queries} queries (the first where none "
         "is); ‖v_k‖ over the mean of the other keys", SINKS),
        ("tokens", ("group",), counts, "Tokens with massive activations and sink tokens",
         ("tokens a prompt", "sequential", 0),
         f"massive: {rule}; sink: α_k > ε = {epsilon:g} in any head{row_rule(capture)}"),
    )  # fmt: skip
    results.add(
        "token_magnitude", ("query",), stream.first, "Largest magnitude at a token", "activation",
        "sequential", 0, convention="first prompt; largest over channels and boundaries",
    )  # fmt: skip
    results.add_mean(
        "loss", ("condition",), loss, "Loss with massive activations changed", "nats a token",
        "sequential", 0, evidence="causal", note=remark,
        convention="set where they are first massive; mean over the tokens where that channel "
        "is massive; others: as many other places of the same prompts and boundaries",
    )  # fmt: skip
    coords: dict[str, Any] = {
        "size": list(_outliers.SIZES),
        "boundary": np.arange(model.layers + 1),
        "group": list(GROUPS),
        "condition": list(CONDITIONS),
        **token_axis(capture, len(ids[0])),
    }
    note = (
        f"{len(stream.massive)} massive activations ({rule}) in {len(ids)} prompts; the largest "
        f"magnitude is {amount(float(np.nanmax(stream.sizes)))}. {int(counts[:, 2].sum())} of "
        f"{int(counts[:, 0].sum())} tokens with massive activations are sinks, of "
        f"{int(counts[:, 1].sum())} sink tokens."
    )
    listed = _listed(token_texts(capture), stream, alpha, sinks)
    if verdict is None:
        note = f"{note} {remark}"
    return results.dataset(coords, verdict, note, massive=listed)


def _norms(capture: xr.Dataset, norms: Array, alpha: Array) -> tuple[Array, Array]:
    """Return the norm at the first and at the most received key over that of the others."""
    wide = norms[:, :, capture["kv_group"].values.astype(int), : alpha.shape[-1]]
    best = np.where(np.isnan(alpha), -1.0, alpha).argmax(-1)
    present = ~np.isnan(wide)
    total, count = np.where(present, wide, 0.0).sum(-1), present.sum(-1)

    def relative(key: NDArray[np.int64]) -> Array:
        norm = np.take_along_axis(wide, key[..., None], axis=-1)[..., 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = norm / ((total - norm) / (count - 1))
        return np.where(np.isfinite(ratio), ratio, np.nan)

    return relative(np.zeros_like(best)), relative(best)


def _losses(
    capture: xr.Dataset,
    model: Model,
    ids: list[list[int]],
    massive: list[_outliers.Activation],
    seed: int,
) -> Array:
    """Return the loss of every prompt under every condition, NaN where there is none."""
    result = np.full((len(ids), len(CONDITIONS)), np.nan)
    if not predicts(capture):
        return result
    mean = _outliers.mean_values(massive)
    width = model.module.config.get_text_config().hidden_size
    plans: tuple[dict[_outliers.Activation, float], ...] = (
        dict.fromkeys(massive, 0.0),
        {activation: mean[activation.boundary, activation.channel] for activation in massive},
        dict.fromkeys(_outliers.draw_others(massive, ids, width, seed), 0.0),
    )
    for prompt, prompt_ids in enumerate(ids):
        result[prompt, 0] = mean_loss(model, prompt_ids)
        for column, values in enumerate(plans if massive else (), start=1):
            with _outliers.replaced(model, prompt, values):
                result[prompt, column] = mean_loss(model, prompt_ids)
    return result


def _outcome(
    capture: xr.Dataset, massive: list[_outliers.Activation], loss: Array
) -> tuple[Verdict | None, str]:
    """Conclude from the losses whether massive activations matter; no verdict without losses."""
    if not predicts(capture):
        return None, "No loss: the model is not causal, so its logits predict no next token."
    if not massive:
        return None, "There is nothing to set to zero or to the mean."
    changes = loss[:, 1:] - loss[:, :1]
    change = changes.mean(0)
    text = (
        f"the loss changes by {amount(change[0], '+')} nats a token with them at zero, "
        f"{amount(change[1], '+')} at "
        f"their mean, {amount(change[2], '+')} with as many other activations at zero"
    )
    # Each effect in its own direction: zeroing must do more than nothing, and than the others do.
    sizes = changes * np.sign(change)
    verdict = causal_verdict(sizes[:, :1] - sizes * [0, 1, 1], text)
    return verdict, verdict.text


def _listed(
    tokens: NDArray[Any] | None, stream: _outliers.Stream, alpha: Array, sinks: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Describe the largest massive activations, with what their tokens receive."""
    result = []
    for largest in sorted(stream.massive, key=lambda activation: -abs(activation.value))[:LISTED]:
        weight = alpha[largest.prompt, :, :, largest.position]
        present = weight[~np.isnan(weight)]
        result.append(
            {
                "prompt": largest.prompt,
                "boundary": largest.boundary,
                "position": largest.position,
                "channel": largest.channel,
                "token": "" if tokens is None else str(tokens[largest.prompt, largest.position]),
                "value": round(largest.value, 4),
                "median": float(f"{stream.sizes[largest.prompt, largest.boundary, -1]:.4g}"),
                "sink": bool(sinks[largest.prompt, largest.position]),
                "received": round(float(present.max()), 4) if present.size else None,
            }
        )
    return result
