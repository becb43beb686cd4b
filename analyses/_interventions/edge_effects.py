"""What edges do to a task's metric: scores by gradients, and the effect of patching one at a time.

Positive numbers help the clean answer: the metric on the clean prompt, less that with the edge
patched from the corrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headscope.analyses._interventions import edge_gradients, effects
from headscope.analyses._interventions.ablation import Array
from headscope.analyses._interventions.edge_patching import patching, score
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.kernels.errors import NotApplicable

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask


# Bytes of the sets of removed edges that are made at once, each (target, source).
SETS = 2**26


def edge_scores(
    model: Model, task: EncodedTask, metric: str, method: str = "eap_ig", steps: int = 5
) -> tuple[EdgeGraph, Float[np.ndarray, "prompt target source"]]:
    """Return a model's edges, and their scores by gradients, in units of the metric.

    ``method`` is one of `edge_gradients.METHODS`; ``metric`` has to have a gradient. NaN where
    there is no edge.
    """
    answers = AnswerMetric(metric, task.questions)
    with patching(model, task) as split:
        edges = split.graph.edges
        scores = np.full((len(task), *edges.shape), np.nan, dtype=np.float32)
        for prompts, run in split.batches():

            def loss(logits: Tensor, prompts: list[int] = prompts, at: Tensor = run.positions):  # type: ignore[no-untyped-def]
                return answers(logits, prompts, at.tolist())

            # The estimate is of what patching adds.
            scores[prompts] = -edge_gradients.attribute(run, loss, method, steps).cpu().numpy()
            del run
        measured = np.isfinite(scores).reshape(len(task), -1)[:, edges.ravel()].all(1)
        if not measured.all():
            raise NotApplicable(
                f"metric: the gradient of {metric} is not finite on {int((~measured).sum())} of "
                f"{len(task)} prompts; use dtype float32, or another metric"
            )
        scores[:, ~edges] = np.nan
        return split.graph, scores


def edge_effects(
    model: Model, task: EncodedTask, metric: str, edges: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "prompt edge"]:
    """Return what patching one edge at a time loses; edges are (target, source)."""
    with patching(model, task) as split:
        graph = split.graph
    together = max(1, SETS // graph.edges.size)

    def sweep(rows: list[int], columns: list[int]) -> Array:
        subset = task.part(rows)
        answers = AnswerMetric(metric, subset.questions)
        lost = np.full((len(rows), len(columns)), np.nan)
        with patching(model, subset) as split:
            for prompts, run in split.batches():
                clean = score(run, answers, prompts, graph.edges[None] & False)
                for start in range(0, len(columns), together):
                    part = columns[start : start + together]
                    removed = np.zeros((len(part), *graph.edges.shape), dtype=bool)
                    for number, column in enumerate(part):
                        removed[number][edges[column]] = True
                    patched = score(run, answers, prompts, removed)
                    lost[np.ix_(prompts, range(start, start + len(part)))] = clean - patched
                del run
        return lost

    names = [graph.name(*edge) for edge in edges]
    return effects.shared_edges(model, task, metric, names, sweep)
