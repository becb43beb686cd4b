"""Rare tokens of a context, and how much more attention they get than others."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from headscope.analyses._stats.bootstrap import Array


def rarest(prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Return the positions of the ``count`` rarest tokens of every prompt, in order.

    Rarity is the number of times that a token stands in all prompts; of equally rare ones the
    larger token id counts as rarer, as later entries of a vocabulary mostly are. The first position
    is left out, where sinks are. At most half of a prompt is rare.
    """
    counts = Counter(token for ids in prompts for token in ids)
    positions = []
    for ids in prompts:
        ranked = sorted((counts[token], -token, at) for at, token in enumerate(ids) if at)
        most = min(count, max(len(ids) // 2, 1))
        positions.append(sorted(at for _, _, at in ranked[:most]))
    return positions


def expected(length: int, positions: Sequence[int], queries: Sequence[int], causal: bool) -> Array:
    """Return the share of rare keys among those each query sees: the weight of a uniform head."""
    rare = np.isin(np.arange(length), list(positions))
    if not causal:
        return np.full(len(queries), rare.mean())
    return np.asarray([rare[: query + 1].mean() for query in queries])
