"""Pruning: how many heads a task can do without, and which few it cannot.

Heads are taken out one after the other, the dispensable first, and the task's metric is followed.
Four orders stand side by side: greedy (ranked anew while heads go), one shot (ranked once, each
head alone), the gate gradient (ranked once, no ablation), and random orders as the control. Orders
are found on one half of the prompts and curves are measured on the other half, so no curve is
better than it would be on new prompts. Beside the curves: every layer left with one head only,
whole KV groups (the unit that saves cache), and the smallest set along the greedy order that keeps
a given share of the metric.

Source: Michel et al., Are Sixteen Heads Really Better than One? (1905.10650).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from headscope.analyses._interventions.metrics import METRICS, UNITS
from headscope.analyses._runtime import options
from headscope.analyses._runtime.progress import steps
from headscope.analyses._runtime.results import (
    averaged,
    dataset,
    interval,
    label,
    require,
    variable,
)
from headscope.analyses.head_importance._pruned import SOURCE, Pruned
from headscope.analyses.head_importance._removal_order import greedy, spaced, units
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 16

ABLATIONS = {
    "zero": "outputs set to zero",
    "mean": "outputs set to their mean over positions and prompts",
}
Array = NDArray[np.float64]


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: str = "task",
    ablation: str = "zero",
    keep: float = 0.9,
    share: float = 0.1,
    points: int = 12,
    orders: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Take heads out one after the other in several orders, and follow the metric of a task.

    Parameters
    ----------
    capture
        Capture of the task with the kept ``z``, for the mean outputs.
    model
        Model that was captured.
    task
        Task of two prompts or more: orders are found on every other one, curves on the rest.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``. Heads are ranked by the log-probability of the answers
        where the metric is the accuracy.
    ablation
        ``zero`` or ``mean``: what stands in for the outputs of heads that are gone.
    keep
        Share of the metric that the smallest set of heads has to keep, 0 to 1.
    share
        Share of all heads that go between two rankings of the greedy order, 0 to 1; 0 ranks anew
        after every head, which is exact and slow.
    points
        Numbers of removed heads at which curves are measured, beside none.
    orders
        Number of random orders, 2 or more.
    seed
        Seed of the random orders and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``curve`` (order, removed; the metric), with grouped KV heads ``group_curve``
    (group_order, groups_removed), ``only_head`` (layer, head; metric lost when the layer keeps this
    head alone), ``whole_layer`` (layer; metric lost without all its heads), ``pruned_at`` (layer,
    head; place in the greedy order, 1 for the first to go; no interval), ``kept`` (layer, head; 1
    in the smallest set), ``size`` (heads in it), ``kept_share`` and ``random_share`` (share of the
    metric that it, and random sets of its size, keep on the other prompts). Curves, losses and
    shares have 95 % intervals over prompts, those of random orders over orders, too.

    Raises
    ------
    NotApplicable
        When the capture lacks ``z``, an option is out of range, or the task has one prompt.

    Examples
    --------
    >>> from headscope.analyses._runtime.runner import execute
    >>> from headscope.probes import load_model
    >>> model = load_model("headscope/bundled")
    >>> result = execute("pruning", model, n=2, options={"points": 2, "share": 0.5, "orders": 2})
    >>> result["curve"].dims, result["only_head"].dims
    (('order', 'removed'), ('layer', 'head'))
    """
    from headscope.analyses._interventions import head_gradients
    from headscope.analyses._interventions.ablation import encode_task, mean_z

    options.one_of("metric", metric, METRICS)
    options.one_of("ablation", ablation, ABLATIONS)
    options.between("keep", keep, 0, 1)
    options.between("share", share, 0, 1)
    options.at_least("points", points, 1)
    options.at_least("orders", orders, 2)
    require(capture, KEEP, "pruning")
    encoded = encode_task(model, task)
    if len(task) < 2:
        raise NotApplicable(
            "task: one prompt; give two or more, one half to rank and one to measure"
        )
    name = task.metric if metric == "task" else metric
    values = mean_z(capture) if ablation == "mean" else None
    single, grouped = units(model), units(model, grouped=True)
    work = Pruned(model, encoded, name, values, share, points, orders, seed)
    slope = np.abs(head_gradients.gate_gradient(model, work.ranking, work.smooth)).mean(0)
    gate = [single[at] for at in np.argsort([slope[unit[0]] for unit in single], kind="stable")]
    counts, places = spaced(len(single), points), spaced(len(grouped), points)
    with steps(6 if len(grouped) < len(single) else 4) as step:
        order, first = greedy(model, work.ranking, work.smooth, single, share, values)
        step()
        named = {"greedy": order, "one shot": first, "gate gradient": gate}
        curve = work.curves(named, single, counts)
        step()
        only, whole = work.layers()
        step()
        kept, smallest_set = work.smallest(order, single, keep)
        step()
        by_group = {}
        if len(grouped) < len(single):
            by_group["greedy"] = greedy(
                model, work.ranking, work.smooth, grouped, share, values
            )[0]  # fmt: skip
            step()
            group_curve = work.curves(by_group, grouped, places)
            step()
    what = (
        f"{name.replace('_', ' ')} of {task.name}, {ABLATIONS[ablation]}; orders from "
        f"{len(work.ranking)} prompts, curves from {len(work.measuring)} others"
    )
    random = f"random: {orders} orders, interval over orders and prompts"
    given: dict[str, Any] = {"source": SOURCE, "evidence": "causal"}
    variables = interval(
        "curve", ("order", "removed"), *curve,
        f"{task.name} with heads taken out", UNITS[name], "diverging",
        convention=f"{what}; {random}", **given,
    )  # fmt: skip
    coords: dict[str, Any] = {"order": [*named, "random"], "removed": counts}
    if by_group:
        variables |= interval(
            "group_curve", ("group_order", "groups_removed"), *group_curve,
            f"{task.name} with whole KV groups taken out", UNITS[name], "diverging",
            convention=f"groups of {len(grouped[0])} query heads; {what}; {random}", **given,
        )  # fmt: skip
        coords |= {"group_order": [*by_group, "random"], "groups_removed": places}
    said = f"intact − ablated; {name.replace('_', ' ')} on {len(task)} prompts of {task.name}"
    variables |= averaged(
        "only_head", ("layer", "head"), only, "Lost when the layer keeps this head alone",
        UNITS[name], "diverging", seed=seed, convention=said, **given,
    )  # fmt: skip
    variables |= averaged(
        "whole_layer", ("layer",), whole, "Lost without any head of the layer", UNITS[name],
        "diverging", seed=seed, convention=said, **given,
    )  # fmt: skip
    place = np.full((model.layers, model.heads), np.nan)
    for number, [head] in enumerate(order, start=1):
        place[head] = number
    variables["pruned_at"] = variable(
        ("layer", "head"), place, "Place in the greedy order", "1 goes first", "sequential", 1,
        len(single), convention=what, **given,
    )  # fmt: skip
    variables |= kept
    return dataset(
        capture,
        variables,
        coords,
        convention=what,
        smallest_set=[label(head) for head in smallest_set],
        note=_note(variables, smallest_set, keep, only),
    )


def _note(
    variables: dict[str, xr.Variable],
    heads: Sequence[tuple[int, int]],
    keep: float,
    only: Array,
) -> str:
    if not heads and not np.isfinite(float(variables["size"].values)):
        return (
            "INCONCLUSIVE: the metric of the whole model is not above 0, so no set of heads keeps "
            "a share of it; the curves stand."
        )
    own, others = (float(variables[f"{each}_share"].values) for each in ("kept", "random"))
    best = np.nanmin(np.where(np.isnan(only.mean(0)), np.inf, only.mean(0)), axis=1)
    worst = int(np.argmax(np.where(np.isinf(best), -np.inf, best)))
    ends = [float(variables[f"kept_share_{end}"].values) for end in ("lower", "upper")]
    surely = f" ({ends[0]:.0%} to {ends[1]:.0%})" if np.isfinite(ends[0]) else ""
    said = (
        f"{len(heads)} heads keep {own:.0%}{surely} of the metric on other prompts (asked for "
        f"{keep:.0%}); random sets of {len(heads)} keep {others:.0%}. Layer {worst} is least able "
        "to do with one head."
    )
    if ends[1] < keep:
        return f"DISAGREEMENT: the set does not keep its share on other prompts. {said}"
    if ends[0] < others:
        return f"INCONCLUSIVE: the set is not shown to keep more than random ones. {said}"
    return said
