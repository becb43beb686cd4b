"""Positionality: heads that attend to the same positions whatever the text.

A head is positional when its weights A[i, j] vary little across prompts at fixed positions. For a
query i, ``P = mean over pairs of prompts of Σ_j A[i, j] A'[i, j]`` divided by the mean of
``Σ_j A[i, j]²``: 1 where every prompt has the same row, near 0 where no two prompts attend to
the same position. A head with its weight on the first token has one row for all prompts, whatever
it does with the rest: both numbers are also computed without the first token, and these come first
where it has 25 % more of all mass than in even rows. The causal number beside it: how far the
output moves when the most positional heads get the mean pattern of the other prompts in place of
their own, against how far it moves without these heads; and the same for the least positional ones.

Source: Positional Attention (low variance of the weights across inputs at fixed positions).
"""

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions import pattern_substitution
from headscope.analyses._interventions.causal_check import Head
from headscope.analyses._measurements import qk_rows, without_first
from headscope.analyses._measurements.qk_rows import Array
from headscope.analyses._runtime.options import AtLeast
from headscope.analyses._runtime.results import GRID, SHARE, Results, attending, label, require, top
from headscope.analyses._runtime.verdict import compare_shares
from headscope.analyses._stats.length_trend import mean
from headscope.kernels.errors import NotApplicable
from headscope.probes.interventions import Ablate
from headscope.probes.interventions.base import Edit
from headscope.probes.models.model import Model

NEEDS = ("lse", "first_mass")
SUPPORTS = {"encoder", "hybrid"}
KEEP = ("q", "k")

SOURCE = "Positional Attention"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    queries: Annotated[int, AtLeast(1)] = 32,
    skip: Annotated[int, AtLeast(1)] = 8,
    frozen: Annotated[int, AtLeast(1)] = 4,
    checked: Annotated[int, AtLeast(2)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Score every head by how little its rows vary across prompts, and freeze some to check.

    Parameters
    ----------
    capture, model
        Capture with the kept ``q`` and ``k`` and the statistics ``lse`` and ``first_mass``, of two
        prompts or more, and its model, whose patterns are frozen for the causal check.
    queries
        Positions of queries that are compared, evenly over the shortest prompt; exact at any
        length.
    skip
        Queries left out at the start, where few keys can be seen.
    frozen
        Heads of the causal check: so many of the most and of the least positional.
    checked
        Prompts of the causal check; it is left out on prompts above 512 tokens.
    seed
        Seed of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``positionality`` (layer, head; 0 to 1), ``variance`` (layer, head; ``Σ_j Var
    A[i, j]`` over prompts, averaged over queries), both also ``_without_first`` token, and
    ``moved`` (condition; by how much the output distribution moves with the mean pattern of the
    other prompts and without the heads, in nats), with 95 % intervals over prompts.
    """
    require(capture, (*KEEP, *NEEDS), "positionality")
    qk_rows.refuse_other(capture, "positionality")
    count = capture.sizes["prompt"]
    if count < 2:
        raise NotApplicable("prompts: positionality compares prompts; give 2 or more")

    positions = qk_rows.chosen(int(capture["length"].values.min()), queries, skip)
    convention = (
        f"mean over {len(positions)} queries of the overlap of two prompts' rows over the overlap "
        f"of a row with itself; {count} prompts"
    )
    results = Results(capture, seed=seed, source=SOURCE)
    ends = sorted(("", without_first.SUFFIX), reverse=without_first.first_dominates(capture))
    for end in ends:
        shape = (count, capture.sizes["layer"], capture.sizes["head"], len(positions))
        own, shared = np.full((2, *shape), np.nan)
        for layer in np.flatnonzero(attending(capture)):
            own[:, layer], shared[:, layer] = _overlaps(capture, int(layer), positions, end)
        title, rule = (without_first.TITLE, without_first.RULE) if end else ("", "")
        results.add_means(
            (f"positionality{end}", GRID, mean(shared / own.mean(0)),
             f"Same rows whatever the prompt{title}", SHARE, f"{convention}{rule}"),
            (f"variance{end}", GRID, mean(own - shared),
             f"Variance of the weights across prompts{title}", ("share²", "sequential"),
             f"Σ_j Var A[i, j] over prompts (unbiased), averaged over queries{rule}"),
        )  # fmt: skip
    scores = results[f"positionality{ends[0]}"].values
    ranked = top(scores, int(np.isfinite(scores).sum()))
    size = min(frozen, len(ranked) // 2)
    groups = {"most positional": ranked[:size], "least positional": ranked[-size:]}
    coords: dict[str, Any] = {}
    verdict = None
    reason = pattern_substitution.reason(capture)
    if not reason:
        moved = _moved(model, capture, list(groups.values()), checked)
        if len(moved) < 2:
            reason = "no two prompts have others as long as themselves"
        else:
            title = "Output moved by the mean pattern of other prompts"
            rule = f"{size} heads get the mean pattern of the other prompts, or are set to zero"
            pattern_substitution.add_moved(results, moved, title, rule)
            coords["condition"] = [
                f"{name} heads {edit}" for name in groups for edit in ("with the mean", "ablated")
            ]
            compared = (f"the {size} most positional heads", f"the {size} least positional")
            verdict = compare_shares(moved, "the mean pattern of other prompts", compared)
    checks = f"No causal check: {reason}. " if reason else ""
    return results.dataset(
        coords,
        heads_by_type={name: [label(head) for head in heads] for name, heads in groups.items()},
        note=f"{without_first.dominance_note(capture)}{checks}Prompts made from one template make "
        "every head look positional.",
        verdict=verdict,
    )


def _overlaps(
    capture: xr.Dataset, layer: int, positions: NDArray[np.int64], end: str
) -> tuple[Array, Array]:
    """Return Σ_j A² of every prompt, and Σ_j A A' averaged over the others (prompt, head, row)."""

    def weights_of(prompt: int) -> Array:
        weights = qk_rows.rows(capture, prompt, layer, positions).weights()
        if not end:
            return weights
        rest = 1 - weights[..., :1]
        weights[..., 0] = 0
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(rest >= without_first.LEAST, weights / rest, np.nan)

    count, longest = capture.sizes["prompt"], int(capture["length"].values.max())
    total = np.zeros((capture.sizes["head"], len(positions), longest))
    # Twice through the prompts: their maps together may be larger than memory.
    for prompt in range(count):
        weights = weights_of(prompt)
        total[..., : weights.shape[-1]] += weights
    own, shared = [], []
    for prompt in range(count):
        weights = weights_of(prompt)
        square = (weights**2).sum(-1)
        own.append(square)
        shared.append(((weights * total[..., : weights.shape[-1]]).sum(-1) - square) / (count - 1))
    return np.stack(own), np.stack(shared)


def _moved(model: Model, capture: xr.Dataset, groups: list[list[Head]], checked: int) -> Array:
    """Measure groups of heads with other prompts' mean pattern, and ablated (prompt, both)."""
    lengths = capture["length"].values
    causal = bool(capture["causal"].values[attending(capture)].all())
    divergences: list[list[float]] = []
    for prompt in range(capture.sizes["prompt"]):
        fits = lengths >= lengths[prompt] if causal else lengths == lengths[prompt]
        others = [int(other) for other in np.flatnonzero(fits) if other != prompt]
        if not others or len(divergences) == checked:
            continue
        edits: list[Sequence[Edit]] = []
        for heads in groups:
            patterns = _mean(capture, others, heads, int(lengths[prompt]))
            edits += [pattern_substitution.fix(patterns), [Ablate(heads=tuple(heads))]]
        divergences.append(pattern_substitution.divergences(model, capture, prompt, edits))
    return np.asarray(divergences)


def _mean(
    capture: xr.Dataset, prompts: list[int], heads: list[Head], length: int
) -> dict[Head, Array]:
    """Average the patterns of heads over prompts, up to a length."""
    patterns = {head: np.zeros((length, length)) for head in heads}
    for layer, prompt in product(sorted({layer for layer, _ in heads}), prompts):
        weights = qk_rows.rows(capture, prompt, layer, np.arange(length)).weights()
        for at, head in heads:
            if at == layer:
                patterns[at, head] += weights[head, :, :length] / len(prompts)
    return patterns
