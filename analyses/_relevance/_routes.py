"""The graph of routes from an output position to the tokens, from one forward pass.

A block adds to the stream of position i what its heads write from every key, ``A_ij v_j W_O``, and
what its MLP writes. Of a sum w, the part p gets the share ``c = max(0, ‖w‖₁ − ‖w − p‖₁)``, divided
by the sum of all c: parts that go against the sum get the floor. Only parts that exist have a floor
at all, so masked keys have no share. Shares up to the threshold are cut, the rest renormalised, and
the output's importance is handed down along them. Rows that nothing reaches are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._measurements.residual_writes import parallel, straight
from headscope.analyses._relevance._rows import weights_of
from headscope.analyses._stats.bootstrap import Array
from headscope.kernels.api import Request
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention import projections
from headscope.probes.attention.forward import Reader, run
from headscope.probes.attention.residual_stream import watching

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headscope.probes.attention.interface import AttentionCall
    from headscope.probes.models.model import Model

FLOOR = 1e-5
# Rows whose weights are held at once, and numbers of parts less sums.
ROWS, NUMBERS = 16, 2**18
# What an edge goes through, where it is no head.
RESIDUAL, MLP, BIAS = -1, -2, -3


@dataclass(frozen=True)
class Blocks:
    """The parts of a model's blocks that all texts share."""

    outwards: dict[int, Float[Tensor, "head size residual"]]
    factors: dict[int, float]
    parallel: bool

    @classmethod
    def of(cls, model: Model) -> Blocks:
        """Measure how heads write into the stream, or refuse where they do not."""
        absent = set(range(model.layers)) - set(model.geometry.attending)
        if absent:
            raise NotApplicable(
                f"model: routes go through the attention of every layer, and layer {min(absent)} "
                f"of {model.name} has no attention weights"
            )
        factors, outputs = straight(model), projections.read(model, ("o",))
        outwards = {layer: outputs.of(layer, "o").float() * factors[layer] for layer in factors}
        return cls(outwards, factors, parallel(model))


@dataclass(frozen=True)
class Routes:
    """The graph of one text.

    Attributes
    ----------
    edges
        Layer, head (or `RESIDUAL`, `MLP`), source, target and importance of every edge.
    tokens
        Importance that reaches each token of the text (token,).
    heads, mlp, residual, bias
        Importance that goes through each head (layer, head), each MLP, and past the attention of
        each layer (layer,), and what ends in the biases of its attention (layer,): with the
        tokens, all of the importance.
    """

    edges: list[tuple[int, int, int, int, float]]
    tokens: Array
    heads: Array
    mlp: Array
    residual: Array
    bias: Array


@dataclass(frozen=True)
class Streams:
    """One pass: streams at every boundary, what attention adds, and its calls."""

    at: list[Float[Tensor, "token residual"]]
    added: list[Float[Tensor, "token residual"]]
    calls: list[AttentionCall]


@torch.no_grad()
def read(model: Model, ids: Sequence[int], blocks: Blocks) -> Streams:
    """Run the model once on a text."""
    streams: dict[int, Tensor] = {}
    added: dict[int, Tensor] = {}
    calls: dict[int, AttentionCall] = {}
    outputs = projections.read(model, ("o",))
    hooks = []
    for layer in blocks.factors:

        def keep(part: object, args: object, result: Tensor, layer: int = layer) -> None:
            added[layer] = result.float() * blocks.factors[layer]

        hooks.append(outputs.projections[layer, "o"].module.register_forward_hook(keep))
    try:
        with watching(model, lambda at, stream: streams.update({at: stream[0].float()})):
            reader = Reader(
                Request(stats=()), (), lambda call, *_: calls.update({call.layer: call})
            )
            run(model, torch.tensor([list(ids)]), reader, head=False)
    finally:
        for hook in hooks:
            hook.remove()
    order = sorted(added)
    return Streams(
        [streams[at] for at in sorted(streams)],
        [added[layer].view_as(streams[layer]) for layer in order],
        [calls[layer] for layer in order],
    )


@torch.no_grad()
def trace(streams: Streams, blocks: Blocks, at: int, threshold: float) -> Routes:
    """Follow the stream of one position from the last layer down."""
    layers = len(streams.added)
    size, count = len(streams.at[0]), streams.calls[0].query.shape[1]
    heads, (mlp, residual, bias) = np.zeros((layers, count)), np.zeros((3, layers))
    importance = torch.zeros(size, dtype=torch.float64)
    importance[at] = 1.0
    edges: list[tuple[int, int, int, int, float]] = []
    for layer in reversed(range(layers)):
        below = torch.zeros_like(importance)
        for rows in torch.split(importance.nonzero()[:, 0], ROWS):
            weights, shares = layer_shares(streams, blocks, layer, rows, threshold)
            arriving = importance[rows]
            bias[layer] += float((arriving * shares[BIAS]).sum())
            for name, into in ((MLP, mlp), (RESIDUAL, residual)):
                through = arriving * shares[name]
                into[layer] += float(through.sum())
                edges += [
                    (layer, name, int(row), int(row), float(value))
                    for row, value in zip(rows, through, strict=True) if value > 0
                ]  # fmt: skip
            # What an MLP writes, it made of the stream of the same position; in a block in turn,
            # of the stream after the attention, whose shares are of the whole.
            below[rows] += arriving * (shares[RESIDUAL] + (shares[MLP] if blocks.parallel else 0))
            moved = arriving[None, :, None] * weights
            heads[layer] += moved.sum((1, 2)).numpy()
            below += moved.sum((0, 1))
            edges += [
                (layer, int(head), int(key), int(rows[row]), float(moved[head, row, key]))
                for head, row, key in moved.nonzero()
            ]
        importance = below
    edges.sort(key=lambda edge: -edge[-1])
    return Routes(edges, importance.numpy(), heads, mlp, residual, bias)


def layer_shares(
    streams: Streams, blocks: Blocks, layer: int, rows: Tensor, threshold: float
) -> tuple[Float[Tensor, "head row key"], dict[int, Float[Tensor, " row"]]]:
    """Return what shares of some rows come through heads from keys, and from what else there is.

    In a block in turn the shares of heads, residual stream and biases of the attention are of the
    sum after it, and sum to 1; that of the MLP is of the sum after that. In a parallel block all
    are of one sum.
    """
    before, after = (streams.at[at][rows] for at in (layer, layer + 1))
    added = streams.added[layer][rows]
    through_mlp = after - before - added
    total = after if blocks.parallel else before + added
    parts, written_by_heads = _head_parts(streams, blocks, layer, rows, total)
    # The biases come from no token; what is left by rounding is none.
    biases = added - written_by_heads
    biases = torch.where(biases.abs() > 1e-5 * added.abs().amax(-1, keepdim=True), biases, 0)
    beside = [before, biases] + [through_mlp] * blocks.parallel
    size = parts.shape[-1]
    flat = [parts.transpose(0, 1).flatten(1)]
    flat += [_part(total, vectors)[:, None] for vectors in beside]
    shares = _shares_above(torch.cat(flat, dim=1).double(), threshold)
    heads = shares[:, : len(parts) * size].view(len(rows), len(parts), size).transpose(0, 1)
    row_shares = {RESIDUAL: shares[:, len(parts) * size], BIAS: shares[:, len(parts) * size + 1]}
    if blocks.parallel:
        row_shares[MLP] = shares[:, -1]
    else:
        block_shares = torch.stack([_part(after, total), _part(after, through_mlp)], dim=1)
        row_shares[MLP] = _shares_above(block_shares.double(), threshold)[:, 1]
    return heads, row_shares


def _head_parts(
    streams: Streams, blocks: Blocks, layer: int, rows: Tensor, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Return c of what every head writes from every key (head, row, key), and the sum of that."""
    call, outwards = streams.calls[layer], blocks.outwards[layer]
    weights = weights_of(call.query, call.key, call.variant(), rows)
    values = call.value[0].float()
    group = len(outwards) // len(values)
    parts, written = torch.zeros_like(weights), torch.zeros_like(total)
    step = max(1, NUMBERS // (len(rows) * total.shape[1]))
    norm = total.abs().sum(-1, keepdim=True)
    for head in range(len(outwards)):
        visible = (weights[head] > 0).any(0).nonzero()[:, 0]
        for keys in torch.split(visible, step):
            vectors = values[head // group, keys] @ outwards[head]
            head_weights = weights[head][:, keys]
            written += head_weights @ vectors
            less = torch.addcmul(-total[:, None], head_weights[:, :, None], vectors)
            off = torch.linalg.vector_norm(less, ord=1, dim=-1)
            # A weight of 0 is a part that does not exist, so no floor.
            parts[head][:, keys] = torch.where(head_weights > 0, (norm - off).clamp_min(FLOOR), 0)
    return parts, written


def _part(total: Tensor, part: Tensor) -> Tensor:
    """Return c of one part of every row; none of a part that is 0."""
    closeness = total.abs().sum(-1) - (total - part).abs().sum(-1)
    return torch.where((part != 0).any(-1), closeness.clamp_min(FLOOR), 0)


def _shares_above(parts: Float[Tensor, "row part"], threshold: float) -> Float[Tensor, "row part"]:
    """Normalise, cut shares up to the threshold, and normalise again; the largest always stays."""
    shares = parts / parts.sum(-1, keepdim=True).clamp_min(1e-30)
    largest = shares == shares.amax(-1, keepdim=True)
    shares = torch.where((shares > threshold) | largest, shares, 0)
    return shares / shares.sum(-1, keepdim=True).clamp_min(1e-30)
