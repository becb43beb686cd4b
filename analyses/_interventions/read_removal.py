"""Remove vectors from what one head reads; measure where it attends and how a metric changes.

The residual stream before the head's block is changed at one position for the queries or the keys
of this head alone, norms following: path patching into a query or a key. The head's new weights
for one query then stand in place of its own, and the metric is measured.

Source: Wang et al., Interpretability in the Wild (2211.00593), for path patching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analyses._interventions import ablation
from headscope.analyses._interventions.batched_edits import RowWeights
from headscope.analyses._interventions.head_calls import of_heads
from headscope.analyses._interventions.metrics import AnswerMetric
from headscope.kernels.api import Request, push
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import watching

if TYPE_CHECKING:
    from headscope.analyses._interventions.ablation import Array
    from headscope.analyses._interventions.head_sets import Head
    from headscope.probes.attention.interface import AttentionCall
    from headscope.probes.models.model import Model
    from headscope.probes.prompts.tokens import EncodedTask


@dataclass(frozen=True)
class Removal:
    """Parts removed from what a head reads: at its query, at all its keys, or both."""

    query: Float[Tensor, " residual"] | None = None
    key: Float[Tensor, "position residual"] | None = None


@torch.no_grad()
def rows_without(
    model: Model,
    ids: Sequence[int],
    head: Head,
    query: int,
    removals: Sequence[Removal],
) -> tuple[Array, Array]:
    """Return scores and weights of one head at a query, without each of some vectors.

    Both are (removal, key); scores are those before soft cap and position bias.
    """
    together = max(1, ablation.SWEEP_TOKENS // (2 * len(ids)))
    parts = [
        _rows(model, ids, head, query, removals[start : start + together])
        for start in range(0, len(removals), together)
    ]
    scores, weights = map(np.concatenate, zip(*parts, strict=True))
    return scores, weights


def _rows(
    model: Model, ids: Sequence[int], head: Head, query: int, removals: Sequence[Removal]
) -> tuple[Array, Array]:
    layer, number = head
    # The first row of the batch is clean; queries and keys of a removal are made in rows apart.
    index = (query, slice(None))
    changes = [
        (at, side, vector)
        for at, removal in enumerate(removals)
        for side, vector in enumerate((removal.query, removal.key))
        if vector is not None
    ]
    calls: list[AttentionCall] = []

    def change(boundary: int, stream: Tensor) -> Tensor | None:
        if boundary != layer:
            return None
        changed = stream.clone()
        for row, (_, side, vector) in enumerate(changes, 1):
            changed[row, index[side]] -= vector.to(stream)
        return changed

    def take(call: AttentionCall, outputs: Any, z: Tensor) -> None:
        if call.layer == layer:
            calls.append(call)

    batch = torch.tensor([list(ids)] * (1 + len(changes)))
    with watching(model, change):
        run(model, batch, Reader(Request(stats=()), take=take), head=False)
    (call,) = calls
    group = number // (call.query.shape[1] // call.key.shape[1])
    computed = call.query[:, number], call.key[:, group]
    changed_states = tuple(states[:1].repeat(len(removals), 1, 1) for states in computed)
    for row, (at, side, _) in enumerate(changes, 1):
        changed_states[side][at, index[side]] = computed[side][row, index[side]]
    head_call = _of_head(call, number, *changed_states)
    chosen = torch.zeros(len(removals), 1, len(ids), 1, device=head_call.query.device)
    chosen[:, :, query] = 1
    weights = push(chosen, head_call.query, head_call.key, head_call.variant())[:, 0, :, 0]
    scores = (
        torch.einsum("rs,rks->rk", changed_states[0][:, query].double(), changed_states[1].double())
        * call.scale
    )
    return scores.cpu().numpy(), weights.double().cpu().numpy()


def _of_head(call: AttentionCall, number: int, queries: Tensor, keys: Tensor) -> AttentionCall:
    """Return the call of one head alone, with other queries and keys."""
    query, key = queries[:, None].float(), keys[:, None].float()
    alone = of_heads(call, slice(number, number + 1), query, key, key)
    bias = None if alone.bias is None else alone.bias[:1]
    return replace(alone, key_mask=None, bias=bias)


def metric_with(
    model: Model,
    task: EncodedTask,
    metric: str,
    head: Head,
    queries: Int[np.ndarray, " prompt"],
    weights: Sequence[Float[np.ndarray, "variant key"]],
) -> Float[np.ndarray, "prompt variant"]:
    """Return the metric of every prompt with other weights at one query of a head.

    ``weights`` has as many variants for every prompt.
    """

    def edit(variants: Int[Tensor, " variant"], prompts: list[int]) -> RowWeights:
        rows = [weights[prompt][int(variant)] for variant in variants for prompt in prompts]
        positions = torch.as_tensor(queries[prompts]).repeat(len(variants))
        return RowWeights(head, positions, torch.from_numpy(np.stack(rows)).float())

    starts = torch.full((len(weights[0]),), head[0])
    answers = [AnswerMetric(metric, task.questions)]
    return np.asarray(
        ablation.sweep(model, task.ids, task.question_positions, answers, starts, edit)[0]
    )
