"""Edge circuits: how few connections do a task, measured against random circuits of their size.

Edges join a circuit from the logits backwards, those with the strongest scores first; ACDC instead
takes edges out one after another for as long as the output does not change. A circuit is run alone:
every edge outside it carries what its source writes on the corrupted prompt. Faithfulness is
``(m(C) − m(corrupted)) / (m(clean) − m(corrupted))``. Of the smallest circuit that is faithful on
half of the prompts, the other half says how faithful it is, what is left without it (completeness:
the same number of its complement, near 0 where the circuit holds everything), and whether each of
its edges is needed (minimality). CPR is the area of faithfulness over the share of edges, CMD that
between it and 1. Random circuits grow by the same rule from random scores.

Sources: Wang et al., Interpretability in the Wild (2211.00593); Conmy et al., ACDC (2304.14997);
Hanna et al., Have Faith in Faithfulness (2403.17806); Mueller et al., MIB (2504.13151).
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import xarray as xr

from headscope.analyses._interventions import ablation, edge_patching
from headscope.analyses._interventions.edge_effects import edge_scores
from headscope.analyses._interventions.edge_gradients import METHODS
from headscope.analyses._interventions.edge_graph import EdgeGraph
from headscope.analyses._interventions.metrics import METRICS, UNITS, differentiable
from headscope.analyses._runtime.options import AtLeast, Between, OneOf
from headscope.analyses._runtime.results import GRID, Results, require, require_maps
from headscope.analyses._runtime.verdict import Verdict, causal_verdict
from headscope.analyses._stats.bootstrap import Array, bootstrap
from headscope.analyses._stats.effect_size import differs_from_zero
from headscope.analyses.circuits._acdc import corrupted_divergence, discover
from headscope.analyses.circuits._circuit_metrics import (
    SHARES,
    Mask,
    Measured,
    cmd,
    cpr,
    interval,
    measure,
)
from headscope.analyses.circuits._edge_order import circuit, greedy_order
from headscope.analyses.circuits._edge_table import coordinates, head_sources
from headscope.kernels.errors import NotApplicable
from headscope.kernels.formatting import amount, percent
from headscope.probes.models.model import Model
from headscope.probes.prompts.task import Task

NEEDS = ()
TASK = "ioi"
PROMPTS = 32
SUPPORTS: set[str] = set()
QUICK = {"steps": 2, "draws": 2, "minimal": 4}

SOURCE = "Conmy et al. 2304.14997; Hanna et al. 2403.17806; Mueller et al. 2504.13151"
RANDOM = "random"


def memory(model: Model, ids: Sequence[Sequence[int]]) -> int:
    """Return the bytes at the peak, beside the model, for prompts of these tokens."""
    return edge_patching.memory(model, ids, circuits=True)


def run(
    capture: xr.Dataset,
    model: Model,
    task: Task,
    *,
    method: Annotated[str, OneOf((*METHODS, "acdc"))] = "eap_ig",
    steps: Annotated[int, AtLeast(1)] = 5,
    metric: Annotated[str, OneOf(METRICS)] = "task",
    faithful: Annotated[float, Between(0, 1)] = 0.8,
    threshold: Annotated[float, Between(0, 1)] = 0.001,
    candidates: Annotated[int, AtLeast(1)] = 500,
    draws: Annotated[int, AtLeast(2)] = 3,
    minimal: Annotated[int, AtLeast(1)] = 16,
    seed: int = 0,
) -> xr.Dataset:
    """Find the smallest faithful circuit of edges, and hold it against random ones.

    Parameters
    ----------
    capture, model, task
        Model and task of two prompts or more whose metric is followed: circuits are found on every
        other prompt and measured on the rest. Of the capture only the provenance is used.
    method
        ``eap``, ``eap_ig``, ``eap_ig_activations`` and ``clean_corrupted`` rank edges by gradients
        (see `edge_attribution`); ``acdc`` takes edges out one after another.
    steps
        Steps of ``eap_ig`` and ``eap_ig_activations``.
    metric
        ``task`` (the task's own), ``logit_difference``, ``probability_difference``,
        ``log_probability`` or ``accuracy``. Accuracy has no gradient; the log-probability of the
        answers takes its place.
    faithful
        Faithfulness that the smallest circuit has to reach, 0 to 1.
    threshold
        Of ACDC: rise of the divergence from which an edge stays, as a share (0 to 1) of the
        divergence of the corrupted prompts. Edges that go may add up to ``candidates × threshold``
        of it, so take less where the circuit is not faithful, more where it is larger than you can
        read; papers, too, try values over several orders of magnitude. Their τ, in nats, is this
        times the attribute ``corrupted_divergence``.
    candidates
        Of ACDC: edges that it begins with, those that ``eap_ig`` ranks first, the rest being out.
    draws
        Random circuits of every size, 2 or more.
    minimal
        Edges of the circuit, drawn at random, that are taken out of it one at a time.
    seed
        Seed of random circuits, of the drawn edges and of the bootstrap over prompts.

    Returns
    -------
    Dataset with ``curve`` (order, circuit_edges; faithfulness), ``cpr`` and ``cmd`` (condition),
    ``faithfulness`` and ``completeness`` (condition; of the circuit and of random ones of its size,
    and of their complements), ``circuit_score`` (edge; scores of the circuit's edges), ``needed``
    (edge; share of the metric that the circuit loses without it; NaN where it was not drawn),
    ``needed_share`` (share of these that differ from 0), ``head_edges`` (layer, head; the
    circuit's edges from and to a head), ``size`` (edges). With 95 % intervals over prompts.
    """
    require(capture, NEEDS, "edge_circuits")
    require_maps(capture, "edge_circuits")
    if len(task) < 2:
        raise NotApplicable("task: one prompt; give two or more, to find and to measure")
    name = differentiable(task.metric if metric == "task" else metric)
    encoded = ablation.encode_task(model, task)
    finding, measuring = encoded.part(range(0, len(task), 2)), encoded.part(range(1, len(task), 2))
    by_gradient = "eap_ig" if method == "acdc" else method
    graph, scores = edge_scores(model, finding, name, by_gradient, steps)
    mean = np.nan_to_num(scores.mean(0))
    order = greedy_order(graph, mean)
    sizes = [max(1, round(share * graph.count)) for share in SHARES]
    nested = [circuit(graph, order, size) for size in sizes]
    attributes: dict[str, Any] = {}
    if method == "acdc":
        attributes["corrupted_divergence"] = corrupted_divergence(model, finding)
        nats = threshold * attributes["corrupted_divergence"]
        chosen = discover(model, finding, nats, circuit(graph, order, candidates))
    else:
        chosen = _smallest(measure(model, finding, name, nested), nested, faithful)

    generator = np.random.default_rng(seed)
    random_orders = [greedy_order(graph, generator.random(graph.edges.shape)) for _ in range(draws)]
    same_size = [_of_size(graph, order, int(chosen.sum())) for order in random_orders]
    removed_edges = _sampled_edges(chosen, minimal, generator)
    without = [_without(chosen, edge) for edge in removed_edges]
    random_nested = [circuit(graph, order, size) for order in random_orders for size in sizes]
    complements = [graph.edges & ~mask for mask in (chosen, *same_size)]
    parts = [nested, random_nested, [chosen], same_size, complements, without]
    measured = measure(model, measuring, name, [mask for part in parts for mask in part])
    # Everything is measured in one sweep, and comes back part by part (prompt, circuit).
    ends_of_parts = np.cumsum([len(part) for part in parts])[:-1]
    of_nested, of_random_nested, of_circuit, of_same_size, of_complements, of_reduced = np.split(
        measured.above, ends_of_parts, axis=1
    )
    random_curve = of_random_nested.reshape(len(of_nested), draws, -1).mean(1)
    curves = np.stack([of_nested, random_curve], 1)
    alone = np.stack([of_circuit[:, 0], of_same_size.mean(1)], 1)
    without_circuit = np.stack([of_complements[:, 0], of_complements[:, 1:].mean(1)], 1)

    words = name.replace("_", " ")
    convention = (
        f"{words} of {task.name}; found on {len(finding)} prompts, measured on {len(measuring)} "
        f"others; random: mean of {draws} circuits of as many edges"
    )
    share = "(m(C) − m(corrupted)) / (m(clean) − m(corrupted))"
    results = Results(capture, seed=seed, source=SOURCE, evidence="causal", convention=convention)

    def add(
        key: str, dims: tuple[str, ...], values: Array, title: str, how: str,
        *function: Callable[[Array], Array],
    ) -> None:  # fmt: skip
        results.add_interval(
            key, dims, interval(values, measured.gap, seed, *function), title, "share", "diverging",
            convention=f"{how}; {convention}",
        )  # fmt: skip

    add("curve", ("order", "circuit_edges"), curves, "Faithfulness of circuits", share)
    areas = f"over the share of edges, at {len(SHARES)} shares"
    add("cpr", ("condition",), curves, "Area of faithfulness (CPR)", areas, cpr)
    add("cmd", ("condition",), curves, "Area between faithfulness and 1 (CMD)", areas, cmd)
    add("faithfulness", ("condition",), alone, "Faithfulness of the circuit", share)
    title, how = "Left without the circuit", f"{share} of all others"
    add("completeness", ("condition",), without_circuit, title, how)
    chosen_edges = list(zip(*map(np.ndarray.tolist, chosen.nonzero()), strict=True))
    chosen_edges.sort(key=lambda edge: -abs(mean[edge]))
    lost = np.full((len(measured.gap), len(chosen_edges)), np.nan)
    lost[:, [chosen_edges.index(edge) for edge in removed_edges]] = of_circuit - of_reduced
    add("needed", ("edge",), lost, "Lost by the circuit without the edge", "m(C) − m(C without it)")
    chosen_scores = scores[:, *np.array(chosen_edges, dtype=int).reshape(-1, 2).T].astype(float)
    results.add_mean(
        "circuit_score", ("edge",), chosen_scores,
        "Edge attribution", UNITS[name], "diverging", evidence="correlational",
        convention=f"scores by which edges were ranked; {convention}",
    )  # fmt: skip
    tried = lost[:, ~np.isnan(lost).any(0)]
    needed = differs_from_zero(tried) if len(tried) > 1 and tried.size else np.zeros(0, bool)
    results.add_all(
        ("needed_share", (), float(needed.mean()) if needed.size else np.nan,
         "Edges that the circuit needs", ("share", "sequential", 0, 1),
         f"share of {len(removed_edges)} drawn edges whose effect differs from 0; {convention}"),
        ("head_edges", GRID, _by_head(graph, chosen).astype(float), "Edges from and to the head",
         ("edges", "sequential", 0)),
        ("size", (), float(chosen.sum()), "Edges of the circuit", ("edges", "sequential", 0)),
    )  # fmt: skip
    nodes = {
        node
        for target, source in chosen_edges
        for node in (graph.sources[source], graph.owners[target])
    }
    return results.dataset(
        {"order": [method if method != "acdc" else "eap_ig", RANDOM], "circuit_edges": sizes,
         "condition": [method, RANDOM], **coordinates(graph, chosen_edges)},
        _verdict(results, measured, alone, without_circuit, int(chosen.sum()), graph.count),
        edges=graph.count,
        **attributes,
        circuit=[graph.name(*edge) for edge in chosen_edges],
        nodes=sorted(nodes),
    )  # fmt: skip


def _smallest(measured: Measured, nested: list[Mask], faithful: float) -> Mask:
    """Return the smallest circuit that is faithful on the mean over prompts.

    The largest, all edges, always is, unless the clean prompts do no better than the corrupted.
    """
    share = measured.above.mean(0) / measured.gap.mean()
    enough = np.flatnonzero(share >= faithful)
    return nested[int(enough[0])] if len(enough) else nested[-1]


def _of_size(graph: EdgeGraph, order: np.ndarray, size: int) -> Mask:
    """Return the circuit that has so many edges after its loose ends are gone."""
    low, high = size, len(order)
    while low < high:
        middle = (low + high) // 2
        if int(circuit(graph, order, middle).sum()) >= size:
            high = middle
        else:
            low = middle + 1
    return circuit(graph, order, low)


def _sampled_edges(
    chosen: Mask, count: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    edges = np.argwhere(chosen)
    rows = generator.choice(len(edges), min(count, len(edges)), replace=False)
    return [(int(target), int(source)) for target, source in edges[np.sort(rows)]]


def _without(chosen: Mask, edge: tuple[int, int]) -> Mask:
    rest = chosen.copy()
    rest[edge] = False
    return rest


def _by_head(graph: EdgeGraph, chosen: Mask) -> np.ndarray:
    """Count the edges from and to every head (layer, head)."""
    out = chosen.sum(0)[head_sources(graph)]
    into = np.zeros_like(out)
    for target, count in enumerate(chosen.sum(1).tolist()):
        layer, head = graph.layer_and_head(graph.owners[target])
        if head >= 0:
            into[layer, head] += count
    return np.asarray(out + into)


def _verdict(
    results: Results, measured: Measured, alone: Array, left: Array, size: int, total: int
) -> Verdict:
    if not size:
        return Verdict(
            "too_few", "Every edge could go at this threshold, so no circuit is left; take less."
        )
    if not float(bootstrap(measured.gap, seed=results.seed)[1]) > 0:
        return Verdict(
            "too_few",
            "The clean prompts are not shown to do better than the corrupted ones, so circuits "
            "have no share of it.",
        )
    # Of shares near 0 no more digits than anybody needs.
    circuit_kept, random_kept, circuit_left, random_left = (
        float(value)
        for key in ("faithfulness", "completeness")
        for value in np.round(results[key].values, 3) + 0.0
    )
    text = (
        f"{size} of {total} edges keep {percent(circuit_kept)} of the metric, random circuits of "
        f"as many {percent(random_kept)}; without them {percent(circuit_left)} is left, without "
        f"random ones {percent(random_left)}"
    )
    above = np.stack([alone[:, 0] - alone[:, 1], left[:, 1] - left[:, 0]], 1)
    verdict = causal_verdict(above, text)
    areas = ", ".join(
        f"{key.upper()} {amount(results[key].values[0])} (random {amount(results[key].values[1])})"
        for key in ("cpr", "cmd")
    )
    return Verdict(verdict.state, f"{verdict.text} {areas}.")
