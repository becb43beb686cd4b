"""The blocks of a model taken apart: what heads, MLP and logits make of a given residual stream.

Each part is the model's own code. The block is called with its attention stopped, which gives what
enters the projections; the attention module with its projections answered, which turns, normalises
and masks as the model does; the block with an attention that writes nothing, which gives the MLP;
the norm between the heads and the stream, if there is one, which gives what a sum of their writes
adds; and the model with blocks that hand on a stream, which gives the logits. So streams can differ
from head to head, and between the queries, keys and values of one head. A model whose logits do not
come out of its parts is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.analyses._interventions import block_structure, module_answers
from headscope.analyses._interventions.head_calls import PLAIN, of_heads, outputs
from headscope.analyses._interventions.head_projections import (
    HeadProjections,
    Inputs,
    Projected,
    Stream,
)
from headscope.analyses._interventions.module_call import ModuleCall, keeping
from headscope.analyses._interventions.prefix_reuse import UNITS, answering
from headscope.kernels.errors import NotApplicable
from headscope.probes.attention.forward import Reader, call, check_finite, unembedding_at
from headscope.probes.attention.interface import AttentionCall, intercept_attention
from headscope.probes.attention.residual_stream import blocks
from headscope.probes.attention.work import uncounted

if TYPE_CHECKING:
    from headscope.probes.models.model import Model

# Logits out of the parts must agree with the model's to this share of the largest.
TOLERANCE = 1e-3


class BlockParts:
    """The parts of a model's blocks; to be used inside `running`.

    How the model calls its blocks is learned from a pass for every length of prompts (`record`).

    Attributes
    ----------
    projections
        Products with the weights of heads.
    mixed
        Layers with a norm over the queries or keys of all heads together (OLMo 2).
    """

    def __init__(self, model: Model) -> None:
        structure = block_structure.read(model)
        self.model = model
        self.group = model.heads // model.kv_heads
        self.parallel = structure.parallel
        self.projections = HeadProjections(structure, self.group)
        self.mixed: frozenset[int] = frozenset()
        self._structure = structure
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
            with answering(self._blocks[:1], module_answers.stopping):
                call(self.model, ids, head=False)
        except module_answers.Reached as reached:
            stream: Tensor = reached.value
            return stream
        raise NotApplicable(f"model: {self.model.name} does not call its first block")

    def entered(self, layer: int, stream: Stream) -> Stream:
        """Return what the projections of a layer are given: the stream, after a norm if any."""
        block = self._blocks[layer]
        try:
            with answering([self._attention[layer]], module_answers.stopping):
                self._again(block, stream)
        except module_answers.Reached as reached:
            hidden: Tensor = reached.value
            return hidden
        raise NotApplicable(
            f"model: block {layer} of {self.model.name} does not call its attention; use patching"
        )

    def mlp(self, layer: int, stream: Stream) -> Stream:
        """Return what the MLP of a layer writes, given the stream that it reads."""
        parts = {self._structure.projections[layer, part].module for part in "qkvo"}
        norm = self._structure.writes[layer].module
        # Also of a norm behind the heads, whose bias is no part of what the MLP writes.
        parts |= set() if norm is None else {norm}
        rows = stream.shape[:2]
        self._receive = module_answers.no_outputs
        try:
            with ExitStack() as stack:
                stack.enter_context(uncounted())
                for part in parts:
                    zeros = stream.new_zeros(*rows, module_answers.width(part))
                    stack.enter_context(answering([part], partial(module_answers.constant, zeros)))
                result = self._again(self._blocks[layer], stream)
        finally:
            self._receive = Reader(PLAIN)
        return (result if isinstance(result, Tensor) else result[0]) - stream

    def attention_call(self, layer: int, q: Projected, k: Projected, v: Projected) -> AttentionCall:
        """Return what arrives at the attention where its projections give these numbers."""
        by_module: dict[nn.Module, Tensor] = {}
        for part, values in (("q", q), ("k", k), ("v", v)):
            projection = self._structure.projections[layer, part]
            width = module_answers.width(projection.module)
            rows = projection.rows.flatten().to(values.device)
            output = by_module.get(projection.module)
            if output is None:
                output = values.new_zeros(*values.shape[:2], width)
            by_module[projection.module] = output.index_copy(-1, rows, values.flatten(2))
        attention = self._attention[layer]
        width = int(self.model.module.config.get_text_config().hidden_size)
        hidden = q.new_zeros(*q.shape[:2], width)

        def stop(call: AttentionCall) -> Tensor:
            raise module_answers.Reached(call)

        self._receive = stop
        try:
            with ExitStack() as stack:
                for module, values in by_module.items():
                    stack.enter_context(
                        answering([module], partial(module_answers.constant, values))
                    )
                self._again(attention, hidden)
        except module_answers.Reached as reached:
            arrived: AttentionCall = reached.value
            return arrived
        finally:
            self._receive = Reader(PLAIN)
        raise NotApplicable(
            f"model: layer {layer} of {self.model.name} asked for no attention, so its heads "
            "cannot be taken apart; use patching"
        )

    def heads(self, layer: int, entered: Stream) -> Tensor:
        """Return z (row, head, position, size) of all heads on what their projections are given."""
        return outputs(self.attention_call(layer, *self.projections.shared(layer, entered)))

    def separate_heads(self, layer: int, entered: Inputs) -> Tensor:
        """Return z of heads whose queries, keys and values have inputs of their own.

        The rows are run over once for every query head of a group, so that a KV head serves one of
        them at a time; where a norm takes the heads together, once for every head, whose input
        gives the others that the norm sees.
        """
        if layer in self.mixed:
            return self._heads_of_their_own(layer, entered)
        q, k, v = self.projections.separate(layer, entered)
        if self.group == 1:
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

    def _heads_of_their_own(self, layer: int, entered: Inputs) -> Tensor:
        repeated = self.projections.repeated(layer, entered)
        arrived = self.attention_call(layer, *repeated)
        head = torch.arange(self.model.heads, device=entered.device)
        query, key, value = (
            torch.unflatten(values, 0, (len(head), -1))[head, :, index].transpose(0, 1)
            for values, index in (
                (arrived.query, head),
                (arrived.key, head // self.group),
                (arrived.value, head // self.group),
            )
        )
        return outputs(of_heads(arrived, slice(None), query, key, value))

    def member(self, call: AttentionCall, member: int, rows: slice = slice(None)) -> AttentionCall:
        """Return the attention of one query head of every group; no key or value is copied."""
        heads = slice(member, None, self.group)
        return of_heads(call, heads, call.query[rows, heads], call.key[rows], call.value[rows])

    def block(self, layer: int, stream: Stream, totals: dict[int, Stream] | None = None) -> Stream:
        """Run a whole block; keep what its heads write together where a norm takes it."""
        block, norm = self._blocks[layer], self._structure.writes[layer].module

        def keep(part: nn.Module, args: Any) -> None:
            if totals is not None:
                totals[layer] = args[0] - self.projections.constant(layer)

        with ExitStack() as stack:
            if norm is not None:
                stack.enter_context(norm.register_forward_pre_hook(keep))
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

    def record(self, ids: Int[Tensor, "row position"]) -> None:
        """Keep what blocks and attention modules are called with on prompts of this length."""
        if (ids.shape[1], self._blocks[0]) in self._calls:
            return
        once, twice = (self._recorded(ids[:1].repeat(times, 1)) for times in (1, 2))
        for part in (*self._blocks, *self._attention.values()):
            self._calls[ids.shape[1], part] = once[part].compared(twice[part])
        layers = range(len(self._blocks))
        self.mixed = frozenset(layer for layer in layers if self._mixes(layer, ids.shape[1]))

    def _recorded(self, ids: Int[Tensor, "row position"]) -> dict[nn.Module, ModuleCall]:
        """Run the model, and return the calls of all parts of its blocks."""

        def take(call: AttentionCall, outputs: Any, z: Tensor) -> None:
            self._attention[call.layer] = call.module

        self._receive = Reader(PLAIN, take=take)
        try:
            with keeping(self._blocks) as calls:
                call(self.model, ids, head=False)
        finally:
            self._receive = Reader(PLAIN)
        return calls

    def _mixes(self, layer: int, length: int) -> bool:
        """Tell whether what one head's projection gives changes queries or keys of the others."""
        parts = [self._structure.projections[layer, part] for part in "qkv"]
        if not any(part.normalised for part in parts):
            return False
        weight: Any = parts[0].module.weight
        generator = torch.Generator().manual_seed(0)
        drawn = [
            torch.randn(1, length, *part.rows.shape, generator=generator).to(weight)
            for part in parts
        ]
        moved = [values.clone() for values in drawn]
        for values in moved:
            values[:, :, 0] *= 2
            values[:, :, 0, 0] += 1
        first, second = (self.attention_call(layer, *values) for values in (drawn, moved))
        pairs = ((first.query, second.query), (first.key, second.key))
        return any(not torch.equal(before[:, 1:], after[:, 1:]) for before, after in pairs)

    def _again(self, module: nn.Module, stream: Stream) -> Any:
        """Call a module as the model does, on another stream."""
        return self._calls[stream.shape[1], module].again(module, stream)
