"""Forward passes taken up at a later layer: what stands before it is kept from a clean pass.

An edit of the heads of one layer changes nothing before that layer, and a metric reads the logits
of a few positions only. So the layers before are run once for all edits, and the unembedding is
given the question positions alone. The numbers are those of whole passes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import UnsupportedModel
from headscope.probes.attention.forward import Reader, call, check_finite, unembedding_at
from headscope.probes.attention.interface import intercept_attention
from headscope.probes.attention.residual_stream import blocks

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model

# Passes from a layer on must agree with whole ones to this share of the largest logit; in reduced
# precision to this many units in the last place, as products of other sizes are rounded otherwise.
TOLERANCE, UNITS = 1e-4, 4
# Whether they do, by model and length of the prompts: what blocks hand on hangs on nothing else.
_agreeing: weakref.WeakKeyDictionary[nn.Module, dict[int, bool]] = weakref.WeakKeyDictionary()


def checked(model: Model) -> set[int]:
    """Return the lengths of prompts that passes from later layers on were compared on."""
    return set(_agreeing.get(model.module, {}))


class PrefixReuse:
    """One batch of prompts of one length, run whole once, edited from any layer on.

    ``resumes`` tells whether passes begin at a later layer; a model whose blocks are not found, or
    hand each other more than the residual stream, is run whole every time.
    """

    def __init__(
        self, model: Model, ids: Int[Tensor, "row position"], positions: Int[Tensor, "row question"]
    ) -> None:
        self.model, self.ids, self.positions = model, ids, positions
        self._streams: list[Tensor] = []
        try:
            self._parts = blocks(model)
        except UnsupportedModel:
            self._parts = []
        self.resumes = bool(self._parts)
        with self._recording():
            self.clean = self._run(0, (), 1, None)
        if self.resumes:
            checked, length = _agreeing.setdefault(model.module, {}), ids.shape[1]
            if length not in checked:
                checked[length] = self._agrees(met=bool(checked))
            self.resumes = checked[length]

    def logits(
        self, layer: int, edits: Sequence[Edit], times: int
    ) -> Float[Tensor, "batch question vocab"]:
        """Run the batch ``times`` over with edits that touch no layer before ``layer``.

        Returns the logits at the question positions; rows are those of the batch over and over.
        From behind the last layer on there is nothing to run.
        """
        if layer >= self.model.layers:
            return self.clean.repeat(times, 1, 1)
        return self._run(layer if self.resumes else 0, edits, times, None)

    def _run(
        self, layer: int, edits: Sequence[Edit], times: int, rows: int | None
    ) -> Float[Tensor, "batch question vocab"]:
        model, reader = self.model, Reader(Request(stats=()), edits)
        for edit in edits:
            edit.check(model.geometry)
        ids, positions = (part[:rows].repeat(times, 1) for part in (self.ids, self.positions))
        begin: AbstractContextManager[None] = nullcontext()
        if layer:
            stream = self._streams[layer][:rows].repeat(times, 1, 1)
            begin = answering(self._parts[:layer], lambda *args, **kwargs: stream)
        with (
            torch.no_grad(),
            intercept_attention(model, reader),
            unembedding_at(model, positions) as finish,
            begin,
        ):
            output = finish(call(model, ids, head=True))
        expected = [number for number in model.geometry.attending if number >= layer]
        if sorted(reader.layers) != expected:
            raise UnsupportedModel(
                f"model: layers {sorted(reader.layers)} of {model.name} asked for attention, "
                f"expected each of {expected} once; this architecture is refused"
            )
        check_finite(model, output)
        return output

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Keep what goes into every block, and note blocks that give more than the stream."""

        def keep(part: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self._streams.append(args[0] if args else kwargs["hidden_states"])
            bare = isinstance(result, Tensor)
            self.resumes &= bare or all(extra is None for extra in result[1:])

        handles = [part.register_forward_hook(keep, with_kwargs=True) for part in self._parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _agrees(self, *, met: bool) -> bool:
        """Run the first prompt from a layer on: the clean logits must come out.

        From every layer on, of a model that was ``met`` from the last one alone.
        """
        if len(self._streams) != len(self._parts):
            return False
        clean = self.clean[:1]
        tensors = (*self.model.module.parameters(), *self.model.module.buffers())
        unit = max(
            torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point()
        )
        bar = max(TOLERANCE, UNITS * unit) * float(clean.abs().max())
        attending = [layer for layer in self.model.geometry.attending if layer]
        return all(
            float((self._run(layer, (), 1, 1) - clean).abs().max()) <= bar
            for layer in (attending[-1:] if met else attending)
        )


@contextmanager
def answering(parts: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the results of modules by those of ``forward``; the modules compute nothing."""
    before = [part.__dict__.get("forward") for part in parts]
    for part in parts:
        part.__dict__["forward"] = forward
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            if own is None:
                del part.__dict__["forward"]
            else:
                part.__dict__["forward"] = own
