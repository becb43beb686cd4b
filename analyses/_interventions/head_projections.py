"""What weights make of a stream: queries, keys and values, and of heads: what they add to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from headscope.analyses._interventions.block_structure import Structure

Stream = Float[Tensor, "row position residual"]
Projected = Float[Tensor, "row position head size"]
# What the queries of all heads read, then their keys, then their values.
Inputs = Float[Tensor, "input row position residual"]


class HeadProjections:
    """Products with the weights of heads, forwards and back.

    Attributes
    ----------
    group
        Number of query heads that share keys and values.
    normed
        Layers with a norm between their heads and the stream (Gemma 2 and 3, OLMo 2).
    """

    def __init__(self, structure: Structure, group: int) -> None:
        self.group = group
        self.normed = structure.normed
        self._projections, self._writes = structure.projections, structure.writes

    def shared(self, layer: int, entered: Stream) -> tuple[Projected, Projected, Projected]:
        """Project to queries of all heads, and keys and values of all KV heads."""
        q, k, v = (
            torch.einsum("bpr,hrs->bphs", entered, weight) + bias
            for weight, bias in (self._matrix(layer, part) for part in "qkv")
        )
        return q, k, v

    def separate(self, layer: int, entered: Inputs) -> tuple[Projected, Projected, Projected]:
        """Project inputs of their own for the queries, keys and values of every query head.

        Keys and values come out by query head.
        """
        projected = []
        for part, inputs in zip("qkv", torch.unflatten(entered, 0, (3, -1)), strict=True):
            weight, bias = self._matrix(layer, part)
            if part != "q":
                inputs = torch.unflatten(inputs, 0, (-1, self.group))
                values = torch.einsum("hgbpr,hrs->bphgs", inputs, weight) + bias[:, None]
                projected.append(values.flatten(2, 3))
            else:
                projected.append(torch.einsum("hbpr,hrs->bphs", inputs, weight) + bias)
        return projected[0], projected[1], projected[2]

    def repeated(self, layer: int, entered: Inputs) -> tuple[Projected, Projected, Projected]:
        """Project every input of a query head to what all heads make of it.

        Rows are those of the first head's input, then those of the second's, and so on.
        """
        q, k, v = (
            (torch.einsum("nbpr,hrs->nbphs", inputs, weight) + bias).flatten(0, 1)
            for inputs, (weight, bias) in zip(
                torch.unflatten(entered, 0, (3, -1)),
                (self._matrix(layer, part) for part in "qkv"),
                strict=True,
            )
        )
        return q, k, v

    def pull(self, layer: int, part: str, slope: Projected) -> Inputs:
        """Return the gradient in what enters a projection, of every query head by itself."""
        weight, _ = self._matrix(layer, part)
        if slope.shape[2] != len(weight):
            grouped = torch.unflatten(slope, 2, (-1, self.group))
            return torch.einsum("bphgs,hrs->hgbpr", grouped, weight).flatten(0, 1)
        return torch.einsum("bphs,hrs->hbpr", slope, weight)

    def pull_shared(self, layer: int, part: str, slope: Projected) -> Stream:
        """Return the gradient in what all heads' projections are given together."""
        weight, _ = self._matrix(layer, part)
        return torch.einsum("bphs,hrs->bpr", slope, weight)

    def writes(self, layer: int, z: Tensor) -> Float[Tensor, "row head position residual"]:
        """Return what every head writes, given its z: into the stream, or to the norm before it."""
        return torch.einsum("bhps,hsr->bhpr", z, self._output(layer)) * self._factor(layer)

    def sum_of_writes(self, layer: int, z: Tensor) -> Stream:
        """Return what the heads of a layer write together."""
        return torch.einsum("bhps,hsr->bpr", z, self._output(layer)) * self._factor(layer)

    def pull_writes(self, layer: int, slope: Stream) -> Tensor:
        """Return the gradient in z (row, head, position, size), given that in what is written."""
        return torch.einsum("bpr,hsr->bhps", slope, self._output(layer)) * self._factor(layer)

    def constant(self, layer: int) -> Tensor | float:
        """Return what the attention of a layer writes beside its heads: the projection's bias."""
        bias = getattr(self._projections[layer, "o"].module, "bias", None)
        return 0.0 if bias is None else bias * self._factor(layer)

    def added(self, layer: int, total: Float[Tensor, "... residual"]) -> Tensor:
        """Return what the attention of a layer adds to the stream.

        ``total`` is the sum of what its heads write; a norm between is computed anew.
        """
        total = total + self.constant(layer)
        write = self._writes[layer]
        return total if write.module is None else write.module(total) * write.factor

    def pull_added(self, layer: int, total: Stream, slope: Stream) -> Stream:
        """Return the gradient in the sum of what heads write, given that in what is added."""
        if layer not in self.normed:
            return slope
        with torch.enable_grad():
            leaf = total.detach().requires_grad_()
            (back,) = torch.autograd.grad(self.added(layer, leaf), leaf, slope)
        return back

    def push_added(
        self, layer: int, total: Stream, changes: Float[Tensor, "source row position residual"]
    ) -> Float[Tensor, "source row position residual"]:
        """Return, to first order, by how much changes of the sum change what is added."""
        if layer not in self.normed:
            return changes
        # The gradient is linear in what is pulled back, and its own gradient pushes forwards.
        with torch.enable_grad():
            leaf = total.detach().expand_as(changes).requires_grad_()
            result = self.added(layer, leaf)
            slope = torch.zeros_like(result, requires_grad=True)
            (back,) = torch.autograd.grad(result, leaf, slope, create_graph=True)
            (pushed,) = torch.autograd.grad(back, slope, changes)
        return pushed

    def _factor(self, layer: int) -> float:
        """Return by what heads are multiplied; behind a norm that is what the norm gives."""
        write = self._writes[layer]
        return write.factor if write.module is None else 1.0

    def _matrix(self, layer: int, part: str) -> tuple[Tensor, Tensor]:
        """Return weight (head, residual, size) and bias (head, size) as the module has them."""
        projection: Any = self._projections[layer, part]
        weight, bias = projection.module.weight, projection.module.bias
        rows = projection.rows.to(weight.device)
        conv = type(projection.module).__name__ == "Conv1D"
        cut = weight[:, rows].permute(1, 0, 2) if conv else weight[rows].transpose(1, 2)
        return cut, (torch.zeros_like(cut[:, 0]) if bias is None else bias[rows])

    def _output(self, layer: int) -> Float[Tensor, "head size residual"]:
        projection: Any = self._projections[layer, "o"]
        weight, rows = projection.module.weight, projection.rows.to(projection.module.weight.device)
        conv = type(projection.module).__name__ == "Conv1D"
        cut: Tensor = weight[rows] if conv else weight.T[rows]
        return cut
