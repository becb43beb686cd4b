"""Rotary frequencies: which pairs of channels carry the logits of a head.

A rotary embedding turns pairs of channels, each at a frequency of its own, so a logit is a sum with
one term a pair (and a term of the channels that are not turned). A softmax sees only differences
between keys; the share of a pair is therefore its part in the variance of a row's logits over the
keys that the query sees, ``Σ_j (s_f − mean) (s − mean) / Σ_j (s − mean)²``. The shares sum to 1;
one is negative where a pair works against the others. Pairs that turn fully within the prompt (high
frequencies, the first channels) separate near tokens; the others (low frequencies, the higher
dimensions) carry content and long distances. The causal number: how far the output moves when heads
lose the terms that carry them, and when they lose the other ones.

Source: On the token distance modeling ability of higher RoPE attention dimension.
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.causal_check import Head
from headscope.analyses._measurements import qk_rows
from headscope.analyses._measurements.qk_rows import Array
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import GRID, Results, label, require, top
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes.attention import rotary
from headscope.probes.attention.rotary import Rotation
from headscope.probes.models.model import Model

NEEDS = ("lse",)
SUPPORTS = {"hybrid"}
KEEP = ("q", "k")

SOURCE = "On the token distance modeling ability of higher RoPE attention dimension"
BANDS = {
    "high": ("high_frequency", "Logits carried by high frequencies"),
    "low": ("low_frequency", "Logits carried by low frequencies"),
    "unrotated": ("unrotated", "Logits carried by channels that do not turn"),
}


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    queries: Annotated[int, AtLeast(1)] = 32,
    skip: Annotated[int, AtLeast(1)] = 8,
    split: Annotated[int, AtLeast(0)] = 0,
    edited: Annotated[int, AtLeast(1)] = 4,
    checked: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Split the logits of every head by rotary frequency, and ablate bands to check.

    Parameters
    ----------
    capture, model
        Capture with the kept ``q`` and ``k`` and the statistic ``lse``, and its model, whose
        rotation is read and checked.
    queries
        Queries of every prompt whose rows are split, evenly over it; exact at any length.
    skip
        Queries left out at the start, where few keys can be seen.
    split
        Wavelength, in tokens, that parts high from low frequencies; 0 is the longest prompt.
    edited
        Heads that lose a band in the causal check: so many that the low and that the high band
        carries most.
    checked
        Prompts of the causal check; it is left out on prompts above 512 tokens.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``carried`` (pair, layer, head; share of the variance of a row's logits),
    ``high_frequency``, ``low_frequency`` and ``unrotated`` (layer, head; sums of it: together 1),
    ``spread`` (layer, head; standard deviation of the logits of a row) and ``moved`` (condition;
    how far the output moves without a band, in nats), with 95 % intervals over prompts. Coordinate
    ``wavelength`` (layer, pair), tokens.
    """
    require(capture, (*KEEP, *NEEDS), "frequencies")
    qk_rows.refuse_other(capture, "frequencies")
    longest = int(capture["length"].values.max())
    turns = rotary.read(model, longest)
    most = max(len(turn.pairs) for turn in turns.values())
    if most == 0:
        raise NotApplicable(
            f"model: positions do not turn the queries and keys of {model.name}, so there are no "
            "rotary frequencies; `positionality` works without"
        )
    edge = split or longest
    shares, spread, wavelengths = _shares(capture, turns, most, queries, skip)
    # A pair that a layer does not have is NaN there, and no part of a sum.
    high = np.isfinite(wavelengths) & (wavelengths < edge)
    low = np.isfinite(wavelengths) & ~high
    turned = np.nan_to_num(shares[..., :-1])
    sums = {
        "high": np.einsum("plhf,lf->plh", turned, high),
        "low": np.einsum("plhf,lf->plh", turned, low),
        "unrotated": shares[..., -1],
    }
    unknown = np.isnan(shares[..., -1])
    convention = (
        "share of the variance of a row's logits (products of q and k, before any cap) over the "
        f"keys seen, up to {queries} queries a prompt; shares sum to 1; high: wavelength below "
        f"{edge} tokens"
    )
    results = Results(capture, seed=seed, source=SOURCE, convention=convention)
    signed = ("share", "diverging")
    results.add_means(
        ("carried", ("pair", *GRID), shares[..., :-1].transpose(0, 3, 1, 2),
         "Part of the logits that a pair of channels carries", signed),
        *((name, GRID, np.where(unknown, np.nan, sums[band]), title, signed)
          for band, (name, title) in BANDS.items()),
        ("spread", GRID, spread, "Spread of the logits of a row", ("logits", "sequential", 0),
         "root of the mean variance over the keys seen"),
    )  # fmt: skip
    coords: dict[str, Any] = {
        "pair": _names(turns, most),
        "wavelength": (("layer", "pair"), wavelengths),
    }
    groups = {band: top(results[BANDS[band][0]].values, edited) for band in ("low", "high")}
    reason = pattern_substitution.reason(capture)
    verdict = None
    if not reason:
        moved = _moved(model, capture, turns, groups, edge, checked)
        title = "Output moved when heads lose a band of frequencies"
        rule = f"{edited} heads that the band carries most"
        pattern_substitution.add_moved(results, moved, title, rule)
        coords["condition"] = [
            f"{heads}-frequency heads without {lost}"
            for heads in groups
            for lost in ("high", "low")
        ]
        verdict = _verdict(moved)
    return results.dataset(
        coords,
        heads_by_type={
            f"{band} frequency": [label(head) for head in heads] for band, heads in groups.items()
        },
        note=f"No causal check: {reason}." if reason else "",
        verdict=verdict,
    )


def _shares(
    capture: xr.Dataset, turns: dict[int, Rotation], most: int, queries: int, skip: int
) -> tuple[Array, Array, Array]:
    """Return shares (prompt, layer, head, pair + 1), spread, and wavelengths (layer, pair)."""
    shape = (capture.sizes["prompt"], capture.sizes["layer"], capture.sizes["head"])
    shares, spread = np.full((*shape, most + 1), np.nan), np.full(shape, np.nan)
    wavelengths = np.full((shape[1], most), np.nan)
    for layer, turn in turns.items():
        wavelengths[layer, : len(turn.pairs)] = turn.wavelengths
        for prompt in range(shape[0]):
            positions = qk_rows.chosen(int(capture["length"].values[prompt]), queries, skip)
            part, whole = _parts(qk_rows.rows(capture, prompt, layer, positions))
            with np.errstate(invalid="ignore"):  # a head whose logits are all alike has no shares
                shares[prompt, layer] = _by_pair(part, turn, most) / whole.sum(-1)[:, None]
            spread[prompt, layer] = whole.mean(-1) ** 0.5
    return shares, spread, wavelengths


def _parts(rows: qk_rows.Rows) -> tuple[Array, Array]:
    """Return Σ_j s_c (s − mean) by channel (head, row, size), and their sum over the channels."""
    products = rows.products()
    count = rows.visible.sum(-1)
    mean = np.where(rows.visible, products, 0.0).sum(-1) / count
    centred = np.where(rows.visible, products - mean[..., None], 0.0)
    part = rows.queries * (centred @ rows.keys) * rows.scale / count[:, None]
    return np.asarray(part), np.asarray((centred**2).sum(-1) / count)


def _by_pair(part: Array, turn: Rotation, most: int) -> Array:
    """Add up the channels of a pair, and those of none: (head, pair + 1)."""
    total = part.sum(1)
    sums = np.zeros((len(total), most + 1))
    sums[:, : len(turn.pairs)] = total[:, turn.pairs].sum(-1)
    sums[:, -1] = np.delete(total, turn.pairs.ravel(), axis=1).sum(-1)
    sums[:, len(turn.pairs) : -1] = np.nan
    return sums


def _names(turns: dict[int, Rotation], most: int) -> list[str]:
    """Return the names of channel pairs, with their wavelength where all layers share it."""
    full = [turn for turn in turns.values() if len(turn.pairs) == most]
    equal = all(np.allclose(turn.frequencies, full[0].frequencies) for turn in full)
    return [
        f"channels {first} + {second}" + (f" ({amount(wavelength)} tokens)" if equal else "")
        for (first, second), wavelength in zip(full[0].pairs, full[0].wavelengths, strict=True)
    ]


def _moved(
    model: Model,
    capture: xr.Dataset,
    turns: dict[int, Rotation],
    groups: dict[str, list[Head]],
    edge: int,
    checked: int,
) -> Array:
    """Ablate the high and the low band in each group of heads (prompt, condition)."""
    divergences = []
    for prompt in range(min(checked, capture.sizes["prompt"])):
        length = int(capture["length"].values[prompt])
        rows = {
            layer: qk_rows.rows(capture, prompt, layer, np.arange(length))
            for layer in {layer for heads in groups.values() for layer, _ in heads}
        }
        edits = [
            pattern_substitution.fix({
                (layer, head): _without(rows[layer], turns[layer], band, edge)[head]
                for layer, head in heads
            })
            for heads in groups.values()
            for band in ("high", "low")
        ]  # fmt: skip
        divergences.append(pattern_substitution.divergences(model, capture, prompt, edits))
    return np.asarray(divergences)


def _without(rows: qk_rows.Rows, turn: Rotation, band: str, edge: int) -> Array:
    """Return the weights of a layer when the pairs of one band add nothing to the logits."""
    lost = turn.wavelengths < edge if band == "high" else turn.wavelengths >= edge
    kept = rows.queries.copy()
    kept[..., turn.pairs[lost].ravel()] = 0.0
    products = kept @ rows.keys.transpose(0, 2, 1) * rows.scale
    return rows.weights(products)


def _verdict(moved: Array) -> Verdict:
    """Conclude whether heads depend more on the band that carries them than on the other."""
    low_high, low_low, high_high, high_low = moved.mean(0)
    text = (
        f"low-frequency heads move the output by {amount(low_low)} nats without low and "
        f"{amount(low_high)} without high frequencies; high-frequency heads by "
        f"{amount(high_high)} without "
        f"high and {amount(high_low)} without low"
    )
    own, other = moved[:, [1, 2]], moved[:, [0, 3]]
    return causal_verdict(own - other, text, "; the share is correlational here")
