"""Meter: the bytes of the tensors that a computation holds at once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of every tensor that is made inside and still alive; this thread only.

    Attributes
    ----------
    now, peak
        Bytes alive now, and the most at once.
    largest
        Elements of the largest tensor made; four bytes are one.

    Examples
    --------
    >>> with Meter() as meter:
    ...     made = torch.zeros(1000)
    >>> meter.peak
    4000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.largest = 0
        self._alive: dict[int, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        given = {
            one.untyped_storage().data_ptr()
            for one in tree_leaves((args, kwargs))
            if isinstance(one, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and not one.is_meta:
                self._count(one, given)
        return result

    def _count(self, tensor: torch.Tensor, given: set[int]) -> None:
        self.largest = max(self.largest, tensor.nbytes // max(tensor.element_size(), 4))
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        # A view of something older than the meter, such as a weight, takes nothing.
        if place in given and place not in self._alive:
            return
        entry = self._alive.setdefault(place, [0, storage.nbytes()])
        if entry[0] == 0:
            self.now += entry[1]
            self.peak = max(self.peak, self.now)
        entry[0] += 1
        weakref.finalize(tensor, self._release, place)

    def _release(self, place: int) -> None:
        entry = self._alive[place]
        entry[0] -= 1
        if entry[0] == 0:
            self.now -= entry[1]
            del self._alive[place]
