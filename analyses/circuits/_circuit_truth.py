"""The true heads and edges of a circuit: known by construction, or found by patching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.edge_effects import edge_effects
from headscope.analyses._interventions.edge_patching import patching
from headscope.analyses._interventions.screening import screen
from headscope.analyses._runtime.results import label
from headscope.analyses._stats.effect_size import told_above_zero, told_from_zero
from headscope.kernels.formatting import percent
from headscope.probes.constructed import known_circuit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask


@dataclass(frozen=True)
class Truth:
    """The heads of a circuit and the edges between them.

    Attributes
    ----------
    heads
        Whether a head is in the circuit (layer, head).
    weights
        For how many heads each stands (layer, head); NaN where it was not patched.
    edges
        Pairs of heads, the one that writes first; None where they are not known.
    by_patching
        Whether patching has found it.
    criterion
        What makes a head true.
    """

    heads: NDArray[np.bool_]
    weights: NDArray[np.float64]
    edges: frozenset[tuple[str, str]] | None
    by_patching: bool
    criterion: str

    def counts(self) -> tuple[float, float]:
        """Return the numbers of true heads and edges, NaN where edges are not known."""
        edges = np.nan if self.edges is None else float(len(self.edges))
        return float(self.heads.sum()), edges


def pairs(model: Model) -> list[tuple[int, int]]:
    """Return the pairs of heads of which the second is in a later layer, as numbers of heads."""
    count, width = model.layers * model.heads, model.heads
    return [
        (source, target)
        for source in range(count)
        for target in range(count)
        if source // width < target // width
    ]


def constructed_truth(circuit: known_circuit.KnownCircuit) -> Truth:
    """Return the truth of a constructed model."""
    truth = np.zeros((circuit.model.layers, circuit.model.heads), dtype=bool)
    for head in circuit.heads:
        truth[head] = True
    linked = known_circuit.linked_heads(circuit.model.name, circuit.task.name)
    return Truth(truth, np.ones(truth.shape), linked, False, "known by construction")


def patched_truth(
    model: Model, task: EncodedTask, threshold: float, edge_threshold: float, seed: int = 0
) -> Truth:
    """Patch heads, and where all of them are patched the edges between them, on some prompts.

    A head or edge is true whose effect is told from 0 and is more than a share of the intact
    metric, which must lie above 0 itself. Of many heads those are patched that gradients rank
    first, and a random sample of the others.
    """
    intact = ablation.evaluate(model, task)
    others = ablation.kept_z(ablation.capture_corrupted(model, task))
    chosen = screen(model, task, task.metric, (others,), seed=seed)
    patched = ablation.ablate_each_head(model, task, task.metric, others, heads=chosen.heads)
    solved = bool(told_above_zero(intact))

    def true(effect: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
        strong: NDArray[np.bool_] = np.abs(effect.mean(0)) > share * intact.mean()
        return told_from_zero(effect) & strong & solved

    edges = None
    if chosen.complete:
        graph, effects = patched_edges(model, task)
        edges = frozenset(
            (graph.sources[source], graph.owners[target])
            for target, source in np.argwhere(true(effects, edge_threshold))
        )
    heads = true(intact[:, None, None] - patched, threshold)
    criterion = (
        f"patching loses more than {percent(threshold)} of the {task.metric} on {len(task)} "
        f"prompts, {chosen.convention}"
    )
    return Truth(heads, chosen.weights, edges, True, criterion)


def true_edges(model: Model, truth: Truth) -> NDArray[np.bool_]:
    """Say which pairs of heads are true edges; none where none are known."""
    names = [label(divmod(head, model.heads)) for head in range(model.layers * model.heads)]
    return np.array([
        (names[source], names[target]) in (truth.edges or ()) for source, target in pairs(model)
    ])  # fmt: skip


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
