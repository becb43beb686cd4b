"""Prompts in the tokens of one model, and batches of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headscope.probes.models.pair import Pair

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headscope.probes.models.pair import Ids
    from headscope.probes.prompts.tokens import EncodedTask


@dataclass(frozen=True)
class Prompts:
    """Prompts in the tokens of one model: ``ids`` of the queries, one tuple per prompt.

    ``task``, ``seed`` and ``register`` say where they come from ("" without a task), ``encoded``
    has the task's questions in token positions. Where a decoder is captured, ``sources`` are what
    its encoder reads, and they are the keys if ``crossed``. A model of images reads ``pixels``; ids
    then are the positions of the patches, and ``names`` their names.
    """

    ids: tuple[tuple[int, ...], ...]
    task: str = ""
    seed: int | str = ""
    encoded: EncodedTask | None = None
    sources: tuple[tuple[int, ...], ...] = ()
    crossed: bool = False
    pixels: Float[Tensor, "prompt channel height width"] | None = None
    names: tuple[str, ...] = ()
    register: str = ""

    @property
    def redrawn(self) -> int:
        """Draws of the task that the tokenizer did not allow."""
        return 0 if self.encoded is None else self.encoded.redrawn

    @property
    def keys(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of the keys, one tuple per prompt."""
        return self.sources if self.crossed else self.ids

    @property
    def longest(self) -> tuple[int, int]:
        """Largest number of queries and of keys."""
        return max(map(len, self.ids)), max(map(len, self.keys))

    def digest(self) -> str:
        """Return the SHA-256 of the token ids, or of the pixels."""
        if self.pixels is not None:
            shape = json.dumps(tuple(self.pixels.shape)).encode()
            return hashlib.sha256(shape + self.pixels.numpy().tobytes()).hexdigest()
        tokens = (self.sources, self.ids) if self.sources else self.ids
        return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()

    def batches(self, tokens: int) -> Iterator[list[int]]:
        """Yield rows of prompts of one length, and of one length of their sources."""
        yield from batches(self.ids, tokens, self.sources)

    def stack(self, rows: Sequence[int]) -> Ids:
        """Stack prompts of one length to what a model is called with."""
        import torch

        if self.pixels is not None:
            return self.pixels[list(rows)]
        ids = torch.tensor([self.ids[row] for row in rows])
        if not self.sources:
            return ids
        return Pair(torch.tensor([self.sources[row] for row in rows]), ids)


def batches(
    ids: Sequence[Sequence[int]],
    tokens: int,
    sources: Sequence[Sequence[int]] = (),
    waste: float = 0.0,
) -> Iterator[list[int]]:
    """Yield rows of prompts of similar length, at most `tokens` tokens a batch, longest last.

    At most a share ``waste`` of a batch is padding: of one length where it is 0. Sources in a batch
    are of one length.

    >>> list(batches([[5] * 10, [5] * 9, [5] * 3], 100, waste=0.1))
    [[2], [1, 0]]
    """
    others = sources or [()] * len(ids)
    shapes = [(len(prompt), len(source)) for prompt, source in zip(ids, others, strict=True)]
    batch: list[int] = []
    for row in sorted(range(len(ids)), key=shapes.__getitem__):
        # Lengths rise, so that a new row makes all of them as long as itself.
        longest, beside = shapes[row]
        real = sum(shapes[member][0] for member in batch) + longest
        room = (len(batch) + 1) * longest
        large = room + (len(batch) + 1) * beside > tokens
        other = any(shapes[member][1] != beside for member in batch)
        if batch and (large or other or room - real > waste * room):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
