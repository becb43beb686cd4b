"""Offsets and delimiters: heads that look at a fixed distance, at [CLS], [SEP] or punctuation.

A head of the first kind sends its weight to the token before, the token after, or another token at
one distance from the query, whatever the text says. A head of the second kind rests on delimiters.
The causal numbers: how far the output moves when the surest heads of the first kind see nothing but
their offset, against the same for the least sure; and when delimiters are hidden from the heads
that look at them most, against as many other tokens. Weight on a delimiter may well do nothing.

Source: Clark et al., What Does BERT Look At? (1906.04341).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.next_token_loss import predicts, tokens
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, interval, label, require, top
from headscope.analyses._stats.bootstrap import bootstrap

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ("offset_mass",)
OFFSETS = (-2, -1, 0, 1, 2)

SOURCE = "Clark et al. 1906.04341"
OFFSET_CONDITIONS = (
    "surest offset heads see their offset only",
    "surest offset heads ablated",
    "least sure heads see their offset only",
    "least sure heads ablated",
)
DELIMITER_CONDITIONS = (
    "delimiters hidden from delimiter heads",
    "other tokens hidden from delimiter heads",
)
# What moves below this is no effect to speak of.
LEAST_NATS = 0.01
Array = NDArray[np.float64]
Head = tuple[int, int]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    least_mass: float = 0.5,
    frozen: int = 3,
    checked: int = 6,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the weight of every head at fixed offsets and on delimiters.

    Parameters
    ----------
    capture
        Capture with ``offset_mass`` at offsets −2 to 2; its tokens are run again for the
        delimiters.
    model
        Model that was captured.
    least_mass
        Mean weight above which a head is named by its offset or its delimiter.
    frozen
        Heads of each causal check: so many of the surest and of the least sure.
    checked
        Prompts of the causal check; it is left out on prompts above 512 tokens.
    seed
        Seed of the bootstrap over prompts and of the other tokens that are hidden.

    Returns
    -------
    Dataset with ``mass_at`` (shift, layer, head; share of weight on the key so many tokens before
    the query, −1 is the next token; the shifts that are hidden by causal order are left out),
    ``delimiter_mass`` (delimiter, layer, head; the kinds that the prompts have) and ``moved``
    (condition; by how much the output distribution moves, in nats), with 95 % intervals over
    prompts.

    Raises
    ------
    NotApplicable
        For a capture without the offsets or without tokens, attention of two texts, or an option
        out of range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> result = execute("offsets", load_model("headscope/bundled"), ["Mary went to the store ."])
    >>> result["mass_at"].sizes["shift"], result["delimiter"].values.tolist()
    (3, ['beginning', 'punctuation'])
    """
    from headscope.analyses.token_groups._delimiters import positions
    from headscope.kernels.errors import NotApplicable
    from headscope.probes import capture as capture_again

    options.between("least_mass", least_mass, 0, 1)
    for name, value in (("frozen", frozen), ("checked", checked)):
        options.at_least(name, value, 1)
    require(capture, NEEDS, "offsets")
    qk_rows.refuse_other(capture, "offsets")
    known = [int(one) for one in capture["offset"].values]
    if not set(OFFSETS) <= set(known):
        raise NotApplicable(
            f"capture: offsets needs the offsets −2 to 2; capture with offsets={OFFSETS}"
        )
    ids = tokens(capture)

    shifts = [one for one in OFFSETS if one >= 0 or not predicts(capture)]
    mass = _prompts(capture["offset_mass"].sel(offset=shifts), "offset")
    said = f"mean over the queries that have such a key; {len(ids)} prompts"
    grid = ("layer", "head")
    variables = averaged(
        "mass_at", ("shift", *grid), mass, "Weight at a fixed offset", "share", "sequential", 0, 1,
        seed=seed, source=SOURCE, evidence="correlational",
        convention=f"shift: tokens before the query, −1 is the next one; {said}",
    )  # fmt: skip
    means = variables["mass_at"].values
    absent = np.isnan(means).all(0)
    surest = np.where(absent, -1, np.where(np.isnan(means), -1.0, means).argmax(0))
    at = np.where(absent, np.nan, np.asarray(shifts, dtype=float)[surest])
    best = np.where(absent, np.nan, np.where(np.isnan(means), -1.0, means).max(0))

    kinds = positions(model, ids)
    coords: dict[str, Any] = {"shift": shifts}
    named = {
        (f"offset {shift:+d}" if shift else "offset 0"): [
            label(head) for head in top(np.where(at == shift, best, np.nan), best.size)
            if best[head] > least_mass
        ]
        for shift in shifts
    }  # fmt: skip
    notes = []
    weight = np.full_like(best, np.nan)
    if kinds:
        found = capture_again(model, ids, stats=("span_mass",), spans=kinds)
        resting = _prompts(found["span_mass"].sel(span=list(kinds)), "span")
        variables |= averaged(
            "delimiter_mass", ("delimiter", *grid), resting, "Weight on delimiters", "share",
            "sequential", 0, 1, seed=seed, source=SOURCE, evidence="correlational",
            convention=f"mean over queries, sum over the delimiters; {len(ids)} prompts; "
            "separator: a special token after the first position",
        )  # fmt: skip
        coords["delimiter"] = list(kinds)
        weight = np.nansum(variables["delimiter_mass"].values, axis=0)
        weight[absent] = np.nan
        for name, values in zip(kinds, variables["delimiter_mass"].values, strict=True):
            named[name] = [label(head) for head in top(values, int((values > least_mass).sum()))]
    else:
        notes.append("No delimiter is known in these prompts.")

    reason = pattern_substitution.reason(capture)
    if not reason and model.module.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        reason = "the model predicts no words"
    if reason:
        notes.insert(0, f"No causal check: {reason}.")
    else:
        ranked = top(best, int(np.isfinite(best).sum()))
        size = min(frozen, len(ranked) // 2)
        groups = (ranked[:size], ranked[-size:])
        resting_heads = top(weight, size)
        moved = _moved(model, capture, groups, at, resting_heads, kinds, checked, seed)
        mean, lower, upper = bootstrap(moved, seed=seed)
        variables |= interval(
            "moved", ("condition",), mean, lower, upper, "Output moved by the edits of heads",
            "nats", "sequential", 0, evidence="causal", source=SOURCE,
            convention=f"KL divergence from the intact output, mean over the positions of "
            f"{len(moved)} prompts; {size} heads a group; as many other tokens are hidden, at "
            "random, as there are delimiters",
        )  # fmt: skip
        coords["condition"] = [*OFFSET_CONDITIONS, *(DELIMITER_CONDITIONS if kinds else ())]
        notes = [*_notes(moved, size, seed), *notes]
    return dataset(
        capture,
        variables,
        coords,
        convention=said,
        heads_by_type={name: each for name, each in named.items() if each},
        note=" ".join(notes),
    )


def _prompts(mass: xr.DataArray, kind: str) -> Array:
    """Average over the queries that have a number (prompt, kind, layer, head)."""
    mean = mass.mean("query", skipna=True).transpose("prompt", kind, "layer", "head")
    return np.asarray(mean.values, dtype=np.float64)


def _moved(
    model: Model,
    capture: xr.Dataset,
    groups: tuple[list[Head], list[Head]],
    at: Array,
    resting: list[Head],
    kinds: dict[str, list[list[int]]],
    checked: int,
    seed: int,
) -> Array:
    """Fix and ablate the groups, then hide delimiters and others (prompt, condition)."""
    from headscope.probes.interventions import Ablate, KnockOut

    rng = np.random.default_rng(seed)
    found = []
    for prompt in range(min(checked, capture.sizes["prompt"])):
        length = int(capture["length"].values[prompt])
        edits: list[list[Any]] = []
        for heads in groups:
            patterns = {head: _shifted(length, int(at[head])) for head in heads}
            edits += [list(pattern_substitution.fix(patterns)), [Ablate(heads=tuple(heads))]]
        if kinds:
            marks = sorted({place for places in kinds.values() for place in places[prompt]})
            others = [place for place in range(length) if place not in set(marks)]
            size = min(len(marks), len(others))
            drawn = sorted(int(one) for one in rng.choice(others, size, replace=False))
            # A query that would see nothing at all is left as it is.
            queries = tuple(range(min(others, default=length) + 1, length))
            edits += [
                [KnockOut(heads=tuple(resting), keys=tuple(each), queries=queries)]
                for each in (marks, drawn)
            ]
        found.append(
            [pattern_substitution.divergence(model, capture, prompt, each) for each in edits]
        )
    return np.asarray(found)


def _shifted(length: int, shift: int) -> Array:
    """Return the pattern that looks at one offset only; at the ends, at the nearest key."""
    pattern = np.zeros((length, length))
    rows = np.arange(length)
    pattern[rows, np.clip(rows - shift, 0, length - 1)] = 1.0
    return pattern


def _notes(moved: Array, size: int, seed: int) -> list[str]:
    notes = []
    most, least = ((moved[:, one] / np.maximum(moved[:, one + 1], 1e-12)) for one in (0, 2))
    if not (moved[:, [1, 3]] > 1e-9).all():
        notes.append(
            "INCONCLUSIVE: ablating the offset heads or the least sure ones moves no output; "
            "offsets are correlational here."
        )
    elif len(moved) < 2:
        notes.append("INCONCLUSIVE (one prompt has no interval): offsets are correlational here.")
    else:
        said = (
            f"their offset alone does {most.mean():.0%} of what ablation does in the {size} surest "
            f"offset heads, {least.mean():.0%} in the {size} least sure"
        )
        agrees = float(bootstrap(least - most, seed=seed)[1]) > 0
        notes.append(f"{'Causal check agrees' if agrees else 'DISAGREEMENT'}: {said}.")
    if moved.shape[1] > len(OFFSET_CONDITIONS):
        hidden, other = moved[:, 4], moved[:, 5]
        said = (
            f"hiding the delimiters from the {size} heads that look at them most moves the output "
            f"by {hidden.mean():.3f} nats, hiding as many other tokens by {other.mean():.3f}"
        )
        apart = float(bootstrap(hidden - other, seed=seed)[1])  # NaN for one prompt
        matters = hidden.mean() > LEAST_NATS and apart > 0
        word = "Causal check agrees" if matters else "DISAGREEMENT"
        end = "" if matters else ", so the weight on delimiters does not tell what these heads do"
        notes.append(f"{word}: {said}{end}.")
    return notes
