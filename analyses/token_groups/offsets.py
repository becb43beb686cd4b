"""Offsets and delimiters: heads that attend at a fixed distance, to [CLS], [SEP] or punctuation.

A head of the first kind sends its weight to the token before, the token after, or another token at
one distance from the query, whatever the text says. A head of the second kind rests on delimiters.
The causal numbers: how far the output moves when the surest heads of the first kind see nothing but
their offset, against the same for the least sure; and when delimiters are hidden from the heads
that attend to them most, against as many other tokens. Weight on a delimiter may well do nothing.

Source: Clark et al., What Does BERT Look At? (1906.04341).
"""

from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.next_token_loss import predicts, tokens
from headscope.analyses._measurements import qk_rows
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, SHARE, Results, label, require, top
from headscope.analyses._runtime.verdict import LEAST_NATS, Verdict, causal_verdict, compare_shares
from headscope.analyses._stats.bootstrap import Array
from headscope.analyses.token_groups._delimiters import positions
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount
from headscope.probes import capture as capture_prompts
from headscope.probes.interventions import Ablate, KnockOut
from headscope.probes.models.model import Model

NEEDS = ("offset_mass",)
SUPPORTS = {"encoder", "vision", "hybrid"}
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
Head = tuple[int, int]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    least_mass: Annotated[float, Between(0, 1)] = 0.5,
    frozen: Annotated[int, AtLeast(1)] = 3,
    checked: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Measure the weight of every head at fixed offsets and on delimiters.

    Parameters
    ----------
    capture, model
        Capture with ``offset_mass`` at offsets −2 to 2, and the model behind it: the tokens are run
        again for the delimiters.
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
    """
    require(capture, NEEDS, "offsets")
    qk_rows.refuse_other(capture, "offsets")
    offsets = [int(offset) for offset in capture["offset"].values]
    if not set(OFFSETS) <= set(offsets):
        raise NotApplicable(
            f"capture: offsets needs the offsets −2 to 2; capture with offsets={OFFSETS}"
        )
    ids = tokens(capture)
    shifts = [offset for offset in OFFSETS if offset >= 0 or not predicts(capture)]
    convention = f"mean over the queries that have such a key; {len(ids)} prompts"
    results = Results(capture, seed=seed, source=SOURCE, evidence="correlational")
    results.add_mean(
        "mass_at", ("shift", *GRID), _by_prompt(capture["offset_mass"].sel(offset=shifts)),
        "Weight at a fixed offset", *SHARE,
        convention=f"shift: tokens before the query, −1 is the next one; {convention}",
    )  # fmt: skip
    at, best = _surest(results["mass_at"].values, shifts)
    coords: dict[str, Any] = {"shift": shifts}
    ranked = {shift: top(np.where(at == shift, best, np.nan), best.size) for shift in shifts}
    named = {
        (f"offset {shift:+d}" if shift else "offset 0"): [
            label(head) for head in ranked[shift] if best[head] > least_mass
        ]
        for shift in shifts
    }
    kinds = positions(model, ids)
    weight = np.full_like(best, np.nan)
    if kinds:
        captured = capture_prompts(model, ids, stats=("span_mass",), spans=kinds)
        results.add_mean(
            "delimiter_mass", ("delimiter", *GRID),
            _by_prompt(captured["span_mass"].sel(span=list(kinds))), "Weight on delimiters", *SHARE,
            convention=f"mean over queries, sum over the delimiters; {len(ids)} prompts; "
            "separator: a special token after the first position",
        )  # fmt: skip
        coords["delimiter"] = list(kinds)
        masses = results["delimiter_mass"].values
        weight = np.where(np.isnan(at), np.nan, np.nansum(masses, axis=0))
        for name, mass in zip(kinds, masses, strict=True):
            named[name] = [label(head) for head in top(mass, int((mass > least_mass).sum()))]

    note = "" if kinds else "No delimiter is known in these prompts."
    verdict = None
    reason = pattern_substitution.reason(capture)
    if not reason and model.module.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        reason = "the model predicts no words"
    if reason:
        note = f"No causal check: {reason}. {note}".strip()
    else:
        by_score = top(best, int(np.isfinite(best).sum()))
        size = min(frozen, len(by_score) // 2)
        groups = (by_score[:size], by_score[-size:])
        moved = _moved(model, capture, groups, at, top(weight, size), kinds, checked, seed)
        pattern_substitution.add_moved(
            results, moved, "Output moved by the edits of heads",
            f"{size} heads a group; as many other tokens are hidden, at random, as there are "
            "delimiters",
        )  # fmt: skip
        coords["condition"] = [*OFFSET_CONDITIONS, *(DELIMITER_CONDITIONS if kinds else ())]
        verdict = _verdict(moved, size)
    return results.dataset(
        coords,
        convention=convention,
        heads_by_type={name: heads for name, heads in named.items() if heads},
        note=note,
        verdict=verdict,
    )


def _surest(means: Array, shifts: list[int]) -> tuple[Array, Array]:
    """Return the offset that a head attends to most, and the weight there (layer, head)."""
    absent = np.isnan(means).all(0)
    present = np.where(np.isnan(means), -1.0, means)
    at = np.asarray(shifts, dtype=float)[present.argmax(0)]
    return np.where(absent, np.nan, at), np.where(absent, np.nan, present.max(0))


def _by_prompt(mass: xr.DataArray) -> Array:
    """Average over the queries that have a number (prompt, offset or span, layer, head)."""
    mean = mass.mean("query", skipna=True).transpose("prompt", ..., "layer", "head")
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
    rng = np.random.default_rng(seed)
    divergences = []
    for prompt in range(min(checked, capture.sizes["prompt"])):
        length = int(capture["length"].values[prompt])
        edits: list[list[Any]] = []
        for heads in groups:
            patterns = {head: _shifted(length, int(at[head])) for head in heads}
            edits += [list(pattern_substitution.fix(patterns)), [Ablate(heads=tuple(heads))]]
        if kinds:
            marks = sorted({position for rows in kinds.values() for position in rows[prompt]})
            others = [position for position in range(length) if position not in set(marks)]
            size = min(len(marks), len(others))
            drawn = sorted(int(position) for position in rng.choice(others, size, replace=False))
            # A query that would see nothing at all is left as it is.
            queries = tuple(range(min(others, default=length) + 1, length))
            edits += [
                [KnockOut(heads=tuple(resting), keys=tuple(keys), queries=queries)]
                for keys in (marks, drawn)
            ]
        divergences.append(pattern_substitution.divergences(model, capture, prompt, edits))
    return np.asarray(divergences)


def _shifted(length: int, shift: int) -> Array:
    """Return the pattern that attends to one offset only; at the ends, to the nearest key."""
    pattern = np.zeros((length, length))
    rows = np.arange(length)
    pattern[rows, np.clip(rows - shift, 0, length - 1)] = 1.0
    return pattern


def _verdict(moved: Array, size: int) -> Verdict:
    """Conclude on offsets, and on delimiters where the prompts have any."""
    groups = (f"the {size} surest offset heads", f"the {size} least sure")
    verdict = compare_shares(moved[:, :4], "their offset alone", groups)
    if moved.shape[1] == len(OFFSET_CONDITIONS):
        return verdict
    hidden, other = moved[:, 4], moved[:, 5]
    text = (
        f"hiding the delimiters from the {size} heads that attend to them most moves the output "
        f"by {amount(hidden.mean())} nats, hiding as many other tokens by {amount(other.mean())}"
    )
    remark = ", so the weight on delimiters does not show what these heads do"
    return verdict & causal_verdict(
        np.stack([hidden - LEAST_NATS, hidden - other], 1), text, remark
    )
