"""Rotary frequencies: which pairs of channels carry the logits of a head.

A rotary embedding turns pairs of channels, each at a frequency of its own, so a logit is a sum with
one term a pair (and a term of the channels that are not turned). A softmax sees only differences
between keys; the share of a pair is therefore its part in the variance of a row's logits over the
keys that the query sees, ``Σ_j (s_f − mean) (s − mean) / Σ_j (s − mean)²``. The shares sum to 1;
one is negative where a pair works against the others. Pairs that turn fully within the prompt (high
frequencies, the first channels) tell near tokens apart; the others (low frequencies, the higher
dimensions) carry content and long distances. The causal number: how far the output moves when heads
lose the terms that carry them, and when they lose the other ones.

Source: On the token distance modeling ability of higher RoPE attention dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._measurements import qk_rows
from headscope.analyses._measurements.qk_rows import Array
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, interval, label, require, top
from headscope.analyses._stats.bootstrap import bootstrap
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.attention.rotary import Rotation
    from headscope.probes.models.model import Model

NEEDS = ("lse",)
KEEP = ("q", "k")

SOURCE = "On the token distance modeling ability of higher RoPE attention dimension"
BANDS = ("high", "low", "unrotated")


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    queries: int = 32,
    skip: int = 8,
    split: int = 0,
    edited: int = 4,
    checked: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Split the logits of every head by rotary frequency, and take bands away to check.

    Parameters
    ----------
    capture
        Capture with the kept ``q`` and ``k`` and the statistic ``lse``.
    model
        Model that was captured; its rotation is read from it and checked.
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

    Raises
    ------
    NotApplicable
        For a model without rotary embedding or whose rotation is not known, a capture without q, k
        and lse, or an option out of range.

    Examples
    --------
    >>> from headscope.analyses import frequencies
    >>> from headscope.probes import capture, load_model
    >>> model = load_model("headscope/bundled")
    >>> cap = capture(model, [[0, *range(9, 30)]], stats=("lse",), keep=("q", "k"))
    >>> frequencies.run(cap, model)["carried"].sum("pair").round(4).values[0, :3].tolist()
    [1.0, 1.0, 1.0]
    """
    for name, value, least in (("queries", queries, 1), ("skip", skip, 1), ("split", split, 0)):
        options.at_least(name, value, least)
    options.at_least("edited", edited, 1)
    options.at_least("checked", checked, 1)
    require(capture, (*KEEP, *NEEDS), "frequencies")
    qk_rows.refuse_other(capture, "frequencies")
    from headscope.probes.attention import rotary

    longest = int(capture["length"].values.max())
    turns = rotary.read(model, longest)
    most = max(len(one.pairs) for one in turns.values())
    if most == 0:
        raise NotApplicable(
            f"model: positions do not turn the queries and keys of {model.name}, so there are no "
            "rotary frequencies; `positionality` works without"
        )
    edge = split or longest
    shape = (capture.sizes["prompt"], capture.sizes["layer"], capture.sizes["head"])
    shares, spread = np.full((*shape, most + 1), np.nan), np.full(shape, np.nan)
    wavelengths = np.full((shape[1], most), np.nan)
    for layer, turn in turns.items():
        wavelengths[layer, : len(turn.pairs)] = turn.wavelengths
        for prompt in range(shape[0]):
            places = qk_rows.chosen(int(capture["length"].values[prompt]), queries, skip)
            part, whole = _parts(qk_rows.rows(capture, prompt, layer, places))
            with np.errstate(invalid="ignore"):  # a head whose logits are all alike has no shares
                shares[prompt, layer] = _by_pair(part, turn, most) / whole.sum(-1)[:, None]
            spread[prompt, layer] = whole.mean(-1) ** 0.5
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
    variables = averaged(
        "carried", ("pair", "layer", "head"), shares[..., :-1].transpose(0, 3, 1, 2),
        "Part of the logits that a pair of channels carries", "share", "diverging",
        seed=seed, convention=convention, source=SOURCE,
    )  # fmt: skip
    titles = {
        "high": "Logits carried by high frequencies",
        "low": "Logits carried by low frequencies",
        "unrotated": "Logits carried by channels that do not turn",
    }
    for band in BANDS:
        name = band if band == "unrotated" else f"{band}_frequency"
        variables |= averaged(
            name, ("layer", "head"), np.where(unknown, np.nan, sums[band]), titles[band], "share",
            "diverging", seed=seed, convention=convention, source=SOURCE,
        )  # fmt: skip
    variables |= averaged(
        "spread", ("layer", "head"), spread, "Spread of the logits of a row", "logits",
        "sequential", 0, seed=seed, convention="root of the mean variance over the keys seen",
    )  # fmt: skip
    coords: dict[str, Any] = {
        "pair": _names(turns, most),
        "wavelength": (("layer", "pair"), wavelengths),
    }
    groups = {band: top(variables[f"{band}_frequency"].values, edited) for band in ("low", "high")}
    note = pattern_substitution.reason(capture)
    if note:
        note = f"No causal check: {note}."
    else:
        moved = _moved(model, capture, turns, groups, edge, checked)
        mean, lower, upper = bootstrap(moved, seed=seed)
        variables |= interval(
            "moved", ("condition",), mean, lower, upper,
            "Output moved when heads lose a band of frequencies", "nats", "sequential", 0,
            convention=f"KL divergence from the intact output, mean over the positions of "
            f"{len(moved)} prompts; {edited} heads that the band carries most",
            evidence="causal",
        )  # fmt: skip
        coords["condition"] = [
            f"{heads}-frequency heads without {lost}" for heads in groups for lost in BANDS[:2]
        ]
        note = _note(mean)
    named = {f"{band} frequency": [label(head) for head in groups[band]] for band in groups}
    return dataset(
        capture, variables, coords, convention=convention, heads_by_type=named, note=note
    )


def _parts(rows: qk_rows.Rows) -> tuple[Array, Array]:
    """Return Σ_j s_c (s − mean) by channel (head, row, size), and their sum over the channels."""
    products = rows.products()
    count = rows.seen.sum(-1)
    mean = np.where(rows.seen, products, 0.0).sum(-1) / count
    centred = np.where(rows.seen, products - mean[..., None], 0.0)
    part = rows.queries * (centred @ rows.keys) * rows.scale / count[:, None]
    return np.asarray(part), np.asarray((centred**2).sum(-1) / count)


def _by_pair(part: Array, turn: Rotation, most: int) -> Array:
    """Add up the channels of a pair, and those of none: (head, pair + 1)."""
    total = part.sum(1)
    found = np.zeros((len(total), most + 1))
    found[:, : len(turn.pairs)] = total[:, turn.pairs].sum(-1)
    found[:, -1] = np.delete(total, turn.pairs.ravel(), axis=1).sum(-1)
    found[:, len(turn.pairs) : -1] = np.nan
    return found


def _names(turns: dict[int, Rotation], most: int) -> list[str]:
    widest = next(one for one in turns.values() if len(one.pairs) == most)
    same = all(np.allclose(one.frequencies, widest.frequencies) for one in turns.values()
               if len(one.pairs) == most)  # fmt: skip
    return [
        f"channels {one} + {two}" + (f" ({wavelength:.3g} tokens)" if same else "")
        for (one, two), wavelength in zip(widest.pairs, widest.wavelengths, strict=True)
    ]


def _moved(
    model: Model,
    capture: xr.Dataset,
    turns: dict[int, Rotation],
    groups: dict[str, list[tuple[int, int]]],
    edge: int,
    checked: int,
) -> Array:
    """Take the low and the high band from each group of heads (prompt, condition)."""
    found = []
    for prompt in range(min(checked, capture.sizes["prompt"])):
        length = int(capture["length"].values[prompt])
        rows = {
            layer: qk_rows.rows(capture, prompt, layer, np.arange(length))
            for layer in {layer for heads in groups.values() for layer, _ in heads}
        }
        row = []
        for heads in groups.values():
            for band in BANDS[:2]:
                patterns = {
                    (layer, head): _without(rows[layer], turns[layer], band, edge)[head]
                    for layer, head in heads
                }
                row.append(
                    pattern_substitution.divergence(
                        model, capture, prompt, pattern_substitution.fix(patterns)
                    )
                )
        found.append(row)
    return np.asarray(found)


def _without(rows: qk_rows.Rows, turn: Rotation, band: str, edge: int) -> Array:
    """Return the weights of a layer when the pairs of one band add nothing to the logits."""
    lost = turn.wavelengths < edge if band == "high" else turn.wavelengths >= edge
    kept = rows.queries.copy()
    kept[..., turn.pairs[lost].ravel()] = 0.0
    products = kept @ rows.keys.transpose(0, 2, 1) * rows.scale
    return rows.weights(products)


def _note(mean: Array) -> str:
    low_high, low_low, high_high, high_low = (float(one) for one in mean)
    said = (
        f"low-frequency heads move the output by {low_low:.3f} nats without low and "
        f"{low_high:.3f} without high frequencies; high-frequency heads by {high_high:.3f} without "
        f"high and {high_low:.3f} without low"
    )
    if low_low > low_high and high_high > high_low:
        return f"Causal check agrees: {said}."
    return f"DISAGREEMENT: {said}; the share is correlational here."
