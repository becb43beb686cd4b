"""Methods that rank the heads and edges of a circuit.

A method is a generator that takes a `Draw` of prompts and yields names with the scores of heads and
of the edges between heads; `METHODS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headscope.analyses._interventions import ablation, head_gradients
from headscope.analyses._interventions.edge_effects import edge_scores
from headscope.analyses._interventions.edge_patching import patching
from headscope.analyses._interventions.metrics import differentiable
from headscope.analyses._measurements import head_outputs
from headscope.analyses.circuits._acdc import discover
from headscope.analyses.circuits._circuit_truth import Truth, edges_of, pairs, patch_pairs
from headscope.analyses.circuits._code_trials import (
    EPOCHS,
    EXAMPLES,
    FEATURES,
    RATE,
    SPARSITY,
    Trials,
)
from headscope.analyses.circuits._code_trials import METHODS as CODES
from headscope.analyses.circuits._edge_table import head_sources
from headscope.kernels.errors import NotApplicable
from headscope.probes.capturing.capture import capture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask

Scores = tuple["NDArray[np.float64]", "NDArray[np.float64] | None"]
SAE: dict[str, Any] = {
    "features": FEATURES, "epochs": EPOCHS, "rate": RATE, "sparsity": SPARSITY,
}  # fmt: skip
# Prompts of a draw whose gradients are taken, and those that are patched edge by edge.
SLOPED, PATCHED = 16, 8
# Parts of the prompts of which a linear probe is tried on each.
FOLDS = 5
# ACDC: an edge stays whose removal raises the divergence by so many nats.
DIVERGENCE = 1e-5
# Integrating over activations takes passes for every layer; it is measured up to this depth.
GRADIENTS = {"eap": "EAP", "eap_ig": "EAP-IG", "eap_ig_activations": "EAP-IG activations"}
SHALLOW = 8
BY_TRAINING = ("trained SAE", "shuffled labels", "information of codes")


@dataclass(frozen=True)
class Draw:
    """Prompts of a task: what every head writes (prompt, head, residual), and its attribution."""

    model: Model
    task: EncodedTask
    truth: Truth
    clean: Tensor
    corrupted: Tensor
    attribution: NDArray[np.float64]
    seed: int

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All edges between heads, as numbers of heads."""
        return pairs(self.model)


def prepare(model: Model, task: EncodedTask, truth: Truth, seed: int, last: bool = False) -> Draw:
    """Capture what every head writes, averaged over positions or at the last of each prompt."""
    weights = head_outputs.output_weights(model)
    sides = []
    for ids in (task.ids, task.corrupted_ids):
        outputs = capture(model, [list(prompt) for prompt in ids], stats=(), keep=("z",))
        if last:
            ends = [len(prompt) - 1 for prompt in ids]
            z = np.stack([
                outputs["z"].isel(prompt=at, query=[end]).values for at, end in enumerate(ends)
            ])  # fmt: skip
            outputs = outputs.isel(query=[0]).assign(z=(outputs["z"].dims, z))
        sides.append(head_outputs.mean_outputs(outputs, weights))
    part = task.part(range(min(SLOPED, len(task))))
    values = ablation.kept_z(ablation.capture_corrupted(model, part))
    slopes = head_gradients.patch_gradient(model, part, differentiable(task.metric), values)
    return Draw(model, task, truth, sides[0], sides[1], np.abs(slopes.mean(0)).ravel(), seed)


def codes(draw: Draw, *, scaled: bool, examples: int = EXAMPLES, **changed: Any) -> Trials:
    """Return trials of the discrete SAE on a draw."""
    return Trials(
        draw.clean, draw.corrupted, draw.attribution, draw.pairs, False, examples,
        {**SAE, **changed}, scaled,
    )  # fmt: skip


def score_by_codes(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Score heads and edges by the discrete SAE and by everything beside it."""
    for scaled in (False, True):
        generator = torch.Generator().manual_seed(draw.seed)
        nodes, links = codes(draw, scaled=scaled).score(generator)
        for name, node, link in zip(CODES, nodes, links, strict=True):
            if scaled and name not in BY_TRAINING:
                continue  # Scale changes no other code, and no ranking.
            yield (f"{name}, scaled" if scaled else name), (node, link)


def score_by_probe(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Score a head by how well a linear probe tells its clean from its corrupted outputs.

    Where it cannot, codes that are a linear function of the output cannot either.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    if len(draw.clean) < FOLDS:
        raise NotApplicable(
            f"task: {len(draw.clean)} prompts a trial are too few for a linear probe; give {FOLDS}"
        )
    both = torch.cat((draw.clean, draw.corrupted)).double().numpy()
    size = np.sqrt((both**2).mean((0, 2))).clip(1e-12)
    labels = np.repeat([1, 0], [len(draw.clean), len(draw.corrupted)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=draw.seed)
    node = [
        cross_val_score(RidgeClassifier(), both[:, head] / size[head], labels, cv=folds).mean()
        for head in range(both.shape[1])
    ]
    yield "linear probe of outputs", (np.array(node), None)


def score_by_gradients(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Score edges by their gradients, and a head by the sum of its outgoing edges."""
    model, task = draw.model, draw.task.part(range(min(SLOPED, len(draw.task))))
    for method, name in GRADIENTS.items():
        if method == "eap_ig_activations" and model.layers > SHALLOW:
            continue
        graph, scores = edge_scores(model, task, differentiable(task.metric), method)
        mean = np.nan_to_num(scores.astype(float).mean(0))
        yield name, (np.abs(mean.sum(0))[head_sources(graph)].ravel(), of_pairs(draw, graph, mean))


def score_by_patching(draw: Draw) -> Iterator[tuple[str, Scores]]:
    """Patch every edge between heads alone, and take edges out one after another (ACDC).

    Only where the truth is not itself found by patching.
    """
    if draw.truth.by_patching:
        return
    model, task = draw.model, draw.task.part(range(min(PATCHED, len(draw.task))))
    effects = np.abs(patch_pairs(model, task, draw.pairs).mean(0)).max(-1)
    values = ablation.kept_z(ablation.capture_corrupted(model, task))
    intact = ablation.evaluate(model, task)[:, None, None]
    effect = intact - ablation.ablate_each_head(model, task, task.metric, values)
    yield "patching", (np.abs(effect.mean(0)).ravel(), effects)
    with patching(model, task) as split:
        graph = split.graph
    left = discover(model, task, DIVERGENCE).astype(float)
    yield "ACDC", (left.sum(0)[head_sources(graph)].ravel(), of_pairs(draw, graph, left))


# Each takes a draw and yields names with the scores of heads, and of `Draw.pairs` or None.
METHODS: list[Callable[[Draw], Iterator[tuple[str, Scores]]]] = [
    score_by_codes, score_by_probe, score_by_gradients, score_by_patching,
]  # fmt: skip


def of_pairs(draw: Draw, graph: EdgeGraph, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the largest absolute score over the inputs of each pair of heads (pair,)."""
    ends = edges_of(draw.model, graph, draw.pairs)
    return np.asarray(np.abs(scores)[ends[..., 0], ends[..., 1]].max(-1))
