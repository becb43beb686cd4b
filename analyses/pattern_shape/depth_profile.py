"""Depth: how the end of a text divides its attention over what stands before, near and far.

The text before the question, the last part of each prompt, is cut into equal parts from its start
to its end; the mass that the question's queries send to each part is the curve of a head over
relative position. A parabola describes it: tilt (towards the question), U shape (start and end
above the middle, "lost in the middle") and what is left, the wave. The first tokens, where sinks
are, are left out of the parts. The causal number: the rise of the loss on the question when a part
is hidden from it, in all heads, and its rank correlation with the mass that the part gets.

Sources: Found in the Middle; Fortify the Shortest Stave (waveform).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.causal_check import Progress
from headscope.analyses._interventions.next_token_loss import losses, predicts, tokens
from headscope.analyses._runtime import options
from headscope.analyses._runtime.results import averaged, dataset, require
from headscope.analyses._stats.length_trend import mean, stated
from headscope.analyses.pattern_shape import _slots
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

NEEDS = ()

SOURCE = "Found in the Middle"
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    parts: int = 4,
    question: float = 0.25,
    skip: int = 1,
    prompts: int = 6,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Measure attention over relative position, and what each part is worth to the question.

    Parameters
    ----------
    capture
        Capture of the prompts; their tokens are run again.
    model
        Model that was captured.
    parts
        Parts of equal length that the text before the question is cut into.
    question
        Share of the prompt, at its end, whose queries count.
    skip
        First tokens that belong to no part.
    prompts
        Prompts that are run again, from the first on.
    seed
        Seed of the bootstrap over prompts.
    progress
        Called with (done, total) prompts.

    Returns
    -------
    Dataset with ``depth_mass`` (layer, head, depth; share of the question's attention), ``tilt``,
    ``u_shape`` and ``depth_wave`` (layer, head; of that curve), ``mean_mass`` (depth; mean over
    heads), ``depth_loss`` (depth; nats a token that hiding the part costs, the causal number) and
    ``agreement`` (rank correlation of the two over the parts), with 95 % intervals over prompts.

    Raises
    ------
    NotApplicable
        When the model is not causal, a prompt is too short for the parts, or an option is out of
        range.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> given = [list(range(40)), list(range(2, 42))]
    >>> execute("depth_profile", model, given)["depth_loss"].sizes["depth"]
    4
    """
    options.at_least("parts", parts, 3)
    options.between("question", question, 0.05, 0.9)
    options.at_least("skip", skip, 0)
    options.at_least("prompts", prompts, 1)
    require(capture, NEEDS, "depth_profile")
    options.one_text(capture.attrs.get("attention", "self"), "depth_profile")
    if not predicts(capture):
        raise NotApplicable("model: a question after its text needs causal order in every layer")

    masses, costs = [], []
    ids = tokens(capture)[:prompts]
    for number, one in enumerate(ids):
        start = len(one) - max(1, round(question * len(one)))
        if start - skip < parts:
            raise NotApplicable(
                f"parts: prompt {number + 1} has {max(start - skip, 0)} tokens before its "
                f"question; give {parts} or more"
            )
        edges = np.linspace(skip, start, parts + 1).round().astype(int)
        places = [list(range(low, high)) for low, high in pairwise(edges)]
        masses.append(_mass(model, one, places, start))
        costs.append(_cost(model, one, places, start))
        if progress is not None:
            progress(number + 1, len(ids))
    mass, cost = np.stack(masses), np.stack(costs)

    convention = (
        f"{parts} parts between the first {skip} and the last {question:.0%}, whose queries count; "
        f"{len(ids)} prompts of {stated(capture)}"
    )
    tilt, bend = _slots.curve(mass)
    over = mean(np.moveaxis(mass.reshape(len(mass), -1, parts), 1, 2))
    fit = "a + b x + c x² over the parts, x from −1 to 1"
    variables: dict[str, xr.Variable] = {}
    rows: tuple[tuple[str, tuple[str, ...], Array, str, str, str, dict[str, Any]], ...] = (
        ("depth_mass", ("layer", "head", "depth"), mass, "Mass by depth", "share", "sequential",
         {"low": 0, "high": 1}),
        ("tilt", ("layer", "head"), tilt, f"Tilt towards the question: b of {fit}", "share",
         "diverging", {}),
        ("u_shape", ("layer", "head"), bend, f"U shape: c of {fit}", "share", "diverging", {}),
        ("depth_wave", ("layer", "head"), _slots.wave(mass), "Wave: what the parabola leaves",
         "share", "sequential", {"low": 0}),
        ("mean_mass", ("depth",), over, "Mass by depth, mean over heads", "share", "sequential",
         {"low": 0, "high": 1}),
        ("depth_loss", ("depth",), cost, "Loss that hiding a part costs the question", "nats",
         "diverging", {"evidence": "causal"}),
        ("agreement", (), _agreement(over, cost), "Agreement of mass and cost over the parts", "ρ",
         "diverging", {"low": -1, "high": 1}),
    )  # fmt: skip
    for name, dims, values, title, units, scale, more in rows:
        variables |= averaged(
            name, dims, values, title, units, scale, more.pop("low", None), more.pop("high", None),
            seed=seed, convention=convention, source=SOURCE, **more,
        )  # fmt: skip
    names = [f"part {number} of {parts}" for number in range(1, parts + 1)]
    return dataset(
        capture,
        variables,
        {"depth": names},
        convention=convention,
        note=_note(names, variables),
    )


def _mass(model: Model, ids: list[int], places: list[list[int]], start: int) -> Array:
    """Return the mass of the question's queries on each part (layer, head, part)."""
    from headscope.probes import capture

    spans = {f"part {number}": [one] for number, one in enumerate(places)}
    found = capture(model, [ids], stats=("span_mass",), spans=spans)["span_mass"].isel(prompt=0)
    rows = found.transpose("layer", "head", "span", "query").values[..., start:]
    return mean(rows.astype(np.float64))


def _cost(model: Model, ids: list[int], places: list[list[int]], start: int) -> Array:
    """Return the rise of the question's loss when a part is hidden from it (part,)."""
    from headscope.probes.interventions import KnockOut

    heads = tuple(
        (layer, head) for layer in model.geometry.attending for head in range(model.heads)
    )
    queries = tuple(range(start, len(ids)))
    intact = losses(model, ids)[start - 1 :].mean()
    hidden = [
        losses(model, ids, (KnockOut(heads=heads, keys=tuple(keys), queries=queries),))
        for keys in places
    ]
    return np.array([one[start - 1 :].mean() - intact for one in hidden])


def _agreement(mass: Array, cost: Array) -> Array:
    """Return the rank correlation of each prompt, NaN where all parts are alike."""
    from scipy.stats import rankdata

    found = np.full(len(mass), np.nan)
    for number, pair in enumerate(zip(mass, cost, strict=True)):
        one, other = (rankdata(values) - (len(values) + 1) / 2 for values in pair)
        size = np.sqrt((one**2).sum() * (other**2).sum())
        if size > 0:
            found[number] = (one * other).sum() / size
    return found


def _note(names: list[str], variables: dict[str, xr.Variable]) -> str:
    mass, cost = variables["mean_mass"].values, variables["depth_loss"].values
    told = (
        f"Most attention: {names[int(mass.argmax())]} ({mass.max():.2f}); dearest to hide: "
        f"{names[int(cost.argmax())]} ({cost.max():+.3f} nats). "
    )
    if np.isnan(variables["agreement_lower"].values):
        return told + "INCONCLUSIVE: too few prompts for an interval of their agreement."
    if float(variables["agreement_lower"].values) > 0:
        return told + "Mass and cost agree over the parts."
    return told + "DISAGREEMENT: over the parts, mass does not tell what hiding them costs."
