"""Pruning: how many heads a task can lose, and which few it needs.

Heads are ablated one after the other, the dispensable first, and the task's metric is followed.
Four orders are compared: greedy (ranked anew while heads go), one shot (ranked once, each head
alone), the gate gradient (ranked once, no ablation), and random orders as the control. Orders are
found on one half of the prompts and curves are measured on the other half, so no curve is better
than it would be on new prompts. Also measured: every layer left with one head only, whole KV groups
(the unit that saves cache), and the smallest set along the greedy order that keeps a given share of
the metric. In a model of many heads a ranking is of those alone that the gate gradient calls most
dispensable.

Source: Michel et al., Are Sixteen Heads Really Better than One? (1905.10650).
"""

from typing import Annotated, Any

import numpy as np
import torch
import xarray as xr

from headscope.analyses._interventions import screening
from headscope.analyses._interventions.ablation import Array, encode_task, mean_z
from headscope.analyses._interventions.head_gradients import gate_gradient
from headscope.analyses._interventions.metrics import METRICS, UNITS
from headscope.analyses._runtime.options import AtLeast, Between, OneOf
from headscope.analyses._runtime.results import Results, label, require
from headscope.analyses._runtime.verdict import Verdict
from headscope.analyses.head_importance._pruned import SOURCE, Pruned
from headscope.analyses.head_importance._removal_order import Unit, greedy, spaced, units
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import percent
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
KEEP = ("z",)
TASK = "ioi"
PROMPTS = 16
SUPPORTS = {"hybrid"}
QUICK = {"points": 4, "orders": 2}

# Heads of a layer that are left alone, in a model of many heads.
ALONE = 3
ABLATIONS = {
    "zero": "outputs set to zero",
    "mean": "outputs set to their mean over positions and prompts",
}


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    metric: Annotated[str, OneOf(METRICS)] = "task",
    ablation: Annotated[str, OneOf(tuple(ABLATIONS))] = "zero",
    keep: Annotated[float, Between(0, 1)] = 0.9,
    share: Annotated[float, Between(0, 1)] = 0.1,
    points: Annotated[int, AtLeast(1)] = 12,
    orders: Annotated[int, AtLeast(2)] = 4,
    exhaustive: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Ablate heads one after the other in several orders, and follow the metric of a task.

    Parameters
    ----------
    capture, model, task
        Capture of a task of two prompts or more, with the kept ``z`` for the mean outputs: orders
        are found on every other prompt, curves on the rest.
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
    exhaustive
        Rank all heads each time, whatever their number. Without it, in a model of more than 64
        heads: as many as go and 16 more, those that are left with the smallest gate gradient in the
        whole model. A layer is then left with one of the 3 heads of the largest gate gradient only.
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
    """
    require(capture, KEEP, "pruning")
    encoded = encode_task(model, task)
    if len(task) < 2:
        raise NotApplicable("task: one prompt; give two or more, to rank and to measure")
    name = task.metric if metric == "task" else metric
    values = mean_z(capture) if ablation == "mean" else None
    single, grouped = units(model), units(model, grouped=True)
    screened = len(single) > screening.FEW and not exhaustive
    extra = screening.FIRST if screened else None
    work = Pruned(model, encoded, name, values, orders, seed, extra)
    slope = np.abs(gate_gradient(model, work.ranking, work.smooth)).mean(0)
    alone = torch.ones(slope.shape, dtype=torch.bool)

    def by_gradient(pool: list[Unit]) -> list[Unit]:
        sizes = [sum(slope[head] for head in unit) for unit in pool]
        return [pool[at] for at in np.argsort(sizes, kind="stable")]

    gate = by_gradient(single)
    if screened:
        single, grouped = gate, by_gradient(grouped)
        most = torch.from_numpy(slope).nan_to_num().topk(ALONE, dim=1).indices
        alone = torch.zeros_like(alone).scatter(1, most, value=True)
    counts, group_counts = spaced(len(single), points), spaced(len(grouped), points)
    has_groups = len(grouped) < len(single)
    order, first = greedy(model, work.ranking, work.smooth, single, share, values, extra)
    named = {"greedy": order, "one shot": first, "gate gradient": gate}
    curve = work.curves(named, single, counts)
    only, whole = work.layers(alone)
    smallest = work.smallest(order, single, keep)
    if has_groups:
        by_group = greedy(model, work.ranking, work.smooth, grouped, share, values, extra)[0]
        group_curve = work.curves({"greedy": by_group}, grouped, group_counts)
    units_of_metric, metric_name = UNITS[name], name.replace("_", " ")
    convention = (
        f"{metric_name} of {task.name}, {ABLATIONS[ablation]}; orders from {len(work.ranking)} "
        f"prompts, curves from {len(work.measuring)} others"
    )
    if screened:
        convention += (
            f"; ranked each time: those that go and {extra} more of {len(single)} heads, the ones "
            "with the smallest gate gradients"
        )
    random = f"random: {orders} orders, interval over orders and prompts"
    lost = f"intact − ablated; {metric_name} on {len(task)} prompts of {task.name}"
    results = Results(capture, seed=seed, source=SOURCE, evidence="causal", convention=lost)
    coords: dict[str, Any] = {"order": [*named, "random"], "removed": counts}
    results.add_interval(
        "curve", ("order", "removed"), curve, f"{task.name} with heads taken out", units_of_metric,
        "diverging", convention=f"{convention}; {random}",
    )  # fmt: skip
    if has_groups:
        coords |= {"group_order": ["greedy", "random"], "groups_removed": group_counts}
        results.add_interval(
            "group_curve", ("group_order", "groups_removed"), group_curve,
            f"{task.name} with whole KV groups taken out", units_of_metric, "diverging",
            convention=f"groups of {len(grouped[0])} query heads; {convention}; {random}",
        )  # fmt: skip
    signed = (units_of_metric, "diverging")
    results.add_means(
        (
            "only_head",
            ("layer", "head"),
            only,
            "Lost when the layer keeps this head alone",
            signed,
            f"{lost}; {int(alone.sum())} heads alone, {ALONE} of a layer" if screened else lost,
        ),
        ("whole_layer", ("layer",), whole, "Lost without any head of the layer", signed),
    )
    order_of_head = np.full((model.layers, model.heads), np.nan)
    for number, [head] in enumerate(order, start=1):
        order_of_head[head] = number
    results.add(
        "pruned_at", ("layer", "head"), order_of_head, "Place in the greedy order", "1 goes first",
        "sequential", 1, len(single), convention=convention,
    )  # fmt: skip
    smallest.add(results, keep, work)
    heads = smallest.heads or []
    return results.dataset(
        coords,
        _verdict(results, len(heads), keep, only),
        convention=convention,
        smallest_set=[label(head) for head in heads],
    )


def _verdict(results: Results, size: int, keep: float, only: Array) -> Verdict:
    share, random = (float(results[f"{name}_share"].values) for name in ("kept", "random"))
    if not np.isfinite(share):
        return Verdict(
            "too_few",
            "The metric of the whole model is not above 0, so no set of heads keeps a share of "
            "it; the curves stand.",
        )
    best = np.nanmin(np.where(np.isnan(only.mean(0)), np.inf, only.mean(0)), axis=1)
    worst = int(np.argmax(np.where(np.isinf(best), -np.inf, best)))
    lower, upper = (float(results[f"kept_share_{end}"].values) for end in ("lower", "upper"))
    ends = f" ({percent(lower)} to {percent(upper)})" if np.isfinite(lower) else ""
    text = (
        f"{size} heads keep {percent(share)}{ends} of the metric on other prompts (required: "
        f"{percent(keep)}); random sets of {size} keep {percent(random)}. Layer {worst} is least "
        "able to do with one head."
    )
    if upper < keep:
        return Verdict("disagreement", f"The set does not keep its share on other prompts. {text}")
    if lower < random:
        text = f"The set is not shown to keep more than random ones. {text}"
        return Verdict("not_supported", text)
    return Verdict("supported", text) if np.isfinite(lower) else Verdict("too_few", text)
