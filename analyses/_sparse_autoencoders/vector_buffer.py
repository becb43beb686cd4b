"""Vectors of a long stream in random order, from a buffer of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.errors import NotApplicable

Batch = Float[Tensor, "example size"]
Stream = Callable[[int], Iterator[Batch]]
"""Begins a stream at one of its parts; what is random about it is drawn when it is called."""


class VectorBuffer:
    """Batches in random order without an end, from the first ``room`` vectors of a stream on.

    No more than ``room`` vectors are held. Where the stream has no more, they are drawn over and
    over; else half of them give way to new ones whenever each was drawn ``uses`` times on average,
    and the stream begins again at its end.

    Parameters
    ----------
    stream
        Where vectors come from; it may draw from ``generator``.
    room, batch
        Vectors that are held, and those of a batch.
    generator
        Generator of every order.
    uses
        How often a vector is drawn, on average.
    state
        What `state` gave, to go on from there; without it the stream begins.
    """

    def __init__(
        self,
        stream: Stream,
        room: int,
        batch: int,
        generator: torch.Generator,
        uses: int = 4,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.stream, self.room, self.batch, self.uses = stream, room, batch, uses
        self.generator = generator
        if state is None:
            self._begin(0)
            self.held = self._take(room, 0)
            if len(self.held) < 2:
                raise NotApplicable("prompts: they have fewer than 2 tokens; give more text")
            self.round, self.start = 0, 0
            self.order = torch.randperm(len(self.held), generator=generator)
            return
        self.held, self.order = state["held"], state["order"]
        skipped, self.round, self.start = state["counts"].tolist()
        # The stream draws its order again, and then the generator is where it was.
        generator.set_state(state["opening"])
        self._begin(skipped)
        generator.set_state(state["generator"])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; what is left of an order and fills none is dropped."""
        size = min(self.batch, len(self.held))
        if self.start + size > len(self.held):
            self._reorder()
        part = self.order[self.start : self.start + size]
        self.start += size
        return self.held[part]

    def state(self) -> dict[str, Tensor]:
        """Return the vectors, their order, and the positions in it and in the stream."""
        return {
            "held": self.held,
            "order": self.order,
            "counts": torch.tensor([self.parts, self.round, self.start]),
            "opening": self.opening,
            "generator": self.generator.get_state(),
        }

    def _reorder(self) -> None:
        """Draw the next order, of new vectors where those that are held were used enough."""
        whole = len(self.held) < self.room
        self.round += 1
        if not whole and self.round >= max(self.uses // 2, 1):
            self._renew()
            self.round = 0
        self.order = torch.randperm(len(self.held), generator=self.generator)
        self.start = 0

    def _renew(self) -> None:
        order = torch.randperm(len(self.held), generator=self.generator)
        kept = self.held[order[self.room // 2 :]]
        while len(kept) < self.room:
            kept = torch.cat([kept, self._take(self.room - len(kept), kept.shape[1])])
            if len(kept) < self.room:
                self._begin(0)
        self.held = kept

    def _begin(self, parts: int) -> None:
        self.opening, self.parts = self.generator.get_state(), parts
        self.source = self.stream(parts)

    def _take(self, count: int, size: int) -> Batch:
        """Take up to ``count`` vectors; the rest of the last part is dropped."""
        parts: list[Batch] = []
        while sum(map(len, parts)) < count and (part := next(self.source, None)) is not None:
            self.parts += 1
            parts.append(part)
        return torch.cat(parts)[:count] if parts else torch.empty(0, size)
