"""Concentration: how concentrated attention is, and whether it thins out as the text grows.

Concentration is the mass of the k largest weights. Spikiness is ``1 − H / log n`` for entropy H and
n visible keys: 0 even, 1 a single key. Dilution is minus the slope of the log of the largest weight
over log n: 0 for a head that keeps its focus, 1 for an even one, whose largest weight is 1/n. The
effective temperature is that of n Gaussian logits whose softmax has the same entropy,
``H = log n − σ²/2``, so ``τ = 1/σ``; heads freeze onto a key as σ nears √(2 log n). Column hardness
is ``α = n · max_k Σ_i P_ik²``, the largest squared column norm: small where no key gets attention
from all queries, and then attention can be sampled; α / n² is 1 where all attend to one key.

The numbers of rows are also computed without the first token, from the weights renormalised over
the other keys: these come first, and name the spiky heads, where the first token has 25 % more of
all mass than in even rows. Columns are keys, of which ``skip_keys`` leaves out the first. The
causal number: what the loss becomes when the spikiest heads of each layer are spread out by a
temperature, and when as many of its least spiky ones are.

Sources: The Hedgehog & the Porcupine (spikiness); The Devil in Linear Transformer (dilution);
Linear Log-Normal Attention (temperature); HyperAttention (column norms); Selective Attention.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions.next_token_loss import contrast, predicts, tokens
from headscope.analyses._measurements import without_first
from headscope.analyses._measurements.received import largest
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, SHARE, Results, label, require, top
from headscope.analyses._runtime.verdict import causal_verdict
from headscope.analyses._stats.length_trend import (
    Array,
    by_octave,
    length_note,
    mean,
    octaves,
    per_query,
    slope,
    visible,
)
from headscope.analyses.pattern_shape.entropy import largest_entropy
from headscope.kernels.formatting import amount
from headscope.probes.interventions import Temperature
from headscope.probes.models.model import Model

NEEDS = ("entropy", "first_mass", "topk", "column_norm")
QUICK = {"causal_prompts": 2}
SUPPORTS = {"encoder", "vision", "hybrid"}

LOG_NORMAL = "Linear Log-Normal Attention"
CONDITIONS = ("intact", "spiky heads spread", "least spiky heads spread")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    skip_keys: Annotated[int, AtLeast(0)] = 0,
    shortest: Annotated[int, AtLeast(1)] = 4,
    heads: Annotated[float, Between(0, 0.5)] = 0.25,
    temperature: Annotated[float, AtLeast(1)] = 100.0,
    causal_prompts: Annotated[int, AtLeast(0)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by concentration, spikiness, dilution, temperature and column norms.

    Parameters
    ----------
    capture, model
        Capture of the prompts with ``entropy``, ``first_mass``, ``topk`` and ``column_norm``, and
        its model, whose heads are spread out for the causal check.
    skip_keys
        First keys left out of the column norms, so that sinks do not hide the rest.
    shortest
        Visible keys in the first octave of the dilution; queries that see fewer are left out.
    heads
        Share of each layer's heads in each of the two sets of the causal check.
    temperature
        What divides their logits there; 100 makes any head all but even, 2 hardly moves a head
        that is frozen onto a key.
    causal_prompts
        Prompts of the causal check, from the first on; 0 leaves it out.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``spikiness`` and ``concentration`` (layer, head; share), ``dilution`` (layer,
    head; slope), ``inverse_temperature`` (layer, head; σ), ``temperature`` (layer, head; τ = 1/σ of
    the mean), each of them ``_without_first`` token, too, ``column_hardness`` (layer, head; α),
    ``column_share`` (layer, head; α / n², 0 to 1) and ``spread_loss`` (condition; nats a token, the
    causal number), with 95 % intervals over prompts. Where no prompt spans two octaves the dilution
    is missing.
    """
    require(capture, NEEDS, "concentration", ("self",))

    weights, raw = per_query(capture, "topk"), per_query(capture, "entropy")
    first = without_first.mass(capture)
    columns, share = _columns(capture, skip_keys)

    lengths = f"prompts of {length_note(capture)}"
    left_out = f"first {skip_keys} keys left out; {lengths}"
    results = Results(capture, seed=seed)
    variants = {
        "": (raw, weights, visible, lengths),
        without_first.SUFFIX: (
            without_first.entropy(raw, first), without_first.largest(weights, first),
            without_first.others, f"{lengths}{without_first.RULE}",
        ),
    }  # fmt: skip
    order = sorted(variants, reverse=without_first.first_dominates(capture))
    for end in order:
        _add_rows(results, end, shortest, *variants[end])
    results.add_means(
        ("column_hardness", GRID, columns, "Column hardness α", ("tokens", "sequential", 0),
         f"n · max_k Σ_i P_ik², {left_out}", "HyperAttention"),
        ("column_share", GRID, share, "Column hardness against its largest value", SHARE,
         f"α / n², {left_out}", "HyperAttention"),
    )  # fmt: skip
    scores = results[f"spikiness{order[0]}"].values
    sets = _extremes(scores, heads)
    kinds = zip(("spiky", "least_spiky"), sets, strict=True)
    named = {kind: [label(head) for head in chosen] for kind, chosen in kinds}
    # The sets take as many of each layer; the sentence names the spikiest of all.
    best = ", ".join(map(label, top(scores, 8)))
    note = f"{without_first.dominance_note(capture)}Spikiest heads: {best}."
    about: dict[str, Any] = {"convention": f"means over the queries; {lengths}"}
    about["heads_by_type"] = named
    if not (predicts(capture) and causal_prompts):
        note += " No loss is measured: the model is not causal, or causal_prompts is 0."
        return results.dataset(note=note, **about)
    spread = [(Temperature(heads=tuple(chosen), value=temperature),) for chosen in sets]
    loss = contrast(model, tokens(capture)[:causal_prompts], [(), *spread])
    size, costs = len(sets[0]), loss.mean(0)
    results.add_mean(
        "spread_loss", ("condition",), loss, "Loss with heads spread out", "nats", "sequential", 0,
        evidence="causal",
        convention=f"loss a token on {len(loss)} prompts; logits of {size} heads, as many "
        f"of each layer, divided by {temperature:g}",
    )  # fmt: skip
    text = (
        f"of a loss of {amount(costs[0])} nats, spreading out the {size} spikiest heads changes "
        f"{amount(costs[1] - costs[0], '+')}, the {len(sets[1])} least spiky ones "
        f"{amount(costs[2] - costs[0], '+')}"
    )
    verdict = causal_verdict(loss[:, 1] - loss[:, 2], text)
    return results.dataset({"condition": list(CONDITIONS)}, verdict, note=note, **about)


def _add_rows(
    results: Results,
    end: str,
    shortest: int,
    raw: Array,
    weights: Array,
    count: Callable[[xr.Dataset], Array],
    lengths: str,
) -> None:
    """Add what rows tell, under names with this end, from their entropy and largest weights.

    ``count`` counts the keys of each query.
    """
    title = without_first.TITLE if end else ""
    keys, most = count(results.capture), largest_entropy(results.capture, count)
    open_rows, ranks = np.where(most > 0, most, np.nan), weights.shape[-1]
    # The k largest of k keys are all of them, which says nothing.
    full = np.where((keys > ranks)[:, :, None], weights.sum(-1), np.nan)
    counts, peaks = by_octave(weights[..., 0], keys, octaves(keys, shortest))
    with np.errstate(divide="ignore"):
        dilution = -slope(np.log(counts)[:, :, None], np.log(peaks))
    sigma = mean(np.sqrt(np.maximum(2 * (open_rows - raw), 0)))
    results.add_means(
        (f"spikiness{end}", GRID, mean(np.clip(1 - raw / open_rows, 0, 1)),
         f"Spikiness of the weights{title}", SHARE, f"1 − H / log n; {lengths}",
         "The Hedgehog & the Porcupine"),
        (f"concentration{end}", GRID, mean(full), f"Mass of the {ranks} largest weights{title}",
         SHARE, f"queries that see more than {ranks} of these keys; {lengths}",
         "Selective Attention"),
        (f"dilution{end}", GRID, dilution, f"Dilution of the largest weight with length{title}",
         ("slope", "diverging"),
         f"−d log(max weight) / d log n over octaves from {shortest} keys; {lengths}",
         "The Devil in Linear Transformer"),
        (f"inverse_temperature{end}", GRID, sigma, f"Effective inverse temperature{title}",
         ("σ of the logits", "sequential", 0),
         f"σ = √(2 (log n − H)), Gaussian logits of this entropy; {lengths}", LOG_NORMAL),
    )  # fmt: skip
    # Missing where logits are all equal; the ends of the interval change places.
    sides = ("", "_upper", "_lower")
    sigmas = [results[f"inverse_temperature{end}{side}"].values for side in sides]
    results.add_interval(
        f"temperature{end}", GRID, [1 / np.where(value > 0, value, np.nan) for value in sigmas],
        f"Effective temperature{title}", "1 / σ of the logits", "sequential", 0, source=LOG_NORMAL,
        convention=f"τ = 1/σ of the mean σ; missing where the rows are even; {lengths}",
    )  # fmt: skip


def _extremes(spikiness: Array, share: float) -> list[list[tuple[int, int]]]:
    """List the spikiest and the least spiky heads of every layer: layers differ in what they do."""
    size = max(int(share * spikiness.shape[1]), 1)
    measured = [layer for layer, row in enumerate(spikiness) if np.isfinite(row).all()]
    return [
        [
            (layer, head)
            for layer in measured
            for _, head in top(sign * spikiness[layer : layer + 1], size)
        ]
        for sign in (1, -1)
    ]


def _columns(capture: xr.Dataset, skip: int) -> tuple[Array, Array]:
    """Return the hardness of each prompt and head, α and α / n²."""
    norms = capture["column_norm"].transpose("prompt", "layer", "head", "key").values[..., skip:]
    most = largest(norms.astype(np.float64))
    lengths = capture["length"].values[:, None, None].astype(np.float64)
    return most * lengths, np.minimum(most / lengths, 1.0)
