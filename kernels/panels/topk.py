"""The largest logits of each row, with torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.kernels.visibility import MASKED

COMB = 16
"""Teeth of a comb: equally spaced columns of a row whose largest is taken at once."""


def select_topk(
    logits: Float[Tensor, "batch head query key"], count: int
) -> Int[Tensor, "batch head query rank"]:
    """Find the columns of the largest logits of each row, in order, -1 where it sees fewer.

    Examples
    --------
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
            rest = torch.arange(COMB * wide, keys, device=best.device)
            rest = rest.expand(*candidates.shape[:-1], -1)
            candidates = torch.cat((candidates, rest), dim=-1)
        values, place = logits.gather(3, candidates).topk(count, dim=-1)
        columns = candidates.gather(3, place)
    else:
        values, columns = logits.topk(min(count, keys), dim=-1)
    columns = columns.masked_fill(values <= MASKED / 2, -1)
    return torch.nn.functional.pad(columns, (0, max(count - keys, 0)), value=-1)
