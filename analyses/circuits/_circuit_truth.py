"""The true heads and edges of a circuit: known by construction, or found by patching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.edge_effects import edge_effects, edge_scores
from headscope.analyses._interventions.edge_patching import patching
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._interventions.screening import Screen, screen
from headscope.analyses._runtime.results import label
from headscope.analyses._stats.effect_size import differs_from_zero, exceeds_zero
from headscope.kernels.errors import NotApplicable, UnsupportedModel
from headscope.kernels.formatting import percent
from headscope.probes.constructed import known_circuit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask


# Edges are patched between these many pairs of heads, where not all are: the first by either
# ranking, and of the others drawn.
FIRST_PAIRS, DRAWN_PAIRS = 32, 64

Pair = tuple[int, int]


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
        Whether an edge between two heads is, of all `pairs` (pair,).
    edge_weights
        For how many pairs each stands (pair,); NaN where it was not patched.
    by_patching
        Whether patching has found it.
    criterion
        What makes a head true.
    """

    heads: NDArray[np.bool_]
    weights: NDArray[np.float64]
    edges: NDArray[np.bool_]
    edge_weights: NDArray[np.float64]
    by_patching: bool
    criterion: str

    def counts(self) -> tuple[float, float]:
        """Return the numbers of true heads and true edges, NaN where no edge was patched."""
        has_edges = np.isfinite(self.edge_weights).any()
        return float(self.heads.sum()), float(self.edges.sum()) if has_edges else float("nan")


def pairs(model: Model) -> list[Pair]:
    """Return the pairs of heads of which the second is in a later layer, as numbers of heads."""
    count, width = model.layers * model.heads, model.heads
    return [
        (source, target)
        for source in range(count)
        for target in range(count)
        if source // width < target // width
    ]


def edges_of(model: Model, graph: EdgeGraph, head_pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """Return the edges of pairs of heads, one an input of the second (pair, input, end).

    Ends are target and source, as in the graph.
    """
    names = [label(divmod(head, model.heads)) for head in range(model.layers * model.heads)]
    source = {name: at for at, name in enumerate(graph.sources)}
    targets: dict[str, list[int]] = {}
    for at, owner in enumerate(graph.owners):
        targets.setdefault(owner, []).append(at)
    return np.array([
        [(target, source[names[first]]) for target in targets[names[second]]]
        for first, second in head_pairs
    ])  # fmt: skip


def constructed_truth(circuit: known_circuit.KnownCircuit) -> Truth:
    """Return the truth of a constructed model."""
    model = circuit.model
    heads = np.zeros((model.layers, model.heads), dtype=bool)
    for head in circuit.heads:
        heads[head] = True
    linked = known_circuit.linked_heads(model.name, circuit.task.name) or frozenset()
    names = [label(divmod(head, model.heads)) for head in range(heads.size)]
    edges = np.array([(names[source], names[target]) in linked for source, target in pairs(model)])
    return Truth(
        heads, np.ones(heads.shape), edges, np.ones(edges.shape), False, "known by construction"
    )


@dataclass(frozen=True)
class PatchedHeads:
    """Effects of patching single heads, and which heads count as true.

    Attributes
    ----------
    intact
        Metric of the intact model (prompt,).
    effect
        Metric that is lost with a head's output on the corrupted prompt, mean over prompts (layer,
        head); NaN where it was not patched.
    true
        Whether the effect differs from 0 and is more than a share of the intact metric; none where
        that is not shown to lie above 0.
    screened
        Which heads were patched, and for how many each stands.
    corrupted
        What heads give on the corrupted prompts, which was put in their place.
    """

    intact: NDArray[np.float64]
    effect: NDArray[np.float64]
    true: NDArray[np.bool_]
    screened: Screen
    corrupted: Float[Tensor, "prompt layer head query size"]

    @property
    def solved(self) -> bool:
        """Whether the intact metric is shown to lie above 0."""
        return bool(exceeds_zero(self.intact))


def patch_heads(
    model: Model, task: EncodedTask, threshold: float, *, exhaustive: bool = False, seed: int = 0
) -> PatchedHeads:
    """Patch one head at a time from the corrupted prompts.

    Of many heads those that gradients rank first, and a random sample of the others.
    """
    intact = ablation.evaluate(model, task)
    others = ablation.kept_z(ablation.capture_corrupted(model, task))
    screened = screen(model, task, task.metric, (others,), exhaustive=exhaustive, seed=seed)
    patched = ablation.ablate_each_head(model, task, task.metric, others, heads=screened.heads)
    effect = intact[:, None, None] - patched
    return PatchedHeads(intact, effect.mean(0), _true(effect, intact, threshold), screened, others)


def _true(
    effect: NDArray[np.float64], intact: NDArray[np.float64], share: float
) -> NDArray[np.bool_]:
    """Return which effects (prompt, ...) differ from 0 and are more than a share of the metric."""
    strong: NDArray[np.bool_] = np.abs(effect.mean(0)) > share * intact.mean()
    # A share of a metric that is not above 0 says nothing, nor does an effect that may be none.
    return differs_from_zero(effect) & strong & bool(exceeds_zero(intact))


def patched_truth(
    model: Model, task: EncodedTask, threshold: float, edge_threshold: float, seed: int = 0
) -> Truth:
    """Patch heads and the edges between heads on some prompts.

    Of many edges those are patched that EAP-IG ranks first, those between the heads that lose most,
    and a random sample.
    """
    heads = patch_heads(model, task, threshold, seed=seed)
    every = pairs(model)
    edges, weights = np.zeros(len(every), dtype=bool), np.full(len(every), np.nan)
    try:
        chosen = np.ones(len(every))
        if not heads.screened.complete:
            chosen = _screened_pairs(model, task, heads.effect, every, seed)
        tried = np.flatnonzero(np.isfinite(chosen))
        effects = patch_pairs(model, task, [every[at] for at in tried])
        edges[tried] = _true(effects, heads.intact, edge_threshold).any(-1)
        weights = chosen
        of_edges = f"of an edge {percent(edge_threshold)}, {len(tried)} of {len(every)} pairs"
    except (NotApplicable, UnsupportedModel) as refusal:
        of_edges = f"edges are not patched ({refusal})"
    criterion = (
        f"patching loses more than {percent(threshold)} of the {task.metric} on {len(task)} "
        f"prompts, {heads.screened.convention}; {of_edges}"
    )
    return Truth(heads.true, heads.screened.weights, edges, weights, True, criterion)


def patch_pairs(model: Model, task: EncodedTask, head_pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return what patching each edge between pairs of heads loses (prompt, pair, input)."""
    with patching(model, task) as split:
        ends = edges_of(model, split.graph, head_pairs)
    flat = [(int(target), int(source)) for target, source in ends.reshape(-1, 2)]
    effects = edge_effects(model, task, task.metric, flat)
    return effects.reshape(len(task), *ends.shape[:2])


def _screened_pairs(
    model: Model, task: EncodedTask, lost: NDArray[np.float64], every: Sequence[Pair], seed: int
) -> NDArray[np.float64]:
    """Choose the pairs to patch: for how many each stands (pair,), NaN where it is not patched."""
    graph, scores = edge_scores(model, task, differentiable(task.metric), "eap_ig")
    ends = edges_of(model, graph, every)
    by_edge = np.abs(scores.astype(float).mean(0))[ends[..., 0], ends[..., 1]].max(-1)
    by_head = np.abs(np.nan_to_num(lost)).ravel()[np.array(every)].prod(-1)
    first = {
        int(at) for ranking in (by_edge, by_head)
        for at in np.argsort(-ranking, kind="stable")[:FIRST_PAIRS]
    }  # fmt: skip
    rest = np.setdiff1d(np.arange(len(every)), list(first))
    sampled = np.random.default_rng(seed).choice(rest, min(DRAWN_PAIRS, len(rest)), replace=False)
    weights = np.full(len(every), np.nan)
    weights[list(first)] = 1.0
    weights[sampled] = len(rest) / len(sampled)
    return weights
