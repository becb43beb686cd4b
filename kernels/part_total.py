"""The total of a product over the parts of an attention call."""

import threading
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from headscope.kernels.panels.plan import Part


@dataclass(frozen=True, eq=False)
class Total:
    """Results of parts: slices of their own, or a sum over heads, added in order.

    Parts end in any order, and a float sum depends on it: each waits for those before it.
    """

    result: Float[Tensor, "batch _ position vector"]
    summed: bool
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: dict[tuple[int, int], tuple[Part, Tensor]] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)

    def allocate(self, part: Part) -> Tensor:
        """Allocate the terms of a part."""
        if self.summed:
            return torch.zeros_like(self.result[part.batch])
        return self.result[part.batch, part.heads]

    def add(self, part: Part, terms: Tensor) -> None:
        """Add the terms of a part, and of those that waited for it."""
        if not self.summed:
            return
        first = part.batch.start
        with self.lock:
            self.waiting[first, part.heads.start] = part, terms
            while (first, self.done.get(first, 0)) in self.waiting:
                part, terms = self.waiting.pop((first, self.done.get(first, 0)))
                self.result[part.batch] += terms
                self.done[first] = part.heads.stop
