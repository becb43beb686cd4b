"""Forward passes taken up at a later layer: what stands before it is kept from an intact pass.

An edit of the heads of one layer changes nothing before that layer, and a metric reads the logits
of a few positions only. So the layers before are run once for all edits, and the unembedding is
given the asked positions alone. The numbers are those of whole passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.kernels.api import Request
from headscope.kernels.errors import InvalidInput, UnsupportedModel
from headscope.probes.attention.forward import Reader, call
from headscope.probes.attention.interface import intercept_attention
from headscope.probes.attention.residual_stream import blocks

if TYPE_CHECKING:
    from headscope.probes.interventions.base import Edit
    from headscope.probes.models.model import Model

# Passes from a layer on must agree with whole ones to this share of the largest logit.
TOLERANCE = 1e-4


class Passes:
    """One batch of prompts of one length, run whole once, edited from any layer on.

    Attributes
    ----------
    intact
        Logits at the asked positions, without an edit.
    asked
        The questions, with ``at`` counting the asked positions.
    resumes
        Whether passes begin at a later layer; a model whose blocks hand each other more than the
        residual stream is run whole every time.
    """

    def __init__(
        self,
        model: Model,
        ids: Int[Tensor, "row position"],
        asked: Sequence[Sequence[Any]],
        *,
        resume: bool = True,
    ) -> None:
        self.model, self.ids = model, ids
        self._places, self.asked = trimmed(asked)
        self._streams: list[Tensor] = []
        self._parts = blocks(model) if resume else []
        self.resumes = resume
        with self._recording():
            self.intact = self._run(0, (), 1, None)
        if self.resumes:
            self.resumes = self._agrees()

    def logits(
        self, layer: int, edits: Sequence[Edit], times: int
    ) -> Float[Tensor, "batch asked vocab"]:
        """Run the batch ``times`` over with edits that touch no layer before ``layer``.

        Returns the logits at the asked positions; rows are those of the batch over and over.
        """
        return self._run(layer if self.resumes else 0, edits, times, None)

    def _run(
        self, layer: int, edits: Sequence[Edit], times: int, rows: int | None
    ) -> Float[Tensor, "batch asked vocab"]:
        model, reader = self.model, Reader(Request(stats=()), edits)
        for edit in edits:
            edit.check(model.geometry)
        ids, places = self.ids[:rows].repeat(times, 1), self._places[:rows].repeat(times, 1)
        with (
            torch.no_grad(),
            intercept_attention(model, reader),
            _unembedding(model, places) as fired,
        ):
            if layer:
                stream = self._streams[layer][:rows].repeat(times, 1, 1)
                with _beginning(self._parts[:layer], stream):
                    found = call(model, ids, head=True)
            else:
                found = call(model, ids, head=True)
        expected = [each for each in model.geometry.attending if each >= layer]
        if sorted(reader.layers) != expected:
            raise UnsupportedModel(
                f"model: layers {sorted(reader.layers)} of {model.name} asked for attention, "
                f"expected each of {expected} once; this architecture is refused"
            )
        if not bool(torch.isfinite(found).all()):
            raise InvalidInput(
                f"model: {model.name} gives NaN or infinite numbers; check its weights"
            )
        if not fired:
            row = torch.arange(len(found), device=found.device)[:, None]
            found = found[row, places.to(found.device)]
        return found

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Keep what goes into every block, and note blocks that give more than the stream."""

        def keep(part: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self._streams.append(args[0] if args else kwargs["hidden_states"])
            bare = isinstance(result, Tensor)
            self.resumes &= bare or all(each is None for each in result[1:])

        handles = [part.register_forward_hook(keep, with_kwargs=True) for part in self._parts]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _agrees(self) -> bool:
        """Run the first prompt from every layer on: the intact logits must come out."""
        if len(self._streams) != len(self._parts):
            return False
        one = self.intact[:1]
        bar = TOLERANCE * float(one.abs().max())
        attending = [layer for layer in self.model.geometry.attending if layer]
        return all(
            float((self._run(layer, (), 1, 1) - one).abs().max()) <= bar for layer in attending
        )


def trimmed(
    asked: Sequence[Sequence[Any]],
) -> tuple[Int[Tensor, "row asked"], list[list[Any]]]:
    """Return the asked positions of every row, and the questions with ``at`` counting these.

    >>> from types import SimpleNamespace
    >>> from headscope.probes.prompts.tokens import EncodedQuestion
    >>> late, early = (EncodedQuestion(at, (1,), (2,), ()) for at in (7, 3))
    >>> places, questions = trimmed([[late, early], [late]])
    >>> places.tolist(), [[each.at for each in row] for row in questions]
    ([[3, 7], [7, 7]], [[1, 0], [0]])
    """
    wanted = [sorted({one.at for one in row}) for row in asked]
    width = max(map(len, wanted))
    places = torch.tensor([row + row[-1:] * (width - len(row)) for row in wanted])
    questions = [
        [replace(one, at=here.index(one.at)) for one in row]
        for row, here in zip(asked, wanted, strict=True)
    ]
    return places, questions


@contextmanager
def _beginning(parts: Sequence[nn.Module], stream: Tensor) -> Iterator[None]:
    """Let blocks hand a known residual stream on, without computing anything."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return stream

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


@contextmanager
def _unembedding(model: Model, places: Int[Tensor, "batch asked"]) -> Iterator[list[bool]]:
    """Let the unembedding see the asked positions alone; what is yielded says whether it did."""
    module: Any = model.module
    fired: list[bool] = []

    def enter(part: nn.Module, args: Any) -> Any:
        hidden = args[0]
        row = torch.arange(len(hidden), device=hidden.device)[:, None]
        fired.append(True)
        return (hidden[row, places.to(hidden.device)], *args[1:])

    handle = module.get_output_embeddings().register_forward_pre_hook(enter)
    try:
        yield fired
    finally:
        handle.remove()
