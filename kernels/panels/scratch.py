"""Reusable scratch memory of a worker, on large pages where the system has them."""

import contextlib
import math
import mmap
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import UInt8
from torch import Tensor

LARGE = 1 << 21
"""Bytes of a large page. Rows of a panel lie far apart: with small pages each is one of its own."""
FLOATS = 16
"""Floats of a line of the cache, on which every tensor begins."""
KEPT = 1 << 23
"""Bytes of a piece up to which it is kept for the next call; larger ones are soon filled again."""
PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}
"""Shared memory, which Python allocates by itself, has no large pages."""

_idle: "list[Scratch]" = []


class Scratch:
    """Pieces of memory that only grow; what a piece held is lost when it is asked for again.

    Fresh memory has to be cleared by the system page by page, which takes as long as some products.

    >>> scratch = Scratch()
    >>> place = scratch.take("rows", 1000).data_ptr()
    >>> place % 64, scratch.take("rows", 500).data_ptr() == place
    (0, True)
    """

    def __init__(self) -> None:
        self._pieces: dict[str, Tensor] = {}

    @classmethod
    @contextlib.contextmanager
    def lend(cls) -> "Iterator[Scratch]":
        """Yield the memory of a finished call, or new memory."""
        try:
            scratch = _idle.pop()
        except IndexError:
            scratch = cls()
        try:
            yield scratch
        finally:
            scratch._pieces = {
                name: piece for name, piece in scratch._pieces.items() if len(piece) <= KEPT
            }
            _idle.append(scratch)

    def take(self, name: str, count: int) -> Tensor:
        """Return a piece."""
        piece = self._pieces.get(name)
        if piece is None or len(piece) < count:
            self._pieces.pop(name, None)
            piece = self._pieces[name] = reserve(count)
        return piece[:count]

    def share(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Divide a piece into tensors of float32."""
        counts = [math.prod(shape) for shape in shapes.values()]
        room = [-(-count // FLOATS) * FLOATS for count in counts]
        piece = self.take(name, 4 * sum(room)).view(torch.float32)
        parts = zip(shapes.items(), torch.split(piece, room), counts, strict=True)
        return {label: part[:count].view(shape) for (label, shape), part, count in parts}


def reserve(count: int) -> UInt8[Tensor, " byte"]:
    """Reserve memory, on large pages unless it is less than one."""
    room = count if count < LARGE else (count + 2 * LARGE - 1) // LARGE * LARGE
    memory = mmap.mmap(-1, max(room, 4 * FLOATS), **PRIVATE)
    if count < LARGE:
        return torch.frombuffer(memory, dtype=torch.uint8)[:count]
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    # Large pages begin at their multiples; what lies before the first is never touched.
    start = -whole.data_ptr() % LARGE
    return whole[start : start + count]
