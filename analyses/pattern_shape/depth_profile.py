"""Depth profile: how the end of a text divides its attention over what comes before it.

The text before the question, the last part of each prompt, is cut into equal parts from its start
to its end; the mass that the question's queries send to each part is the curve of a head over
relative position. A parabola describes it: tilt (towards the question), U shape (start and end
above the middle, "lost in the middle") and what is left, the wave. The first tokens, where sinks
are, are left out of the parts. The causal number: the rise of the loss on the question when a part
is hidden from it, in all heads, and its rank correlation with the mass that the part gets.

Sources: Found in the Middle; Fortify the Shortest Stave (waveform).
"""

from itertools import pairwise
from typing import Annotated

import numpy as np
import xarray as xr

from headscope.analyses._interventions.next_token_loss import losses, predicts, tokens
from headscope.analyses._runtime.options import AtLeast, Between
from headscope.analyses._runtime.results import GRID, SHARE, Results, require
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.length_trend import Array, length_note, mean
from headscope.analyses._stats.rank_correlation import ranked
from headscope.analyses.pattern_shape import _slots
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes import capture as capture_prompts
from headscope.probes.interventions import KnockOut
from headscope.probes.models.model import Model

NEEDS = ()
QUICK = {"prompts": 2}
SUPPORTS = {"hybrid"}

SOURCE = "Found in the Middle"


def run(
    capture: xr.Dataset,
    model: Model,
    *,
    parts: Annotated[int, AtLeast(3)] = 4,
    question: Annotated[float, Between(0.05, 0.9)] = 0.25,
    skip: Annotated[int, AtLeast(0)] = 1,
    prompts: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Measure attention over relative position, and the loss when each part is hidden.

    Parameters
    ----------
    capture, model
        Capture of the prompts, whose tokens are run again, and the causal model behind it.
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

    Returns
    -------
    Dataset with ``depth_mass`` (layer, head, depth; share of the question's attention), ``tilt``,
    ``u_shape`` and ``depth_wave`` (layer, head; of that curve), ``mean_mass`` (depth; mean over
    heads), ``depth_loss`` (depth; nats a token that hiding the part costs, the causal number) and
    ``agreement`` (rank correlation of the two over the parts), with 95 % intervals over prompts.
    """
    require(capture, NEEDS, "depth_profile", ("self",))
    if not predicts(capture):
        raise NotApplicable("model: a question after its text needs causal order in every layer")

    ids = tokens(capture)[:prompts]
    mass, cost = _measured(model, ids, parts, question, skip)
    convention = (
        f"{parts} parts between the first {skip} and the last {percent(question)}, whose queries "
        f"count; {len(ids)} prompts of {length_note(capture)}"
    )
    tilt, bend = _slots.curve(mass)
    over = mean(np.moveaxis(mass.reshape(len(mass), -1, parts), 1, 2))
    fit = "a + b x + c x² over the parts, x from −1 to 1"
    results = Results(capture, seed=seed, convention=convention, source=SOURCE)
    results.add_means(
        ("depth_mass", (*GRID, "depth"), mass, "Mass by depth", SHARE),
        ("tilt", GRID, tilt, f"Tilt towards the question: b of {fit}", ("share", "diverging")),
        ("u_shape", GRID, bend, f"U shape: c of {fit}", ("share", "diverging")),
        ("depth_wave", GRID, _slots.wave(mass), "Wave: what the parabola leaves",
         ("share", "sequential", 0)),
        ("mean_mass", ("depth",), over, "Mass by depth, mean over heads", SHARE),
    )  # fmt: skip
    results.add_mean(
        "depth_loss", ("depth",), cost, "Loss that hiding a part costs the question", "nats",
        "diverging", evidence="causal",
    )  # fmt: skip
    rho = np.array([ranked(masses, costs) for masses, costs in zip(over, cost, strict=True)])
    results.add_mean(
        "agreement", (), rho, "Agreement of mass and cost over the parts", "ρ",
        "diverging", -1, 1,
    )  # fmt: skip
    names = [f"part {number} of {parts}" for number in range(1, parts + 1)]
    return results.dataset({"depth": names}, _verdict(names, results, rho))


def _measured(
    model: Model, ids: list[list[int]], parts: int, question: float, skip: int
) -> tuple[Array, Array]:
    """Return mass (prompt, layer, head, part) and cost (prompt, part) of every part."""
    masses, costs = [], []
    for number, prompt in enumerate(ids, 1):
        start = len(prompt) - max(1, round(question * len(prompt)))
        if start - skip < parts:
            raise NotApplicable(
                f"parts: prompt {number} has {max(start - skip, 0)} tokens before its "
                f"question; give {parts} or more"
            )
        edges = np.linspace(skip, start, parts + 1).round().astype(int)
        positions = [list(range(low, high)) for low, high in pairwise(edges)]
        masses.append(_mass(model, prompt, positions, start))
        costs.append(_cost(model, prompt, positions, start))
    return np.stack(masses), np.stack(costs)


def _mass(model: Model, ids: list[int], positions: list[list[int]], start: int) -> Array:
    """Return the mass of the question's queries on each part (layer, head, part)."""
    spans = {f"part {number}": [part] for number, part in enumerate(positions)}
    captured = capture_prompts(model, [ids], stats=("span_mass",), spans=spans)
    mass = captured["span_mass"].isel(prompt=0).transpose("layer", "head", "span", "query")
    return mean(mass.values[..., start:].astype(np.float64))


def _cost(model: Model, ids: list[int], positions: list[list[int]], start: int) -> Array:
    """Return the rise of the question's loss when a part is hidden from it (part,)."""
    heads = tuple(
        (layer, head) for layer in model.geometry.attending for head in range(model.heads)
    )
    queries = tuple(range(start, len(ids)))
    clean = losses(model, ids)[start - 1 :].mean()
    hidden = [
        losses(model, ids, (KnockOut(heads=heads, keys=tuple(keys), queries=queries),))
        for keys in positions
    ]
    return np.array([loss[start - 1 :].mean() - clean for loss in hidden])


def _verdict(names: list[str], results: Results, agreement: Array) -> Verdict:
    mass, cost = results["mean_mass"].values, results["depth_loss"].values
    text = (
        f"most attention: {names[int(mass.argmax())]} ({amount(mass.max())}); most costly to hide: "
        f"{names[int(cost.argmax())]} ({amount(cost.max(), '+')} nats); over the parts mass and "
        f"cost rank alike with ρ = {amount(results['agreement'].values, '+')}, mean over prompts"
    )
    return causal_verdict(agreement, text)
