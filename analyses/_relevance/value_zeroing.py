"""Value zeroing: how far each position rotates when a token's values are set to zero, rolled out.

``C_ij``: cosine distance between the residual stream after the attention of a layer at i and the
same with v_j set to zero in all heads, rows divided by their sums; the answer's row in the product
of the C of all layers. The paper takes the stream after the MLP, at one pass for every token and
layer (N·L passes); before the MLP the distance has a closed form, of A and v alone, and needs none.
In a causal model the first token sees itself alone, so that its row keeps all
that arrives there: over many layers the product ends at it. Time grows with the square of the text,
memory with the text.
Source: Mohebbi et al., Quantifying Context Mixing in Transformers (2301.12971).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.analyses._measurements.residual_writes import straight, streams
from headscope.analyses._relevance._rows import check_layers, one_hot, outwards, weights_of
from headscope.analyses._relevance.trace import LayerTrace, Trace
from headscope.analyses._stats.bootstrap import Array

SIGNED = False
# Numbers that the maps of some queries may hold at once.
CHUNK = 2**23


def relevance(trace: Trace) -> Array:
    """Return the row of the answer's position (token,), shares that sum to 1."""
    check_layers(trace)
    mixing = Mixing(trace)
    row = one_hot(trace)[0, 0, :, 0].double()
    for number in reversed(range(trace.model.layers)):
        row = mixing.push(row, number)
    return np.asarray(row.numpy())


class Mixing:
    """The context mixing of every layer: C, a few rows at a time."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        # Refuses models whose heads do not write straight into the residual stream.
        self.factors = trace.of_model(straight)
        self.weights = trace.of_model(outwards)
        by_boundary = streams(trace.model, torch.tensor([trace.target.ids]))
        self.streams = {boundary: stream[0] for boundary, stream in by_boundary.items()}

    def push(self, row: Float[Tensor, " query"], number: int) -> Float[Tensor, " key"]:
        """Multiply a row by C of one layer; queries that it does not hold are not computed."""
        layer = self.trace.layers[number]
        result = torch.zeros_like(row)
        queries = row.nonzero()[:, 0]
        size = max(1, CHUNK // (layer.z.shape[1] * len(row)))
        writes = self._write_products(layer, number)
        for part in torch.split(queries, size):
            result += row[part] @ self.rows(layer, number, part, *writes)
        return result

    def rows(
        self,
        layer: LayerTrace,
        number: int,
        queries: Tensor,
        out: Float[Tensor, "head size residual"],
        gram: Float[Tensor, "key head other"],
    ) -> Float[Tensor, "query key"]:
        """Return rows of C: distances, divided by their sums."""
        call = layer.call
        maps = weights_of(call.query, call.key, call.variant(), queries).double().cpu()
        z = layer.z[0, :, queries].double().cpu()
        stream = self.streams[number][queries] + torch.einsum("hqs,hsr->qr", z, out)
        value = call.value[0].double().cpu()
        # What is taken away is u = Σ_h A v W_O: its length, and its share along the stream.
        square = torch.einsum("hqk,khg,gqk->qk", maps, gram, maps)
        along = torch.einsum("qr,hsr->hqs", stream, out)
        grouped = along.reshape(len(value), -1, *along.shape[1:])
        dot = (torch.einsum("ghqs,gks->ghqk", grouped, value).flatten(0, 1) * maps).sum(0)
        whole = stream.square().sum(-1, keepdim=True)
        left = (whole - 2 * dot + square).clamp_min(1e-30)
        distance = (1 - (whole - dot) / (whole * left).sqrt()).clamp_min(0.0)
        # A query that sees nothing, or whose stream nothing turns, stays where it is.
        sums = distance.sum(-1, keepdim=True)
        own = torch.zeros_like(distance)
        own[torch.arange(len(queries)), queries] = 1.0
        return torch.where(sums > 0, distance / sums.clamp_min(1e-300), own)

    def _write_products(self, layer: LayerTrace, number: int) -> tuple[Tensor, Tensor]:
        """Return W_O and, of every key, the products of what pairs of heads write of its values."""
        out = self.weights.of(number, "o") * self.factors[number]
        value = layer.call.value[0].double().cpu()
        groups = torch.arange(len(out)) // (len(out) // len(value))
        across = torch.einsum("hsr,gtr->hgst", out, out)
        parts = [
            torch.einsum("ks,gst,gkt->kg", value[groups[head]], across[head], value[groups])
            for head in range(len(out))
        ]
        return out, torch.stack(parts, 1)
