"""What edges do to a task's metric: scores by gradients, and the effect of patching one at a time.

Positive numbers help the clean answer: the metric on the clean prompt, less that with the edge
patched from the corrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from headscope.analyses._interventions import edge_gradients, effects
from headscope.analyses._interventions.ablation import Array
from headscope.analyses._interventions.edge_patching import patching, score
from headscope.analyses._interventions.metrics import AnswerMetric

if TYPE_CHECKING:
    from torch import Tensor

    from headscope.analyses._interventions.edge_graph import EdgeGraph
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask


def edge_scores(
    model: Model, task: EncodedTask, metric: str, method: str = "eap_ig", steps: int = 5
) -> tuple[EdgeGraph, Array]:
    """Return a model's edges, and their scores by gradients (prompt, target, source).

    ``method`` is one of `edge_gradients.METHODS`; ``metric`` has to have a gradient. NaN where
    there is no edge.
    """
    answers = AnswerMetric(metric, task.questions)
    with patching(model, task) as split:
        found = np.full((len(task), *split.graph.edges.shape), np.nan, dtype=np.float32)
        for prompts, run in split.batches():

            def loss(logits: Tensor, prompts: list[int] = prompts, at: Tensor = run.positions):  # type: ignore[no-untyped-def]
                return answers(logits, prompts, at.tolist())

            # The estimate is of what patching adds.
            found[prompts] = -edge_gradients.attribute(run, loss, method, steps).cpu().numpy()
            del run
        found[:, ~split.graph.edges] = np.nan
        return split.graph, found


def edge_effects(
    model: Model, task: EncodedTask, metric: str, edges: Sequence[tuple[int, int]]
) -> Array:
    """Return what patching one edge at a time loses (prompt, edge); edges are (target, source)."""
    with patching(model, task) as split:
        graph = split.graph

    def sweep(rows: list[int], columns: list[int]) -> Array:
        some = task.part(rows)
        answers = AnswerMetric(metric, some.questions)
        # The last set is empty: the clean prompts.
        removed = np.zeros((len(columns) + 1, *graph.edges.shape), dtype=bool)
        for number, column in enumerate(columns):
            removed[number][edges[column]] = True
        result = np.full((len(rows), len(removed)), np.nan)
        with patching(model, some) as split:
            for prompts, run in split.batches():
                result[prompts] = score(run, answers, prompts, removed)
                del run
        return np.asarray(result[:, -1:] - result[:, :-1])

    names = [graph.name(*edge) for edge in edges]
    return effects.shared_edges(model, task, metric, names, sweep)
