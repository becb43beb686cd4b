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
        on_positive, on_negative = set(positive[:, head].tolist()), set(negative[:, head].tolist())
        counts[head] = len(on_positive - on_negative) / (
            len(on_positive | on_negative) if per_union else 1
        )
    return counts


def information(positive: Codes, negative: Codes) -> Array:
    """Return the information of each head's code on the side of a prompt, in bits (head,).

    The mutual information of the observed counts; codes are (prompt, head). It grows by chance with
    the number of codes, so that it is read against that of shuffled sides.
    """
    sides = np.repeat([0, 1], [len(positive), len(negative)])
    bits = np.zeros(positive.shape[1])
    for head, codes in enumerate(np.concatenate((positive, negative)).T):
        _, numbers = np.unique(codes, return_inverse=True)
        counts = np.bincount(2 * numbers + sides, minlength=2 * (numbers.max() + 1)).reshape(-1, 2)
        share = counts / counts.sum()
        independent = share.sum(1, keepdims=True) * share.sum(0)
        occurring = share > 0
        bits[head] = (share[occurring] * np.log2(share[occurring] / independent[occurring])).sum()
    return bits


def unique_pairs(
    positive: Codes, negative: Codes, edges: list[tuple[int, int]], keep: int
) -> Array:
    """Count, for each edge, its pairs of codes that co-occur only on positive prompts (edge,).

    Of all pairs of all edges, the ``keep`` that occur on most positive prompts are counted, of
    pairs that occur alike those of the first edges. Codes are (prompt, head), edges pairs of heads,
    source first.
    """
    codes = np.concatenate((positive, negative))
    heads, width = codes.shape[1], int(codes.max()) + 1
    # All codes of all heads are numbered through.
    names, numbers = np.unique(codes + width * np.arange(heads), return_inverse=True)
    numbers, ends = (
        numbers.reshape(codes.shape),
        np.searchsorted(names, width * np.arange(heads + 1)),
    )
    owners, totals = [], []
    rank = np.zeros(heads, dtype=np.int64)
    sources, targets = np.asarray(edges).T
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        rank[targets[rows]] = rows
        low, high = ends[targets[rows].min()], ends[targets[rows].max() + 1]
        shape = (ends[source + 1] - ends[source], high - low)
        first = (numbers[:, source] - ends[source])[:, None] * shape[1]
        pairs = first + numbers[:, targets[rows]] - low
        positive_counts, negative_counts = (
            np.bincount(part.ravel(), minlength=shape[0] * shape[1])
            for part in (pairs[: len(positive)], pairs[len(positive) :])
        )
        only = np.flatnonzero((positive_counts > 0) & (negative_counts == 0))
        owners.append(rank[names[low + only % shape[1]] // width])
        totals.append(positive_counts[only])
    owner, total = np.concatenate(owners), np.concatenate(totals)
    # The least total that counts, and how many of those that have it.
    above = np.bincount(total, minlength=1)[::-1].cumsum()[::-1]
    least = max(int((above >= keep).sum()) - 1, 0)
    certain = np.bincount(owner[total > least], minlength=len(edges))
    tied = np.bincount(owner[total == least], minlength=len(edges))
    room = keep - int(certain.sum()) - (tied.cumsum() - tied)
    return (certain + np.clip(room, 0, tied)).astype(float)
