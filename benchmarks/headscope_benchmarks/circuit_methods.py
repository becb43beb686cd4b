"""Methods that find circuits, held against a ground truth of heads and edges: one table for all.

A method is a name and a function that scores the heads and the edges between heads of a draw of
prompts; `METHODS` lists them. A case is a model with a task and its truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.analyses._interventions.edge_patching import patching
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._interventions.screening import screen
from headscope.analyses._measurements import head_outputs
from headscope.analyses._runtime.results import label
from headscope.analyses._stats.bootstrap import t_interval
from headscope.analyses._stats.effect_size import told_from_zero
from headscope.analyses.circuits._acdc import discover
from headscope.analyses.circuits._code_trials import METHODS as BASELINES
from headscope.analyses.circuits._code_trials import Trials, auc
from headscope.analyses.circuits._edge_table import heads as head_sources
from headscope.probes import capture, constructed, load_model, tasks
from headscope.probes.constructed import known_circuit

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.task import Task
    from headscope.probes.prompts.tokens import EncodedTask

Head = tuple[int, int]
Scores = tuple["NDArray[np.float64]", "NDArray[np.float64] | None"]
# The discrete SAE as its authors set it; a head is true that loses this share of the metric.
SAE = {"features": 200, "epochs": 500, "rate": 1e-3, "sparsity": 0.02}
EXAMPLES, THRESHOLD, GRADED = 10, 0.05, 16
# An edge is true that loses this share; ACDC runs on so many prompts, with this least rise in nats.
EDGE_THRESHOLD, FEW, DIVERGENCE = 0.02, 8, 1e-5
# Integrating over activations takes passes for every layer; it is measured up to this depth.
GRADIENTS = {"eap": "EAP", "eap_ig": "EAP-IG", "eap_ig_activations": "EAP-IG activations"}
SHALLOW = 8
BY_TRAINING = ("trained SAE", "shuffled labels", "information of codes")


@dataclass(frozen=True)
class Case:
    """A model, a task, and which of its heads and edges are true.

    ``weights`` says for how many heads each stands (NaN: not patched); ``edges`` is None where no
    edges are known; ``known`` says that the truth is that of the construction.
    """

    model: Model
    task: str
    draw: Callable[[int], Task]
    heads: NDArray[np.bool_]
    weights: NDArray[np.float64]
    edges: frozenset[tuple[str, str]] | None
    convention: str
    known: bool = False

    @property
    def names(self) -> list[Head]:
        """All heads in order."""
        every = np.ndindex(self.model.layers, self.model.heads)
        return [(layer, head) for layer, head in every]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All edges between heads, as numbers of heads."""
        count, width = self.model.layers * self.model.heads, self.model.heads
        return [
            (source, target)
            for source in range(count)
            for target in range(count)
            if source // width < target // width
        ]


@dataclass(frozen=True)
class Draw:
    """Prompts of a case: their head outputs in the residual stream (prompt, head, residual)."""

    case: Case
    task: EncodedTask
    clean: Tensor
    corrupted: Tensor
    attribution: NDArray[np.float64]
    seed: int


def constructed_case(name: str, n: int) -> Case:
    """Return a constructed model with its known circuit."""
    held, model = constructed.module(name), load_model(name)
    truth = np.zeros((model.layers, model.heads), dtype=bool)
    for head in held.HEADS:
        truth[head] = True

    def draw(seed: int) -> Task:
        made = tasks.make(held.TASK, model.tokenizer, n, seed, **held.OPTIONS)
        return replace(made, metric=held.METRIC)

    linked = known_circuit.linked_heads(name, held.TASK)
    return Case(
        model, held.TASK, draw, truth, np.ones(truth.shape), linked, "known by construction", True
    )


def patched_case(name: str, task: str, n: int, **options: Any) -> Case:
    """Return a model whose true heads are found by resample patching of 16 prompts."""
    model = load_model(name)

    def draw(seed: int) -> Task:
        return tasks.make(task, model.tokenizer, n, seed, **options)

    some = ablation.encode_task(model, draw(1000)).part(range(GRADED))
    intact = ablation.evaluate(model, some)
    others = ablation.kept_z(ablation.capture_corrupted(model, some))
    chosen = screen(model, some, some.metric, (others,))
    left = ablation.ablate_each_head(model, some, some.metric, others, heads=chosen.heads)
    effect = intact[:, None, None] - left
    truth = told_from_zero(effect) & (np.abs(effect.mean(0)) > THRESHOLD * intact.mean())
    links = true_links(model, some, intact) if chosen.complete else None
    return Case(model, task, draw, truth, chosen.weights, links, chosen.convention)


def true_links(
    model: Model, task: EncodedTask, intact: NDArray[np.float64]
) -> frozenset[tuple[str, str]]:
    """Return the pairs of heads with an edge whose patching loses a share of the metric."""
    graph, effects = patched_edges(model, task)
    true = told_from_zero(effects) & (np.abs(effects.mean(0)) > EDGE_THRESHOLD * intact.mean())
    return frozenset(
        (graph.sources[source], graph.owners[target]) for target, source in np.argwhere(true)
    )


def prepare(case: Case, seed: int, last: bool = False) -> Draw:
    """Draw prompts, and capture what every head writes, averaged over positions or at the last."""
    model, task = case.model, ablation.encode_task(case.model, case.draw(seed))
    weights = head_outputs.output_weights(model)
    sides = []
    for ids in (task.ids, task.corrupted_ids):
        taken = capture(model, [list(prompt) for prompt in ids], stats=(), keep=("z",))
        if last:
            ends = [len(prompt) - 1 for prompt in ids]
            z = np.stack([
                taken["z"].isel(prompt=at, query=[end]).values for at, end in enumerate(ends)
            ])  # fmt: skip
            taken = taken.isel(query=[0]).assign(z=(taken["z"].dims, z))
        sides.append(head_outputs.mean_outputs(taken, weights))
    some = task.part(range(min(GRADED, len(task))))
    values = ablation.kept_z(ablation.capture_corrupted(model, some))
    slopes = head_gradients.patch_gradient(model, some, differentiable(task.metric), values)
    return Draw(case, task, sides[0], sides[1], np.abs(slopes.mean(0)).ravel(), seed)


def codes(draw: Draw, *, scaled: bool, examples: int = EXAMPLES, **changed: Any) -> Trials:
    """Return trials of the discrete SAE on a draw."""
    return Trials(
        draw.clean, draw.corrupted, draw.attribution, draw.case.pairs, False, examples,
        {**SAE, **changed}, scaled,
    )  # fmt: skip


def baselines(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Score a draw by the discrete SAE and everything beside it."""
    for scaled in (False, True):
        generator = torch.Generator().manual_seed(draw.seed)
        nodes, links = codes(draw, scaled=scaled).score(generator)
        for name, node, link in zip(BASELINES, nodes, links, strict=True):
            if scaled and name not in BY_TRAINING:
                continue  # Scale changes no other code, and no ranking.
            yield (f"{name}, scaled" if scaled else name), (node, link)


def probe(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Score a head by how well a linear probe tells its clean from its corrupted outputs.

    Where it cannot, no code of the head's output can say that the head is in the circuit.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    both = torch.cat((draw.clean, draw.corrupted)).double().numpy()
    size = np.sqrt((both**2).mean((0, 2))).clip(1e-12)
    labels = np.repeat([1, 0], [len(draw.clean), len(draw.corrupted)])
    folds = StratifiedKFold(5, shuffle=True, random_state=draw.seed)
    node = [
        cross_val_score(RidgeClassifier(), both[:, head] / size[head], labels, cv=folds).mean()
        for head in range(both.shape[1])
    ]
    yield "linear probe of outputs", (np.array(node), None)


def gradients(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Score edges by their gradients, and a head by the sum of its outgoing edges."""
    task, model = draw.task.part(range(min(GRADED, len(draw.task)))), draw.case.model
    for method, name in GRADIENTS.items():
        if method == "eap_ig_activations" and model.layers > SHALLOW:
            continue
        graph, scores = edge_scores(model, task, differentiable(task.metric), method)
        mean = np.nan_to_num(scores.astype(float).mean(0))
        yield name, (np.abs(mean.sum(0))[head_sources(graph)].ravel(), of_pairs(draw, graph, mean))


def patched(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Patch every edge between heads alone, and take edges out one after another (ACDC).

    Only where the truth is not itself found by patching.
    """
    if not draw.case.known:
        return
    model, task = draw.case.model, draw.task.part(range(min(FEW, len(draw.task))))
    graph, effects = patched_edges(model, task)
    node = ablation.kept_z(ablation.capture_corrupted(model, task))
    lost = ablation.evaluate(model, task)[:, None, None] - ablation.ablate_each_head(
        model, task, task.metric, node
    )
    yield "patching", (np.abs(lost.mean(0)).ravel(), of_pairs(draw, graph, effects.mean(0)))
    left = discover(model, task, DIVERGENCE).astype(float)
    yield "ACDC", (left.sum(0)[head_sources(graph)].ravel(), of_pairs(draw, graph, left))


def patched_edges(model: Model, task: EncodedTask) -> tuple[EdgeGraph, NDArray[np.float64]]:
    """Return what patching each edge between heads loses (prompt, target, source)."""
    with patching(model, task) as split:
        graph = split.graph
    between = np.array(["H" in name for name in graph.owners])[:, None] & graph.edges
    between[:, ~np.array(["H" in name for name in graph.sources])] = False
    some = [(int(target), int(source)) for target, source in np.argwhere(between)]
    effects = np.zeros((len(task), *graph.edges.shape))
    effects[:, between] = edge_effects(model, task, task.metric, some)
    return graph, effects


def of_pairs(draw: Draw, graph: EdgeGraph, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest absolute score over the inputs of each pair of heads (pair,)."""
    names = [label(head) for head in draw.case.names]
    source = {name: at for at, name in enumerate(graph.sources)}
    targets: dict[str, list[int]] = {}
    for at, owner in enumerate(graph.owners):
        targets.setdefault(owner, []).append(at)
    sizes = np.abs(scores)
    return np.array([
        sizes[targets[names[two]], source[names[one]]].max() for one, two in draw.case.pairs
    ])  # fmt: skip


# Each takes a draw and yields names with the scores of heads, and of `Case.pairs` or None.
METHODS: list[Callable[[Draw], Iterator[tuple[str, Scores]]]] = [
    baselines, probe, gradients, patched,
]  # fmt: skip


def rows(case: Case, trials: int) -> list[dict[str, Any]]:
    """Measure every method on a case: mean AUC over draws of prompts, with 95 % t intervals."""
    found: dict[str, list[list[float]]] = {}
    truth, weights = case.heads.ravel(), case.weights.ravel()
    tried = ~np.isnan(weights)
    for seed in range(trials):
        draw = prepare(case, seed)
        for method in METHODS:
            for name, (node, link) in method(draw):
                numbers = [auc(truth[tried], node[tried], weights[tried])]
                numbers.append(float("nan") if link is None else auc(true_edges(case), link))
                found.setdefault(name, []).append(numbers)
    return [
        {"model": case.model.name, "task": case.task, "method": name, **summary(np.array(values))}
        for name, values in found.items()
    ]


def true_edges(case: Case) -> NDArray[np.bool_]:
    """Say which pairs of heads are true edges; none where none are known."""
    names, known = case.names, case.edges or frozenset()
    return np.array([(label(names[a]), label(names[b])) in known for a, b in case.pairs])


def summary(values: NDArray[np.float64]) -> dict[str, list[float] | None]:
    """Return mean and interval of node and edge AUC; None where there is no truth."""
    ends = np.stack(t_interval(values))
    return {
        name: None if np.isnan(ends[:, at]).any() else [round(float(end), 4) for end in ends[:, at]]
        for at, name in enumerate(("node", "edge"))
    }


def variants(case: Case, trials: int, changes: Sequence[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Measure the trained SAE, the untrained and shuffled labels with one thing changed."""
    found = []
    truth = case.heads.ravel()
    for what, given in changes:
        change = dict(given)
        last, scaled = change.pop("last", False), change.pop("scaled", True)
        values = []
        for seed in range(trials):
            generator = torch.Generator().manual_seed(seed)
            nodes, _ = codes(prepare(case, seed, last), scaled=scaled, **change).score(generator)
            values.append([auc(truth, nodes[BASELINES.index(name)]) for name in BASELINES[:5]])
        mean, lower, upper = t_interval(np.array(values))
        found.append({
            "model": case.model.name, "task": case.task, "changed": what,
            **{
                name: [round(float(each[at]), 4) for each in (mean, lower, upper)]
                for at, name in enumerate(BASELINES[:5])
            },
        })  # fmt: skip
    return found
