"""The blocks of a model taken apart: what heads, MLP and logits make of a given residual stream.

Each part is the model's own code. The block is called with its attention stopped, which gives what
enters the projections; the attention module with its projections answered, which turns, normalises
and masks as the model does; the block with an attention that writes nothing, which gives the MLP;
and the model with blocks that hand on a stream, which gives the logits. So streams can differ from
head to head, and between the queries, keys and values of one head. A model whose logits do not come
out of its parts is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.analyses._interventions import block_structure
from headscope.analyses._interventions.head_calls import PLAIN, of_heads, outputs
from headscope.analyses._interventions.module_call import ModuleCall
from headscope.analyses._interventions.prefix_reuse import UNITS, answering
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import Reader, call, check_finite, unembedding_at
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.attention.residual_stream import blocks

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

Stream = Float[Tensor, "row position residual"]
Projected = Float[Tensor, "row position head size"]
# Logits out of the parts must agree with the model's to this share of the largest.
TOLERANCE = 1e-3


class _Reached(Exception):  # noqa: N818 - no error: it ends a pass that has done its work
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class BlockParts:
    """The parts of a model's blocks; to be used inside `running`.

    How the model calls its blocks is learned from a pass for every length of prompts (`record`).
    """

    def __init__(self, model: Model) -> None:
        structure = block_structure.read(model)
        self.model = model
        self.group = model.heads // model.kv_heads
        self.factors, self.parallel = structure.factors, structure.parallel
        self._projections = structure.projections
        self._blocks = blocks(model)
        self._calls: dict[tuple[int, nn.Module], ModuleCall] = {}
        self._attention: dict[int, nn.Module] = {}
        self._receive: Callable[[AttentionCall], Tensor] = Reader(PLAIN)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take the model's attention over."""
        with torch.no_grad(), intercept_attention(self.model, lambda call: self._receive(call)):
            try:
                yield
            finally:
                self._calls.clear()

    def embed(self, ids: Int[Tensor, "row position"]) -> Stream:
        """Return the residual stream before the first block."""
        try:
            with answering(self._blocks[:1], _stopping):
                call(self.model, ids, head=False)
        except _Reached as reached:
            stream: Tensor = reached.value
            return stream
        raise NotApplicable(f"model: {self.model.name} does not call its first block")

    def entered(self, layer: int, stream: Stream) -> Stream:
        """Return what the projections of a layer are given: the stream, after a norm if any."""
        block = self._blocks[layer]
        try:
            with answering([self._attention[layer]], _stopping):
                self._again(block, stream)
        except _Reached as reached:
            hidden: Tensor = reached.value
            return hidden
        raise NotApplicable(
            f"model: block {layer} of {self.model.name} does not call its attention; use patching"
        )

    def mlp(self, layer: int, stream: Stream) -> Stream:
        """Return what the MLP of a layer writes, given the stream that it reads."""
        attention, block = self._attention[layer], self._blocks[layer]
        recorded = self._calls[stream.shape[1], attention].result
        nothing = torch.zeros_like(stream)
        silent = nothing if isinstance(recorded, Tensor) else (nothing, *recorded[1:])
        with answering([attention], lambda *args, **kwargs: silent):
            result = self._again(block, stream)
        return (result if isinstance(result, Tensor) else result[0]) - stream

    def attention_call(self, layer: int, q: Projected, k: Projected, v: Projected) -> AttentionCall:
        """Return what arrives at the attention where its projections give these numbers."""
        by_module: dict[nn.Module, Tensor] = {}
        for part, values in (("q", q), ("k", k), ("v", v)):
            projection = self._projections[layer, part]
            width = _width(projection.module)
            rows = projection.rows.flatten().to(values.device)
            output = by_module.get(projection.module)
            if output is None:
                output = values.new_zeros(*values.shape[:2], width)
            by_module[projection.module] = output.index_copy(-1, rows, values.flatten(2))
        attention = self._attention[layer]
        hidden = q.new_zeros(*q.shape[:2], self._output(layer).shape[-1])

        def stop(call: AttentionCall) -> Tensor:
            raise _Reached(call)

        self._receive = stop
        try:
            with ExitStack() as stack:
                for module, values in by_module.items():
                    stack.enter_context(answering([module], partial(_constant, values)))
                self._again(attention, hidden)
        except _Reached as reached:
            arrived: AttentionCall = reached.value
            return arrived
        finally:
            self._receive = Reader(PLAIN)
        raise NotApplicable(
            f"model: layer {layer} of {self.model.name} asked for no attention, so its heads "
            "cannot be taken apart; use patching"
        )

    def shared(self, layer: int, entered: Stream) -> tuple[Projected, Projected, Projected]:
        """Project to queries of all heads, and keys and values of all KV heads."""
        q, k, v = (
            torch.einsum("bpr,hrs->bphs", entered, weight) + bias
            for weight, bias in (self._matrix(layer, part) for part in "qkv")
        )
        return q, k, v

    def separate(
        self, layer: int, entered: Float[Tensor, "input row position residual"]
    ) -> tuple[Projected, Projected, Projected]:
        """Project inputs of their own for the queries, keys and values of every query head.

        The first dim holds the queries of all heads, their keys, and their values. Keys and values
        come out by query head.
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

    def heads(self, layer: int, q: Projected, k: Projected, v: Projected) -> Tensor:
        """Return z (row, head, position, size) of heads whose queries, keys and values these are.

        Keys and values are those of the KV heads, or by query head; then the rows are run over
        once for every query head of a group, so that a KV head serves one of them at a time.
        """
        if k.shape[2] != q.shape[2] or self.group == 1:
            return outputs(self.attention_call(layer, q, k, v))
        rows, group = len(q), self.group
        lanes = [
            torch.unflatten(projected, 2, (-1, group)).permute(3, 0, 1, 2, 4).flatten(0, 1)
            for projected in (k, v)
        ]
        arrived = self.attention_call(layer, q.repeat(group, 1, 1, 1), *lanes)
        parts = [slice(member * rows, (member + 1) * rows) for member in range(group)]
        calls = [self.member(arrived, member, part) for member, part in enumerate(parts)]
        return torch.stack([outputs(call) for call in calls], dim=2).flatten(1, 2)

    def member(self, call: AttentionCall, member: int, rows: slice = slice(None)) -> AttentionCall:
        """Return the attention of one query head of every group; no key or value is copied."""
        heads = slice(member, None, self.group)
        return of_heads(call, heads, call.query[rows, heads], call.key[rows], call.value[rows])

    def writes(self, layer: int, z: Tensor) -> Float[Tensor, "row head position residual"]:
        """Return what every head writes into the stream, given its z."""
        return torch.einsum("bhps,hsr->bhpr", z, self._output(layer)) * self.factors[layer]

    def pull_writes(self, layer: int, slope: Stream) -> Tensor:
        """Return the gradient in z (row, head, position, size), given that in the stream."""
        return torch.einsum("bpr,hsr->bhps", slope, self._output(layer)) * self.factors[layer]

    def pull_projection(
        self, layer: int, part: str, slope: Projected
    ) -> Float[Tensor, "head row position residual"]:
        """Return the gradient in what enters a projection, of every query head by itself."""
        weight, _ = self._matrix(layer, part)
        if slope.shape[2] != len(weight):
            grouped = torch.unflatten(slope, 2, (-1, self.group))
            return torch.einsum("bphgs,hrs->hgbpr", grouped, weight).flatten(0, 1)
        return torch.einsum("bphs,hrs->hbpr", slope, weight)

    def constant(self, layer: int) -> Tensor | float:
        """Return what the attention of a layer writes beside its heads: the projection's bias."""
        bias = getattr(self._projections[layer, "o"].module, "bias", None)
        return 0.0 if bias is None else bias * self.factors[layer]

    def block(self, layer: int, stream: Stream) -> Stream:
        """Run a whole block."""
        block = self._blocks[layer]
        result = self._again(block, stream)
        following: Tensor = result if isinstance(result, Tensor) else result[0]
        return following

    def logits(
        self,
        stream: Stream,
        ids: Int[Tensor, "row position"],
        positions: Int[Tensor, "row question"],
    ) -> Float[Tensor, "row question vocab"]:
        """Return the logits at some positions, given the stream after the last block."""
        bare = isinstance(self._calls[ids.shape[1], self._blocks[-1]].result, Tensor)
        replacement = stream if bare else (stream,)
        with (
            answering(self._blocks, lambda *args, **kwargs: replacement),
            unembedding_at(self.model, positions) as finish,
        ):
            return finish(call(self.model, ids, head=True))

    def check(self, from_parts: Tensor, ids: Tensor, positions: Tensor) -> None:
        """Refuse a model whose own logits are others than those that came out of its parts."""
        with unembedding_at(self.model, positions) as finish:
            logits = finish(call(self.model, ids, head=True))
        check_finite(self.model, logits)
        parameter = next(self.model.module.parameters())
        # Logits that are all 0 are sums of terms that are not, and round like these.
        size = max(float(logits.abs().max()), 1e-3)
        bar = max(TOLERANCE, UNITS * torch.finfo(parameter.dtype).eps) * size
        off = float((from_parts - logits).abs().max())
        if not off <= bar:
            raise NotApplicable(
                f"model: the logits of {self.model.name} ({self.model.architecture}) do not come "
                f"out of its embedding, heads and MLPs (off by {off:.2g}), so it has no edges "
                "between them; use patching"
            )

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

    def record(self, ids: Int[Tensor, "row position"]) -> None:
        """Keep what blocks and attention modules are called with on prompts of this length."""
        if (ids.shape[1], self._blocks[0]) in self._calls:
            return
        calls: dict[nn.Module, ModuleCall] = {}

        def keep(part: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            calls[part] = ModuleCall(args, dict(kwargs), result)

        def take(call: AttentionCall, outputs: Any, z: Tensor) -> None:
            self._attention[call.layer] = call.module

        parts = [part for block in self._blocks for part in block.modules()]
        handles = [part.register_forward_hook(keep, with_kwargs=True) for part in parts]
        self._receive = Reader(PLAIN, take=take)
        try:
            call(self.model, ids[:1], head=False)
        finally:
            self._receive = Reader(PLAIN)
            for handle in handles:
                handle.remove()
        used = [*self._blocks, *self._attention.values()]
        self._calls |= {(ids.shape[1], part): calls[part] for part in used}

    def _again(self, module: nn.Module, stream: Stream) -> Any:
        """Call a module as the model does, on another stream."""
        return self._calls[stream.shape[1], module].again(module, stream)


def _constant(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return values


def _stopping(*args: Any, **kwargs: Any) -> Any:
    raise _Reached(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])


def _width(module: Any) -> int:
    weight: Tensor = module.weight
    return int(weight.shape[1] if type(module).__name__ == "Conv1D" else weight.shape[0])
