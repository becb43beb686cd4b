"""Circuit scores from discrete codes: what heads say only when the task is there."""

import numpy as np
from numpy.typing import NDArray

from headscope.analyses._stats.bootstrap import Array

Codes = NDArray[np.int64]


def unique_codes(positive: Codes, negative: Codes, *, per_union: bool = False) -> Array:
    """Count, for each head, the codes seen on positive prompts and never on negative ones (head,).

    Codes are (prompt, head); ``per_union`` divides by the number of codes seen on either.
    """
    counts = np.zeros(positive.shape[1])
    for head in range(positive.shape[1]):
        here, there = set(positive[:, head].tolist()), set(negative[:, head].tolist())
        counts[head] = len(here - there) / (len(here | there) if per_union else 1)
    return counts


def unique_pairs(
    positive: Codes, negative: Codes, edges: list[tuple[int, int]], keep: int
) -> Array:
    """Count, for each edge, its pairs of codes that co-occur only on positive prompts (edge,).

    Of all pairs of all edges, the ``keep`` that occur on most positive prompts are counted. Codes
    are (prompt, head), edges pairs of heads, source first.
    """
    width = int(max(positive.max(), negative.max())) + 1
    owners, totals = [], []
    for number, (source, target) in enumerate(edges):
        pairs, counts = np.unique(
            positive[:, source] * width + positive[:, target], return_counts=True
        )
        only = ~np.isin(pairs, negative[:, source] * width + negative[:, target])
        owners.append(np.full(int(only.sum()), number))
        totals.append(counts[only])
    owner, total = np.concatenate(owners), np.concatenate(totals)
    best = np.argsort(-total, kind="stable")[:keep]
    return np.bincount(owner[best], minlength=len(edges)).astype(float)
