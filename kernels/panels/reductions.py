"""Reductions of rows in torch: weights by distance, in bins that double, and the top k."""

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.visibility import MASKED

NARROW = 64
"""Distance below which bins are so narrow that they are added up together."""
COMB = 16
"""Teeth of a comb: equally spaced columns of a row whose largest is taken at once."""


def distance_bins(length: int) -> list[int]:
    """List the smallest distance of each bin: 0, and powers of two up to a length."""
    return [0, *(1 << power for power in range((length - 1).bit_length()))]


def sheared(
    weights: Float[Tensor, "batch head query key"], starts: list[int]
) -> Float[Tensor, "batch head query bin"]:
    """Add each bin as a rectangle: in steps of a row and a key, its edges are straight.

    Where a rectangle begins before its row, it reads the end of the row before, whose keys are
    hidden by the order and have no weight.

    >>> weights = torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.5, 0.25]])
    >>> sheared(weights[None, None], distance_bins(3))
    tensor([[[[0.2500, 0.7500, 0.0000],
              [0.2500, 0.5000, 0.2500]]]])
    """
    *heads, rows, keys = weights.shape
    *steps, step, _ = weights.stride()
    bins = weights.new_zeros(*heads, rows, len(starts))
    diagonal = keys - rows

    def strip(start: int, stop: int, skip: int = 0) -> Tensor:
        at = weights.storage_offset() + skip * step + diagonal + skip + 1 - stop
        sizes = (*heads, rows - skip, stop - start)
        return weights.as_strided(sizes, (*steps, step + 1, 1), at)

    narrow = sum(2 * start <= min(diagonal + 1, NARROW) for start in starts)
    table = memberships(narrow).to(weights)
    bins[..., :narrow] = strip(0, len(table)) @ table
    for number, start in enumerate(starts[narrow:], narrow):
        stop = min(2 * start, keys)
        # The first row has none before it.
        skip = int(stop > diagonal + 1)
        if start < stop:
            torch.sum(strip(start, stop, skip), dim=-1, out=bins[..., skip:, number])
        if skip and start <= diagonal:
            torch.sum(weights[..., 0, : diagonal + 1 - start], dim=-1, out=bins[..., 0, number])
    return bins


@cache
def memberships(bins: int) -> Float[Tensor, "key bin"]:
    """Which of the first bins each key is in, from the farthest key to the query itself."""
    distances = reversed(range(1 << (bins - 1)))
    numbers = torch.tensor([distance.bit_length() for distance in distances])
    return torch.nn.functional.one_hot(numbers, bins).float()


def select_topk(
    logits: Float[Tensor, "batch head query key"], count: int
) -> Int[Tensor, "batch head query rank"]:
    """Find the columns of the largest logits of each row, in order, -1 where it sees fewer.

    >>> select_topk(torch.tensor([3.0, 5.0, -1e30, 4.0]).view(1, 1, 1, 4), 4).flatten().tolist()
    [1, 3, 0, -1]
    """
    keys = logits.shape[-1]
    # The k largest lie in the k combs of the largest peaks, or in the columns after the combs.
    wide = keys // COMB
    if wide > count:
        combs = torch.unflatten(logits[..., : COMB * wide], -1, (COMB, wide))
        best = combs.amax(dim=-2).topk(count, dim=-1, sorted=False).indices
        teeth = wide * torch.arange(COMB, device=best.device)
        candidates = (best[..., None] + teeth).flatten(-2)
        if COMB * wide < keys:
            tail = torch.arange(COMB * wide, keys, device=best.device)
            tail = tail.expand(*candidates.shape[:-1], -1)
            candidates = torch.cat((candidates, tail), dim=-1)
        values, index = logits.gather(3, candidates).topk(count, dim=-1)
        columns = candidates.gather(3, index)
    else:
        values, columns = logits.topk(min(count, keys), dim=-1)
    columns = columns.masked_fill(values <= MASKED / 2, -1)
    return torch.nn.functional.pad(columns, (0, max(count - keys, 0)), value=-1)
