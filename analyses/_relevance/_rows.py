"""Rows of relevance: an answer's position taken through the maps of all layers, from the last."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.analyses._relevance.trace import LayerTrace, Trace
from headscope.kernels.api import AttentionSpec, Gradient, pull, push
from headscope.kernels.errors import InvalidInput, NotApplicable
from headscope.probes.attention import projections
from headscope.probes.models.model import Model

Link = Callable[[int, LayerTrace], Gradient]
"""What weighs the attention of a layer."""


def outwards(model: Model) -> projections.Weights:
    """Return what the outputs of heads are projected by."""
    return projections.read(model, ("o",))


def one_hot(trace: Trace) -> Float[Tensor, "1 1 query 1"]:
    """Return a vector over the queries that holds the answer's position alone."""
    row = torch.zeros(1, 1, len(trace.target.ids), 1)
    row[0, 0, trace.target.at] = 1.0
    return row


def weights_of(
    q: Float[Tensor, "1 head query size"], k: Float[Tensor, "1 kv_head key size"],
    spec: AttentionSpec, queries: Int[Tensor, " row"],
) -> Float[Tensor, "head row key"]:  # fmt: skip
    """Return the weights of some queries on all keys."""
    chosen = torch.zeros(1, 1, q.shape[2], len(queries))
    chosen[0, 0, queries, torch.arange(len(queries))] = 1.0
    return push(chosen, q, k, spec)[0].transpose(1, 2)


def check_layers(trace: Trace) -> None:
    """Refuse a model with layers through which attention cannot be followed."""
    without = trace.model.geometry.without
    if without:
        raise NotApplicable(
            f"model: layers {', '.join(map(str, without))} of {trace.model.name} have no attention "
            "map, so relevance cannot be followed through them"
        )


def follow(
    trace: Trace,
    link: Link,
    rows: Float[Tensor, "1 1 query row"] | None = None,
    *,
    normalize: bool = False,
    start: int = 0,
) -> tuple[Float[Tensor, "key row"], Float[Tensor, "layer head"]]:
    """Multiply rows by I + Ā of every layer, last layer first; Ā is the mean over heads.

    ``normalize`` divides the rows of every I + Ā by their sums, ``start`` is the lowest layer that
    takes part. Beside the rows stands what each head adds to the sum of the first one: without
    normalisation, these and 1 sum to the row.
    """
    check_layers(trace)
    layers = trace.graded_layers
    if not 0 <= start < trace.model.layers:
        raise InvalidInput(f"start_layer: no layer {start}; there are {trace.model.layers}")
    rows = one_hot(trace) if rows is None else rows
    added = torch.zeros(trace.model.layers, trace.model.heads, dtype=torch.float64)
    for number in reversed(range(start, trace.model.layers)):
        layer = layers[number]
        call, heads = layer.call, layer.z.shape[1]
        gradient, mean = link(number, layer), torch.full((heads,), 1 / heads)
        if normalize:
            ones = torch.ones(1, 1, call.key.shape[2], 1)
            sums = pull(ones, call.query, call.key, layer.spec, heads=mean, gradient=gradient)
            rows = rows / (1 + sums)
        first = push(rows[..., :1], call.query, call.key, layer.spec, gradient=gradient)
        added[number] = first[0].double().sum((1, 2)) / heads
        reached = first.mean(1, keepdim=True)
        if rows.shape[-1] > 1:
            reached = push(rows, call.query, call.key, layer.spec, heads=mean, gradient=gradient)
        rows = rows + reached
    return rows[0, 0], added
